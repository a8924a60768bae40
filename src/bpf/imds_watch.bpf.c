// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* imds-watch: lets up to user space what is not provably a clean request to a metadata service, and
 * remembers who opened each connection to one.
 *
 * The socket filter sees every packet of its interfaces, and wakes nobody for those that concern no
 * endpoint, carry no payload, or hold complete requests that are clean. It proves that within one
 * packet and errs on the side of sending up. One memory spans packets: a flow that once sent
 * something other than complete requests is watched from then on, as what follows may be the rest
 * of it.
 */
#include "lib/endpoints.bpf.h"
#include "lib/identity.bpf.h"
#include "imds_watch.h"

/* linux/if_packet.h */
#define PACKET_OUTGOING 4
/* Has this index in every network namespace. */
#define LOOPBACK 1

#define SOCK_STREAM 1

#define TCP_FLAG_URG 0x20

/* Whether every request goes up, the clean ones too. */
const volatile __u8 pass_all;

/* src/tools/imds_watch/scanner.rs: for each byte its class; at state + class the next state in the
 * low 16 bits and the flags it raises in the high ones.
 */
const volatile __u8 scan_classes[256];
const volatile __u32 scan_table[SCAN_ENTRIES];
const volatile __u16 scan_start;

/* 0 -> how many packets; the sum over all CPUs counts */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct imds_counters);
} counters SEC(".maps");

struct scratch {
	__u8 byte[SCAN_LIMIT];
};

/* 0 -> room for a payload. A socket filter runs with bottom halves disabled: one CPU, one user. */
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

/* socket cookie -> who called connect() */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct identity);
} connecting SEC(".maps");

/* flow -> who opened it */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow);
	__type(value, struct identity);
} opened SEC(".maps");

/* BPF_LD | BPF_ABS: a helper of their own, cheaper than bpf_skb_load_bytes(). One that reaches
 * beyond the packet's end ends the program with 0, which is right for what is too short to be IP.
 */
unsigned long long load_byte(void *skb, unsigned long long at) asm("llvm.bpf.load.byte");
unsigned long long load_half(void *skb, unsigned long long at) asm("llvm.bpf.load.half");
unsigned long long load_word(void *skb, unsigned long long at) asm("llvm.bpf.load.word");

static __always_inline bool may_concern_v4(struct __sk_buff *skb, __u32 at)
{
	return endpoint_possible_v4(load_word(skb, at + offsetof(struct iphdr, daddr)));
}

static __always_inline bool may_concern_v6(struct __sk_buff *skb, __u32 at)
{
	return endpoint_possible_v6(load_half(skb, at + offsetof(struct ipv6hdr, daddr)),
				    load_half(skb, at + sizeof(struct ipv6hdr) - 2));
}

/* Whether there is an IP header here that may lead to an endpoint. */
static __always_inline bool may_concern(struct __sk_buff *skb, __u32 at)
{
	__u8 version = load_byte(skb, at) >> 4;

	if (version == 4)
		return may_concern_v4(skb, at);
	return version == 6 && may_concern_v6(skb, at);
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
		entry = (entry & 0xffff) + scan_classes[room->byte[i]];
		entry = scan_table[entry & (SCAN_ENTRIES - 1)];
		flags |= entry >> 16;
		/* All ones where a head ends, else zero. */
		ended = (__s32)entry >> 31;
		barrier_var(ended);
		/* 1 where no required flag was raised that counts, else 0. */
		missing = ((flags & ~(flags >> SCAN_HEADERS) & required) - 1) >> 31;
		barrier_var(missing);
		bad |= ended & (flags & SCAN_BAD);
		bad |= ended & missing & needed;
		flags &= ~ended;
	}
	if (!(entry >> 31) || bad & SCAN_BODY)
		return UNREADABLE;
	return bad ? SUSPICIOUS : CLEAN;
}

static __always_inline int deliver(struct __sk_buff *skb, struct imds_counters *counters)
{
	counters->delivered++;
	return skb->len < SNAP_LENGTH ? skb->len : SNAP_LENGTH;
}

/* How much of the packet goes up: 0 or all of it. */
static __always_inline int judge(struct __sk_buff *skb, __u32 network,
				 struct imds_counters *counters)
{
	struct endpoint_target *target;
	int finding;
	struct packet pkt;
	struct flow flow;
	__u8 one = 1;
	__u64 mask;

	/* Comes again, as a packet that arrives. */
	if (skb->ifindex == LOOPBACK && skb->pkt_type == PACKET_OUTGOING)
		return 0;
	if (packet_parse(skb, network, &pkt))
		return 0;
	target = endpoint_of_packet(&pkt);
	if (!target)
		return 0;
	mask = target->mask;
	if (pkt.transport_state != TRANSPORT_KNOWN) {
		counters->concerning++;
		return deliver(skb, counters);
	}
	if (pkt.protocol != PROTO_TCP)
		return 0;
	flow.local = pkt.src;
	flow.remote = pkt.dst;
	flow.local_port = pkt.sport;
	flow.remote_port = pkt.dport;
	if (pkt.tcp_flags & TCP_FLAG_SYN)
		bpf_map_delete_elem(&watched, &flow);
	if (!pkt.payload_len && !pkt.fragment)
		return 0;

	counters->concerning++;
	finding = imds_scan(skb, pkt.payload, pkt.payload_len, mask & IMDS_HEADERS);
	if (finding == CLEAN && mask & IMDS_ALWAYS)
		finding = SUSPICIOUS;
	/* Urgent data may or may not be part of what the service reads. */
	if (pkt.fragment || pkt.tcp_flags & TCP_FLAG_URG)
		finding = UNREADABLE;
	if (finding == UNREADABLE)
		bpf_map_update_elem(&watched, &flow, &one, BPF_ANY);
	else if (finding == CLEAN && !pass_all && !bpf_map_lookup_elem(&watched, &flow)) {
		counters->clean++;
		return 0;
	}
	return deliver(skb, counters);
}

SEC("socket")
int imds_watch(struct __sk_buff *skb)
{
	struct imds_counters *counters = count();
	__u32 network = 0;

	if (!counters)
		return 0;
	counters->seen++;
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		if (!may_concern_v4(skb, 0))
			return 0;
		break;
	case bpf_htons(ETH_P_IPV6):
		if (!may_concern_v6(skb, 0))
			return 0;
		break;
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		/* A tag may still be in the packet: the inner one of two, or one that a program
		 * wrote itself.
		 */
		if (may_concern(skb, 0))
			break;
		network = VLAN_HLEN;
		if (may_concern(skb, network))
			break;
		network = 2 * VLAN_HLEN;
		if (!may_concern(skb, network))
			return 0;
		break;
	default:
		/* A packet socket's sender may give the protocol any number. */
		if (!may_concern(skb, 0))
			return 0;
	}
	return judge(skb, network, counters);
}

/* Leaves who is calling, if it is a TCP connection to an endpoint. */
static __always_inline void record(struct bpf_sock_addr *ctx, const union address *remote)
{
	struct identity identity;
	__u64 cookie;

	if (ctx->type != SOCK_STREAM)
		return;
	if (!endpoint_lookup(remote, bpf_ntohs((__u16)ctx->user_port), PROTO_TCP))
		return;
	identity_of_current(&identity);
	cookie = bpf_get_socket_cookie(ctx);
	bpf_map_update_elem(&connecting, &cookie, &identity, BPF_ANY);
}

/* Nothing is refused here: always 1. */
SEC("cgroup/connect4")
int imds_connect4(struct bpf_sock_addr *ctx)
{
	union address remote;

	if (!endpoint_possible_v4(bpf_ntohl(ctx->user_ip4)))
		return 1;
	address_map_v4(&remote, ctx->user_ip4);
	record(ctx, &remote);
	return 1;
}

SEC("cgroup/connect6")
int imds_connect6(struct bpf_sock_addr *ctx)
{
	union address remote;

	remote.word[0] = ctx->user_ip6[0];
	remote.word[1] = ctx->user_ip6[1];
	remote.word[2] = ctx->user_ip6[2];
	remote.word[3] = ctx->user_ip6[3];
	/* An IPv4-mapped destination comes here, and leaves as IPv4. */
	if (!remote.word[0] && !remote.word[1] && remote.word[2] == bpf_htonl(0xffff)) {
		if (!endpoint_possible_v4(bpf_ntohl(remote.word[3])))
			return 1;
	} else if (!endpoint_possible_v6(bpf_ntohl(remote.word[0]) >> 16,
					 bpf_ntohl(remote.word[3]) & 0xffff)) {
		return 1;
	}
	record(ctx, &remote);
	return 1;
}

/* Runs in connect() as well, when the local port is known. */
SEC("sockops")
int imds_sockops(struct bpf_sock_ops *ops)
{
	struct identity *identity;
	struct flow flow;
	__u64 cookie;

	if (ops->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
		return 1;
	cookie = bpf_get_socket_cookie(ops);
	identity = bpf_map_lookup_elem(&connecting, &cookie);
	if (!identity)
		return 1;
	if (flow_of_sockops(ops, &flow))
		bpf_map_update_elem(&opened, &flow, identity, BPF_ANY);
	bpf_map_delete_elem(&connecting, &cookie);
	return 1;
}
