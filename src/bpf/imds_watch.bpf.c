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
#include "imds_watch_callers.bpf.h"
#include "imds_watch_concern.bpf.h"
#include "imds_watch_pages.bpf.h"
#include "imds_watch_scan.bpf.h"
#include "imds_watch_senders.bpf.h"

/* Has this index in every network namespace. */
#define LOOPBACK 1

#define TCP_FLAG_URG 0x20

/* Whether every request goes up, the clean ones too. */
const volatile __u8 pass_all;
/* Whether requests go up whose user is not in known_users, or is not known. */
const volatile __u8 judge_users;
/* The cookie of the network namespace that is watched: users of others are not the machine's. Zero if it is not known. */
const volatile __u64 home_netns;

/* 0 -> how many packets; the sum over all CPUs counts */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct imds_counters);
} counters SEC(".maps");

/* Packets that came by, by processor, where a place is found without a lookup. A cache line each. */
struct imds_seen {
	__u64 packets;
	__u64 pad[7];
};

struct imds_seen seen[SEEN_CPUS] SEC(".bss.seen");

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

/* uid -> 1, of those that may ask */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u8);
} known_users SEC(".maps");

static __always_inline struct imds_counters *count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&counters, &zero);
}

/* The first `length` bytes of the packet go up. */
static __noinline int deliver(struct __sk_buff *skb, struct imds_counters *counters, __u32 length)
{
	counters->concerning++;
	counters->delivered++;
	return skb->len < length ? skb->len : length;
}

/* Whether a clean request is to be seen all the same: for its sender. */
static __always_inline bool is_of_interest(const struct flow *flow, __u32 len)
{
	if (judge_users) {
		struct caller *caller = bpf_map_lookup_elem(&opened, flow);

		if (!caller || (home_netns && caller->netns != home_netns) ||
		    !bpf_map_lookup_elem(&known_users, &caller->who.uid))
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
	__u32 length = SNAP_LENGTH;
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
	/* What is read of it here, and what user space will, says nothing: the missing byte tells that. */
	if (may_change(skb)) {
		finding = UNREADABLE;
		length = pkt->payload + pkt->payload_len - 1;
	}
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
	return deliver(skb, counters, length);
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

/* "HTTP/1.1 404", with any digit behind the point. */
static __always_inline bool is_not_found(const __u8 *status)
{
	return status[8] == ' ' && status[9] == '4' && status[10] == '0' && status[11] == '4';
}

/* Of a packet from an endpoint the first line's beginning, if it answers what went up, or says "not
 * found" to somebody whose clean requests go up: never a byte of what comes behind the status.
 */
static __always_inline int judge_answer(struct __sk_buff *skb, const struct packet *pkt,
					struct imds_counters *counters)
{
	__u8 status[STATUS_LENGTH] = {};
	bool begins = false;
	bool missed = false;
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
		missed = count_miss(&flow.local);
	expected = bpf_map_lookup_elem(&waiting, &flow);
	/* Of a request behind another one: where its answer begins nobody knows, but here one does. */
	if (missed && (!expected || pkt->seq != *expected))
		return deliver(skb, counters, pkt->payload + STATUS_LENGTH);
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

/* Tags that are looked behind. Linux takes off any number of those that name no VLAN. */
#define MAX_TAGS 8

/* What is not looked into: one byte of it goes up, that nobody reads it there. */
static __always_inline int deliver_unread(struct __sk_buff *skb)
{
	struct imds_counters *counters = count();

	return counters ? deliver(skb, counters, 1) : 0;
}

/* Tags may still be in the packet: all but the outermost one, or those that a program wrote itself. How many
 * there are, each one's type says, and each reading that may concern an endpoint counts.
 * src/tools/imds_watch/packet.rs does the same.
 */
static __noinline int judge_frame(struct __sk_buff *skb)
{
	bool is_last = false;
	__u32 at = 0;
	int tags;

	if (is_misplaced(skb))
		return deliver_unread(skb);
	for (tags = 0; tags <= MAX_TAGS; tags++) {
		__be16 type;

		if (imds_may_concern(skb, at)) {
			int length = imds_judge(skb, at);

			if (length)
				return length;
		}
		/* Half of a tag is its number, the other half the type of what is behind it. */
		if (is_last || bpf_skb_load_bytes(skb, at + VLAN_HLEN / 2, &type, sizeof(type)))
			return 0;
		is_last = type == bpf_htons(ETH_P_IP) || type == bpf_htons(ETH_P_IPV6);
		if (!is_last && !is_tag(type))
			return 0;
		at += VLAN_HLEN;
	}
	return deliver_unread(skb);
}

/* Counts a packet on a processor that has no place in `seen`. */
static __noinline void count_elsewhere(void)
{
	struct imds_counters *counters = count();

	if (counters)
		counters->seen++;
}

SEC("socket")
int imds_watch(struct __sk_buff *skb)
{
	__u32 cpu = bpf_get_smp_processor_id();
	bool concerns;

	if (cpu < SEEN_CPUS)
		seen[cpu].packets++;
	else
		count_elsewhere();
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		concerns = may_concern_v4(skb);
		break;
	case bpf_htons(ETH_P_IPV6):
		concerns = may_concern_v6(skb);
		break;
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		concerns = true;
		break;
	default:
		/* A packet socket's sender may give the protocol any number. */
		concerns = imds_may_concern(skb, 0) || leaves_tagged(skb);
	}
	if (!concerns)
		return 0;
	if (comes_again(skb))
		return 0;
	return judge_frame(skb);
}
