// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc-guard: at the TC egress of an interface, lets only sockets of chosen users send to guarded
 * endpoints.
 *
 * The packet that concerns nobody leaves after a few instructions and without a helper call. A
 * packet to a guarded endpoint is judged by the socket it came from; a packet without one has no
 * identity and is refused, unless it carries nothing out.
 *
 * Beyond those of the headers: bpf_get_socket_uid (4.12), bpf_sk_fullsock (5.1),
 * bpf_skb_cgroup_id (4.18), bpf_ktime_get_boot_ns and the ring buffer (5.8), and where there is one
 * bpf_get_netns_cookie (6.15 in TC).
 */
#include "lib/answer.bpf.h"
#include "lib/endpoints.bpf.h"
#include "lib/packet.bpf.h"
#include "tc_guard.h"

/* Users at most, and packet keys that are reported apart at most. */
#define MAX_USERS 16384
#define MAX_REPORTS 32768

/* Nothing is denied; what would be is reported. */
const volatile __u8 audit;
/* Denials are dropped in silence. */
const volatile __u8 silent;
/* What is allowed is reported too. */
const volatile __u8 report_allowed;
/* The cookie of the network namespace whose sockets have the machine's own users. */
const volatile __u64 home_netns;
/* Nanoseconds between two events of one key. */
const volatile __u64 event_interval_ns = 1000000000;

/* Which rules a user is a subject of.
 * Key: uid as the initial user namespace has it, 4 bytes. Value: a bit per rule, 8 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_USERS);
	__type(key, __u32);
	__type(value, __u64);
} users SEC(".maps");

/* How often each thing happened.
 * Key: enum guard_verdict or enum guard_counter, 4 bytes. Value: a count per CPU, 8 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GUARD_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* How many packets of each key there were, so that a flood costs an event a second and no count.
 * Key: struct guard_key, 16 bytes. Value: struct guard_report, 16 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_REPORTS);
	__type(key, struct guard_key);
	__type(value, struct guard_report);
} reports SEC(".maps");

/* struct guard_event, one after another. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

const struct guard_event *unused_event __attribute__((unused));
const struct guard_report *unused_report __attribute__((unused));
const enum guard_reason *unused_reason __attribute__((unused));
const enum guard_counter *unused_counter __attribute__((unused));
const enum guard_verdict *unused_verdict __attribute__((unused));

static __always_inline void count(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &counter);

	/* Atomic, as a PREEMPT_RT kernel may run another packet of this CPU in between. */
	if (value)
		__sync_fetch_and_add(value, 1);
}

struct caller {
	__u32 uid;
	/* enum guard_reason */
	__u8 reason;
};

/* The socket that sent the packet, as far as it says who it is: bpf_get_socket_uid() answers 65534
 * for a packet without one, which is also a user's id.
 */
static __always_inline struct caller caller_of(struct __sk_buff *skb, bool namespaces)
{
	struct caller caller = { .reason = GUARD_NO_SOCKET };
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return caller;
	caller.reason = GUARD_PARTIAL_SOCKET;
	if (!bpf_sk_fullsock(sk))
		return caller;
	/* A container's macvlan sends through the machine's interface with its socket, and "root" of
	 * a rootless one has uid 0 there.
	 */
	if (namespaces && bpf_get_netns_cookie(skb) != home_netns) {
		caller.reason = GUARD_FOREIGN_SOCKET;
		return caller;
	}
	caller.reason = GUARD_USER;
	caller.uid = bpf_get_socket_uid(skb);
	return caller;
}

/* A reset ends a connection and says nothing else; the kernel sends it from a socket of its own,
 * or from none. An acknowledgement or the end of a stream without payload comes without an owner
 * when the socket is gone or waits in TIME_WAIT.
 */
static __always_inline bool carries_nothing(const struct packet *pkt, const struct caller *caller)
{
	if (pkt->transport_state != TRANSPORT_KNOWN || pkt->protocol != PROTO_TCP ||
	    pkt->payload_len || pkt->tcp_flags & TCP_FLAG_SYN)
		return false;
	return pkt->tcp_flags & TCP_FLAG_RST || caller->reason == GUARD_NO_SOCKET ||
	       caller->reason == GUARD_PARTIAL_SOCKET;
}

static __always_inline void send_event(struct __sk_buff *skb, const struct packet *pkt,
				       const struct guard_key *key, struct guard_report *report,
				       __u64 now)
{
	struct guard_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		/* The next packet of the key tries again, with the whole count. */
		count(GUARD_EVENTS_LOST);
		return;
	}
	report->last_ns = now;
	event->time_ns = now;
	event->total = report->total;
	/* Zero where there is no socket. */
	event->cgroup = bpf_skb_cgroup_id(skb);
	event->key = *key;
	__builtin_memcpy(event->src, &pkt->src, sizeof(event->src));
	__builtin_memcpy(event->dst, &pkt->dst, sizeof(event->dst));
	event->ifindex = skb->ifindex;
	event->sport = pkt->sport;
	event->dport = pkt->dport;
	event->protocol = pkt->protocol;
	event->transport = pkt->transport_state;
	__builtin_memset(event->pad, 0, sizeof(event->pad));
	bpf_ringbuf_submit(event, 0);
}

static __always_inline void report(struct __sk_buff *skb, const struct packet *pkt,
				   const struct guard_key *key)
{
	struct guard_report *entry = bpf_map_lookup_elem(&reports, key);
	struct guard_report fresh = {};
	struct guard_key told = *key;
	__u64 now;

	if (!entry) {
		/* Another CPU may be faster: then its entry is the one to count in. */
		bpf_map_update_elem(&reports, key, &fresh, BPF_NOEXIST);
		entry = bpf_map_lookup_elem(&reports, key);
		if (!entry) {
			/* Full: user space has made an entry for all who come now. */
			told.uid = 0;
			told.reason = GUARD_OTHERS;
			entry = bpf_map_lookup_elem(&reports, &told);
		}
		if (!entry) {
			count(GUARD_UNREPORTED);
			return;
		}
	}
	__sync_fetch_and_add(&entry->total, 1);
	now = bpf_ktime_get_boot_ns();
	if (!entry->last_ns || now - entry->last_ns >= event_interval_ns)
		send_event(skb, pkt, &told, entry, now);
}

/* Turns the packet into the answer that its sender gets instead. */
static __always_inline int deny(struct __sk_buff *skb, const struct packet *pkt, bool ethernet)
{
	if (silent)
		return TC_ACT_SHOT;
	if (!answer_is_possible(pkt))
		goto unanswered;
	if (pkt->protocol == PROTO_TCP) {
		if (answer_reset(skb, pkt, ethernet))
			goto unanswered;
		count(GUARD_RESETS);
	} else {
		if (answer_prohibited(skb, pkt, ethernet))
			goto unanswered;
		count(GUARD_PROHIBITED);
	}
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
unanswered:
	count(GUARD_UNANSWERED);
	return TC_ACT_SHOT;
}

/* A packet whose destination may be guarded. */
static __always_inline int judge(struct __sk_buff *skb, __u32 network, bool ethernet,
				 bool namespaces)
{
	const struct endpoint_target *target;
	struct guard_key key = {};
	struct caller caller;
	struct packet pkt;
	__u64 *subject;

	if (packet_parse(skb, network, &pkt))
		return TC_ACT_UNSPEC;
	target = endpoint_of_packet(&pkt);
	if (!target)
		return TC_ACT_UNSPEC;

	caller = caller_of(skb, namespaces);
	if (carries_nothing(&pkt, &caller)) {
		count(GUARD_PASSED);
		return TC_ACT_UNSPEC;
	}
	key.uid = caller.uid;
	key.endpoint = target->endpoint;
	key.reason = caller.reason;
	key.verdict = audit ? GUARD_WOULD_DENY : GUARD_DENIED;
	if (caller.reason == GUARD_USER) {
		subject = bpf_map_lookup_elem(&users, &caller.uid);
		if (subject && *subject & target->mask)
			key.verdict = GUARD_ALLOWED;
	}
	count(key.verdict);
	if (key.verdict != GUARD_ALLOWED || report_allowed)
		report(skb, &pkt, &key);
	return key.verdict == GUARD_DENIED ? deny(skb, &pkt, ethernet) : TC_ACT_UNSPEC;
}

/* Whether the packet whose network header is at `at` may be for a guarded endpoint; one whose
 * header is not in reach of a direct look may.
 */
static __always_inline bool concerns(void *at, void *end)
{
	struct ipv6hdr *ip6 = at;
	struct iphdr *ip = at;

	if ((void *)(ip + 1) > end)
		return true;
	if (ip->version == 4)
		return endpoint_possible_v4(bpf_ntohl(ip->daddr));
	if (ip->version != 6)
		return false;
	if ((void *)(ip6 + 1) > end)
		return true;
	return endpoint_possible_v6(bpf_ntohs(ip6->daddr.in6_u.u6_addr16[0]),
				    bpf_ntohs(ip6->daddr.in6_u.u6_addr16[7]));
}

static __always_inline int guard_network(struct __sk_buff *skb, __u32 network, bool ethernet,
					 bool namespaces)
{
	void *end = (void *)(long)skb->data_end;
	void *data = (void *)(long)skb->data;

	if (!concerns(data + network, end))
		return TC_ACT_UNSPEC;
	return judge(skb, network, ethernet, namespaces);
}

/* The type of a frame, or of what is behind a tag, that may be a network header. */
static __always_inline bool is_network(__be16 type)
{
	return type == bpf_htons(ETH_P_IP) || type == bpf_htons(ETH_P_IPV6);
}

/* Interfaces whose packets begin with an Ethernet header. The type is read from the frame:
 * skb->protocol is what the sender of a raw frame says it is.
 */
static __always_inline int guard_frame(struct __sk_buff *skb, bool namespaces)
{
	void *end = (void *)(long)skb->data_end;
	void *data = (void *)(long)skb->data;
	struct ethhdr *eth = data;
	/* The types behind a tag and behind a second one (IEEE 802.1ad). */
	__be16 inner[2][2] = {};

	if ((void *)(eth + 1) > end)
		return TC_ACT_UNSPEC;
	if (is_network(eth->h_proto))
		return guard_network(skb, ETH_HLEN, true, namespaces);
	if (eth->h_proto != bpf_htons(ETH_P_8021Q) && eth->h_proto != bpf_htons(ETH_P_8021AD))
		return TC_ACT_UNSPEC;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, inner[0], 4))
		return TC_ACT_UNSPEC;
	if (is_network(inner[0][1]))
		return guard_network(skb, ETH_HLEN + 4, true, namespaces);
	if (bpf_skb_load_bytes(skb, ETH_HLEN + 4, inner[1], 4))
		return TC_ACT_UNSPEC;
	if (is_network(inner[1][1]))
		return guard_network(skb, ETH_HLEN + 8, true, namespaces);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int guard_ethernet(struct __sk_buff *skb)
{
	return guard_frame(skb, false);
}

/* Interfaces whose packets begin with the network header: tun, WireGuard, ppp, most tunnels. */
SEC("tc")
int guard_ip(struct __sk_buff *skb)
{
	return guard_network(skb, 0, false, false);
}

/* The same where the kernel has bpf_get_netns_cookie() for TC: programs of their own, as the verifier
 * would find the helper behind a switch as well when it follows what a CPU might guess.
 */
SEC("tc")
int guard_ethernet_netns(struct __sk_buff *skb)
{
	return guard_frame(skb, true);
}

SEC("tc")
int guard_ip_netns(struct __sk_buff *skb)
{
	return guard_network(skb, 0, false, true);
}
