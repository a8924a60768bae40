// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* imds-watch: lets up to user space what is not provably a clean request to a metadata service, and
 * of its answer the status; imds_watch_callers.bpf.h remembers who opened each connection to one.
 *
 * The socket filter sees every packet of its interfaces, and wakes nobody for those that concern no
 * endpoint, carry no payload, or hold complete requests that are clean. It proves that within one
 * packet and errs on the side of sending up. What spans packets is remembered: a flow that once sent
 * something other than complete requests is watched from then on, as what follows may be the rest
 * of it; where in the stream the answer begins to what went up; and which sender tries many paths,
 * or was told "not found" again and again.
 */
#include "lib/endpoints.bpf.h"
#include "imds_watch_callers.bpf.h"
#include "imds_watch.h"

/* linux/if_packet.h */
#define PACKET_OUTGOING 4
/* Has this index in every network namespace. */
#define LOOPBACK 1

#define TCP_FLAG_URG 0x20

/* Whether every request goes up, the clean ones too. */
const volatile __u8 pass_all;
/* Whether requests go up whose user is not in known_users, or is not known. */
const volatile __u8 judge_users;
/* src/tools/imds_watch/scanner.rs: for each byte its class; at state + class the next state in the
 * low SCAN_STATE_BITS and the flags it raises in the high ones.
 */
const volatile __u8 scan_classes[256];
const volatile __u32 scan_table[SCAN_ENTRIES];
const volatile __u32 scan_start;
/* Random, so that nobody can choose paths whose hashes are alike; the second one is odd. */
const volatile __u64 scan_key[2];
/* Nanoseconds within which many paths, or many answers "not found", are a scan. */
const volatile __u64 scan_window;

/* 0 -> how many packets; the sum over all CPUs counts */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct imds_counters);
} counters SEC(".maps");

struct scratch {
	__u8 byte[SCAN_LIMIT];
	/* How many requests are in it. */
	__u32 requests;
};

/* 0 -> room for a payload (2052 bytes). A socket filter runs with bottom halves disabled: one CPU, one user. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

/* flow -> 1, if it is not known to be at the start of a request */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow);
	__type(value, __u8);
} watched SEC(".maps");

/* Whose the answer is that begins where a sender has read up to. */
enum answer_of {
	/* Of none: nothing was asked there yet. */
	OF_NOBODY,
	/* Of a clean request that did not go up, */
	OF_CLEAN,
	/* or of one that did. */
	OF_SENT_UP,
};

struct place {
	/* Sequence numbers: of the last segment's first byte, and behind its last. */
	__u32 start;
	__u32 next;
	/* How far its sender had read, and whose the answer there is: enum answer_of. */
	__u32 ack;
	__u16 answer_of;
	/* Whether it left by the interface that it was seen at, and not came in. */
	__u16 outgoing;
};

/* flow -> where its last segment was (16 bytes) */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow);
	__type(value, struct place);
} places SEC(".maps");

struct segment {
	struct flow flow;
	__u32 seq;
};

/* flow and sequence number (40 bytes) -> where the one before ended, of segments that went up and do
 * not begin there: they came too early, or the service may hold other bytes in their place, which
 * user space has not seen.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct segment);
	__type(value, __u32);
} disputed SEC(".maps");

/* flow -> where the answer begins to what went up last */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow);
	__type(value, __u32);
} waiting SEC(".maps");

struct sender {
	/* Nanoseconds since boot: when it was begun to count, and until when clean requests go up. */
	__u64 since;
	__u64 until;
	/* Answers "not found". */
	__u32 misses;
	/* Different paths that clean requests asked for: the bits that are set below, but for packets with
	 * several requests in them, which count as so many.
	 */
	__u32 paths;
	/* A bit for each, by its hash. Two may share one: of 64, two or so do. */
	__u64 asked[SCAN_BITS / 64];
};

/* who asks, by address (16 bytes) -> what for, of late (152 bytes) */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, union address);
	__type(value, struct sender);
} senders SEC(".maps");

/* uid -> 1, of those that may ask */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u8);
} known_users SEC(".maps");

/* Inlined by the verifier where the kernel has them (6.2): a direct look at the packet, at a quarter
 * of what a helper costs.
 */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;
extern void *bpf_rdonly_cast(const void *address, __u32 type) __ksym __weak;

/* The header at skb->data, if it lies in the linear part and can be looked at; else NULL. */
#define direct_header(skb, type)                                                                 \
	({                                                                                       \
		type *_header = NULL;                                                            \
		if (bpf_ksym_exists(bpf_cast_to_kern_ctx) && bpf_ksym_exists(bpf_rdonly_cast)) { \
			struct sk_buff *_skb = bpf_cast_to_kern_ctx(skb);                        \
			if (_skb->len - _skb->data_len >= sizeof(type))                          \
				_header = bpf_rdonly_cast(_skb->data,                            \
							  bpf_core_type_id_kernel(type));        \
		}                                                                                \
		_header;                                                                         \
	})

static __always_inline bool is_side_v4(__be32 src, __be32 dst)
{
	return endpoint_possible_v4(bpf_ntohl(dst)) || endpoint_possible_v4(bpf_ntohl(src));
}

static __always_inline bool is_side_v6(const struct in6_addr *src, const struct in6_addr *dst)
{
	return endpoint_possible_v6(bpf_ntohs(dst->in6_u.u6_addr16[0]),
				    bpf_ntohs(dst->in6_u.u6_addr16[7])) ||
	       endpoint_possible_v6(bpf_ntohs(src->in6_u.u6_addr16[0]),
				    bpf_ntohs(src->in6_u.u6_addr16[7]));
}

/* Whether a packet that begins with an IPv4 header may be to or from an endpoint. */
static __always_inline bool may_concern_v4(struct __sk_buff *skb)
{
	struct iphdr *ip = direct_header(skb, struct iphdr);
	__be32 addresses[2];

	if (ip)
		return is_side_v4(ip->saddr, ip->daddr);
	if (bpf_skb_load_bytes(skb, offsetof(struct iphdr, saddr), addresses, sizeof(addresses)))
		return false;
	return is_side_v4(addresses[0], addresses[1]);
}

static __always_inline bool may_concern_v6(struct __sk_buff *skb)
{
	struct ipv6hdr *ip = direct_header(skb, struct ipv6hdr);
	struct in6_addr addresses[2];

	if (ip)
		return is_side_v6(&ip->saddr, &ip->daddr);
	if (bpf_skb_load_bytes(skb, offsetof(struct ipv6hdr, saddr), addresses, sizeof(addresses)))
		return false;
	return is_side_v6(&addresses[0], &addresses[1]);
}

/* The same for what may be an IP header at `at`: rare, and so a function of its own. */
static __noinline bool may_concern(struct __sk_buff *skb, __u32 at)
{
	struct ipv6hdr ip;
	__u8 version;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(struct iphdr)))
		return false;
	version = *(__u8 *)&ip >> 4;
	if (version == 4)
		return is_side_v4(((struct iphdr *)&ip)->saddr, ((struct iphdr *)&ip)->daddr);
	if (version != 6 || bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return false;
	return is_side_v6(&ip.saddr, &ip.daddr);
}

static __always_inline struct imds_counters *count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

enum finding {
	/* Complete requests that are as they should be. */
	CLEAN,
	/* Complete requests, one of which is not. */
	SUSPICIOUS,
	/* Not, or not only, complete requests, or services disagree about what they are. */
	UNREADABLE,
};

/* Runs the automaton over `len` bytes of payload; says which enum finding. scanner.rs does the same
 * in Scanner::clean(). `required` are flags, of which each request needs one
 * that its path does not rule out.
 *
 * A global function (kernel 5.6), so that the verifier follows its loop once and not for each of
 * the ways that lead here.
 */
__noinline int imds_scan(struct __sk_buff *skb, __u32 payload, __u32 len, __u32 required)
{
	/* Nothing is missing where nothing is required. */
	__u32 needed = required ? 1 : 0;
	__u32 entry = scan_start;
	struct scratch *room;
	__u32 requests = 0;
	__u32 flags = 0;
	__u32 bad = 0;
	__u32 zero = 0;
	__u32 last;
	__u32 i;

	room = bpf_map_lookup_elem(&scratch, &zero);
	if (!room)
		return UNREADABLE;
	/* By way of the last byte's index: from "not zero" a kernel of 5.10 does not conclude "one at
	 * least", which the helper wants.
	 */
	last = len - 1;
	barrier_var(last);
	if (last >= SCAN_LIMIT)
		return UNREADABLE;
	if (bpf_skb_load_bytes(skb, payload, room->byte, last + 1))
		return UNREADABLE;

	/* No branch but the loop's own: the verifier follows each of the SCAN_LIMIT rounds. */
	for (i = 0; i < SCAN_LIMIT; i++) {
		__u32 missing;
		__u32 ended;

		if (i >= len)
			break;
		entry = (entry & (SCAN_ENTRIES - 1)) + scan_classes[room->byte[i]];
		entry = scan_table[entry & (SCAN_ENTRIES - 1)];
		flags |= entry >> SCAN_STATE_BITS;
		/* All ones where a head ends, else zero. */
		ended = (__s32)entry >> 31;
		barrier_var(ended);
		/* 1 where no required flag was raised that counts, else 0. */
		missing = ((flags & ~(flags >> SCAN_HEADERS) & required) - 1) >> 31;
		barrier_var(missing);
		bad |= ended & (flags & SCAN_BAD);
		bad |= ended & missing & needed;
		flags &= ~ended;
		requests -= ended;
	}
	room->requests = requests;
	if (!(entry >> 31) || bad & SCAN_BODY)
		return UNREADABLE;
	return bad ? SUSPICIOUS : CLEAN;
}

/* 1 for zero, and 0 for a number up to 2^31, without a branch: the verifier would follow both. */
static __always_inline __u32 is_zero(__u32 number)
{
	__u32 borrow = number - 1;

	barrier_var(borrow);
	return borrow >> 31;
}

/* A keyed hash of what those requests ask for that imds_scan() has just found to be clean, in the low
 * bits, and above SCAN_BITS how many requests there are. One request is looked at up to the end of its
 * path, of several every byte. A global function, as that one is.
 */
__noinline int imds_asked(__u32 len)
{
	__u64 hash = scan_key[0];
	struct scratch *room;
	__u32 spaces = 0;
	__u32 zero = 0;
	__u32 single;
	__u32 i;

	room = bpf_map_lookup_elem(&scratch, &zero);
	if (!room)
		return 0;
	single = is_zero(room->requests ^ 1);
	for (i = 0; i < SCAN_LIMIT; i++) {
		__u32 byte;

		if (i >= len)
			break;
		byte = room->byte[i];
		/* The first space is behind the method. */
		spaces += is_zero(byte ^ ' ');
		if (single & (spaces >> 1 | is_zero(byte ^ '?')))
			break;
		hash = (hash ^ byte) * scan_key[1];
	}
	/* Each bit of it shall depend on every byte. */
	hash = (hash ^ hash >> 32) * scan_key[1];
	return room->requests * SCAN_BITS | (hash >> 32 & (SCAN_BITS - 1));
}

/* The first `length` bytes of the packet go up. */
static __always_inline int deliver(struct __sk_buff *skb, struct imds_counters *counters,
				   __u32 length)
{
	counters->concerning++;
	counters->delivered++;
	return skb->len < length ? skb->len : length;
}

static const struct sender new_sender;

/* What a sender did within the window that `now` is in; NULL if there is no room to remember it. */
static __always_inline struct sender *sender_at(const union address *who, __u64 now)
{
	struct sender *sender = bpf_map_lookup_elem(&senders, who);

	if (!sender) {
		/* Too long for the stack. */
		bpf_map_update_elem(&senders, who, &new_sender, BPF_ANY);
		sender = bpf_map_lookup_elem(&senders, who);
		if (!sender)
			return NULL;
	}
	if (!sender->since || now - sender->since >= scan_window) {
		sender->since = now;
		sender->misses = 0;
		sender->paths = 0;
		__builtin_memset(sender->asked, 0, sizeof(sender->asked));
	}
	return sender;
}

/* Counts `len` bytes of clean requests; whether they are to be seen, as their sender may be scanning. */
static __always_inline bool may_be_scan(const union address *who, __u32 len)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct sender *sender = sender_at(who, now);
	__u32 asked;
	__u64 *word;
	__u64 bit;

	if (!sender)
		return true;
	asked = imds_asked(len);
	word = &sender->asked[asked / 64 % (SCAN_BITS / 64)];
	bit = 1ULL << (asked & 63);
	if (!(*word & bit)) {
		*word |= bit;
		sender->paths += asked / SCAN_BITS;
		if (sender->paths > SCAN_PATHS)
			sender->until = now + scan_window;
	}
	return now < sender->until;
}

/* Whether a clean request is to be seen all the same: for its sender. */
static __always_inline bool is_of_interest(const struct flow *flow, __u32 len)
{
	if (judge_users) {
		struct caller *caller = bpf_map_lookup_elem(&opened, flow);

		if (!caller || !bpf_map_lookup_elem(&known_users, &caller->who.uid))
			return true;
	}
	return may_be_scan(&flow->local, len);
}

/* Whether the segment begins where the one before ended, or lies in exactly its place: sent again, or
 * seen on one more interface. Only then is each byte that the service reads one of a segment that
 * was judged, with nothing before it. Nobody knows of a flow's first one, unless its beginning was
 * seen. Leaves in `*found` where the segment is remembered; NULL if there is no room for it.
 */
static __always_inline bool is_in_place(struct __sk_buff *skb, const struct packet *pkt,
					const struct flow *flow, struct place **found)
{
	/* A SYN counts as one byte before the payload. */
	__u32 seq = pkt->seq + (pkt->tcp_flags & TCP_FLAG_SYN ? 1 : 0);
	struct place *place = bpf_map_lookup_elem(&places, flow);
	struct place first = {
		.start = seq,
		.next = seq + pkt->payload_len,
		.ack = pkt->ack,
	};
	struct segment segment;
	bool fits = true;

	if (!place) {
		bpf_map_update_elem(&places, flow, &first, BPF_ANY);
		place = bpf_map_lookup_elem(&places, flow);
	} else if (seq != place->next && (seq != place->start || first.next != place->next)) {
		fits = false;
		segment.flow = *flow;
		segment.seq = seq;
		bpf_map_update_elem(&disputed, &segment, &place->next, BPF_ANY);
		/* What lies behind was sent already; and nothing is in the place of this. */
		if ((__s32)(first.next - place->next) < 0)
			first.next = place->next;
		first.start = first.next;
	}
	*found = place;
	if (!place)
		return fits;
	place->start = first.start;
	place->next = first.next;
	place->outgoing = skb->pkt_type == PACKET_OUTGOING;
	if (place->ack != pkt->ack) {
		place->ack = pkt->ack;
		place->answer_of = OF_NOBODY;
	}
	return fits;
}

/* How much of a packet to an endpoint goes up: 0 or all of it. */
static __always_inline int judge_request(struct __sk_buff *skb, const struct packet *pkt,
					 struct imds_counters *counters, __u64 mask)
{
	struct place *place = NULL;
	struct flow flow;
	int finding;
	__u8 one = 1;

	if (pkt->transport_state != TRANSPORT_KNOWN)
		return deliver(skb, counters, SNAP_LENGTH);
	if (pkt->protocol != PROTO_TCP)
		return 0;
	flow.local = pkt->src;
	flow.remote = pkt->dst;
	flow.local_port = pkt->sport;
	flow.remote_port = pkt->dport;
	if (!pkt->payload_len && !pkt->fragment)
		return 0;

	finding = imds_scan(skb, pkt->payload, pkt->payload_len, mask & IMDS_HEADERS);
	if (finding == CLEAN && mask & IMDS_ALWAYS)
		finding = SUSPICIOUS;
	/* Urgent data may or may not be part of what the service reads. */
	if (pkt->fragment || pkt->tcp_flags & TCP_FLAG_URG)
		finding = UNREADABLE;
	if (!pkt->fragment && !is_in_place(skb, pkt, &flow, &place))
		finding = UNREADABLE;
	if (finding == UNREADABLE) {
		bpf_map_update_elem(&watched, &flow, &one, BPF_ANY);
	} else if (finding == CLEAN && !pass_all && !bpf_map_lookup_elem(&watched, &flow) &&
		   !is_of_interest(&flow, pkt->payload_len)) {
		if (place && place->answer_of == OF_NOBODY)
			place->answer_of = OF_CLEAN;
		counters->concerning++;
		counters->clean++;
		return 0;
	}
	/* The answer begins where the sender says that it has read up to, unless it has asked for something
	 * else before.
	 */
	if (!place || place->answer_of != OF_CLEAN) {
		if (place)
			place->answer_of = OF_SENT_UP;
		bpf_map_update_elem(&waiting, &flow, &pkt->ack, BPF_ANY);
	}
	return deliver(skb, counters, SNAP_LENGTH);
}

/* "HTTP/1.1 404", with any digit behind the point. */
static __always_inline bool is_not_found(const __u8 *status)
{
	return status[8] == ' ' && status[9] == '4' && status[10] == '0' && status[11] == '4';
}

static __always_inline void count_miss(const union address *who)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct sender *sender = sender_at(who, now);

	if (!sender)
		return;
	__sync_fetch_and_add(&sender->misses, 1);
	if (sender->misses >= SCAN_MISSES)
		sender->until = now + scan_window;
}

/* The service has taken a new connection: the ports may be those of an old one, and it says where
 * the first request begins. Not believed of the requests' sender, whom a raw socket lets write any
 * packet: a SYN of its own the service ignores in the middle of a connection, and an answer that it
 * made up comes from the wrong side.
 */
static __always_inline void begin(struct __sk_buff *skb, const struct packet *pkt,
				  const struct flow *flow)
{
	struct place *known = bpf_map_lookup_elem(&places, flow);
	__u16 outgoing = skb->pkt_type == PACKET_OUTGOING;
	struct place place = {
		.start = pkt->ack,
		.next = pkt->ack,
		/* As the requests do. */
		.outgoing = !outgoing,
	};

	if (known && known->outgoing == outgoing && skb->ifindex != LOOPBACK)
		return;
	/* The client has sent the beginning of a request with its SYN (TCP Fast Open). */
	if (known && known->next == pkt->ack)
		return;
	bpf_map_update_elem(&places, flow, &place, BPF_ANY);
	bpf_map_delete_elem(&watched, flow);
}

/* How many bytes the head has that `len` bytes of payload begin with, its empty line included; 0 if it
 * is longer than HEAD_LIMIT. A global function, as imds_scan() is.
 */
__noinline int imds_head(struct __sk_buff *skb, __u32 payload, __u32 len)
{
	struct scratch *room;
	__u32 latest = 0;
	__u32 zero = 0;
	__u32 last;
	__u32 i;

	room = bpf_map_lookup_elem(&scratch, &zero);
	if (!room)
		return 0;
	if (len > HEAD_LIMIT)
		len = HEAD_LIMIT;
	/* Kept from the compiler, which would leave the loop to this bound alone. */
	barrier_var(len);
	/* As imds_scan() does. */
	last = len - 1;
	barrier_var(last);
	if (last >= HEAD_LIMIT || bpf_skb_load_bytes(skb, payload, room->byte, last + 1))
		return 0;
	for (i = 0; i < HEAD_LIMIT; i++) {
		if (i >= len)
			break;
		latest = latest << 8 | room->byte[i];
		/* "\r\n\r\n" */
		if (latest == 0x0d0a0d0a)
			return i + 1;
	}
	return 0;
}

/* Of a packet from an endpoint the first line's beginning, if it answers what went up: never a
 * byte of what comes behind the status.
 */
static __always_inline int judge_answer(struct __sk_buff *skb, const struct packet *pkt,
					struct imds_counters *counters)
{
	__u8 status[STATUS_LENGTH] = {};
	bool begins = false;
	struct flow flow;
	__u32 *expected;

	if (pkt->transport_state != TRANSPORT_KNOWN || pkt->protocol != PROTO_TCP)
		return 0;
	flow.local = pkt->dst;
	flow.remote = pkt->src;
	flow.local_port = pkt->dport;
	flow.remote_port = pkt->sport;
	if (!endpoint_lookup(&flow.remote, flow.remote_port, PROTO_TCP))
		return 0;
	if ((pkt->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == (TCP_FLAG_SYN | TCP_FLAG_ACK))
		begin(skb, pkt, &flow);
	if (pkt->payload_len >= STATUS_LENGTH && !pkt->fragment &&
	    !bpf_skb_load_bytes(skb, pkt->payload, status, sizeof(status)))
		begins = status[0] == 'H' && status[1] == 'T' && status[2] == 'T' &&
			 status[3] == 'P' && status[4] == '/';
	if (begins && is_not_found(status))
		count_miss(&flow.local);
	expected = bpf_map_lookup_elem(&waiting, &flow);
	if (!expected)
		return 0;
	if (pkt->payload_len && pkt->seq == *expected) {
		__u32 length = begins ? STATUS_LENGTH : 0;

		/* "100 Continue" and the like: another answer follows, in the next segment or in this one. */
		if (begins && status[8] == ' ' && status[9] == '1') {
			__u32 head = imds_head(skb, pkt->payload, pkt->payload_len);

			if (head == pkt->payload_len) {
				*expected = pkt->seq + pkt->payload_len;
				return deliver(skb, counters, pkt->payload + length);
			}
			/* Not even such a head's own headers go up. */
			length = head == CONTINUE_LENGTH ? head + STATUS_LENGTH : 0;
			if (length > pkt->payload_len)
				length = 0;
		}
		bpf_map_delete_elem(&waiting, &flow);
		return deliver(skb, counters, pkt->payload + length);
	}
	/* No answer will come. */
	if (pkt->tcp_flags & (TCP_FLAG_RST | TCP_FLAG_FIN)) {
		bpf_map_delete_elem(&waiting, &flow);
		return deliver(skb, counters, pkt->payload);
	}
	return 0;
}

/* How much of the packet goes up. A global function: verified once, whatever leads here. The program
 * has to stay small, too: with net.core.optmem_max as it was before kernel 6.8, a socket takes no
 * filter of more than some 2,500 instructions.
 */
__noinline int imds_judge(struct __sk_buff *skb, __u32 network)
{
	struct imds_counters *counters = count();
	struct endpoint_target *target;
	struct packet pkt;

	if (!counters || packet_parse(skb, network, &pkt))
		return 0;
	target = endpoint_of_packet(&pkt);
	if (target)
		return judge_request(skb, &pkt, counters, target->mask);
	return judge_answer(skb, &pkt, counters);
}

/* By loopback a packet leaves, and then arrives. */
static __always_inline bool comes_again(struct __sk_buff *skb)
{
	return skb->ifindex == LOOPBACK && skb->pkt_type == PACKET_OUTGOING;
}

/* Tags may still be in the packet: the inner one of two, or those that a program wrote itself. How many
 * there are the packet says, and each reading of it that may concern an endpoint counts.
 */
static __always_inline int judge_behind_tags(struct __sk_buff *skb)
{
	int length = 0;

	if (comes_again(skb))
		return 0;
	if (may_concern(skb, 0))
		length = imds_judge(skb, 0);
	if (!length && may_concern(skb, VLAN_HLEN))
		length = imds_judge(skb, VLAN_HLEN);
	if (!length && may_concern(skb, 2 * VLAN_HLEN))
		length = imds_judge(skb, 2 * VLAN_HLEN);
	return length;
}

SEC("socket")
int imds_watch(struct __sk_buff *skb)
{
	struct imds_counters *counters = count();
	bool concerns;

	if (!counters)
		return 0;
	counters->seen++;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		concerns = may_concern_v4(skb);
		break;
	case bpf_htons(ETH_P_IPV6):
		concerns = may_concern_v6(skb);
		break;
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return judge_behind_tags(skb);
	default:
		/* A packet socket's sender may give the protocol any number. */
		concerns = may_concern(skb, 0);
	}
	if (!concerns)
		return 0;
	if (comes_again(skb))
		return 0;
	return imds_judge(skb, 0);
}
