/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Answers to a packet that must not leave: a TCP reset, or an ICMP message that says "prohibited".
 *
 * The packet itself becomes the answer: cut to its headers, turned round and sent to the ingress
 * of the interface that it was about to leave by, so that the sender's socket hears at once what a
 * silent drop would tell it after minutes. The answer comes from the address that was asked: one
 * from the machine's own would be dropped as a martian.
 *
 * Helpers: bpf_skb_change_tail (4.9), bpf_skb_adjust_room (4.13), bpf_csum_diff (4.6),
 * bpf_skb_store_bytes (4.1), bpf_redirect (4.3).
 */
#ifndef EBPFKIT_ANSWER_BPF_H
#define EBPFKIT_ANSWER_BPF_H

#include "packet.bpf.h"

/* linux/pkt_cls.h; TCX_DROP and TCX_REDIRECT of linux/bpf.h are the same numbers. */
#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2

/* RFC 792 and RFC 1812, 5.2.7.1; RFC 4443, 3.1 */
#define ICMP_UNREACHABLE 3
#define ICMP_PROHIBITED 13
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_PROHIBITED 1

#define ANSWER_TTL 64
/* Of the packet behind its network header, an ICMP message quotes this much (RFC 792). */
#define QUOTED 8

/* Headers without bit fields: setting a bit field reads the byte around it, and without CAP_PERFMON
 * the verifier refuses to read what was not written.
 */
struct ipv4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 total;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 src;
	__be32 dst;
};

struct ipv6_header {
	__be32 version_class_flow;
	__be16 length;
	__u8 next;
	__u8 hop_limit;
	__be32 src[4];
	__be32 dst[4];
};

struct tcp_header {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	/* Length in 4-byte units, times 16. */
	__u8 offset;
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urgent;
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be32 unused;
};

/* The pseudo-header of RFC 8200, 8.1. Sums of IPv4's (RFC 9293, 3.1) are the same but for the
 * addresses, as zeros do not count.
 */
struct pseudo_header {
	__be32 length;
	__be32 protocol;
};

static __always_inline __sum16 csum_fold(__s64 sum)
{
	__u32 folded = sum;

	folded = (folded & 0xffff) + (folded >> 16);
	folded = (folded & 0xffff) + (folded >> 16);
	return ~folded;
}

/* The checksum's part of addresses, length and protocol, to be continued. */
static __always_inline __s64 csum_pseudo(const struct packet *pkt, __u32 length, __u8 protocol)
{
	struct pseudo_header pseudo = {
		.length = bpf_htonl(length),
		.protocol = bpf_htonl(protocol),
	};
	__be32 addresses[8];
	__s64 sum;

	/* Of IPv4 addresses in their mapped form, what is in front does not count either: two times
	 * 0xffff is zero in this sum. So there is no branch, of which clang 14 makes an access that the
	 * verifier refuses without CAP_PERFMON.
	 */
	__builtin_memcpy(addresses, &pkt->src, 16);
	__builtin_memcpy(addresses + 4, &pkt->dst, 16);
	sum = bpf_csum_diff(NULL, 0, addresses, sizeof(addresses), 0);
	return bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), sum);
}

/* Exchanges the Ethernet addresses, which stand at the very start whatever tags follow. */
static __always_inline long answer_turn_ethernet(struct __sk_buff *skb)
{
	__u8 from[12], to[12];

	if (bpf_skb_load_bytes(skb, 0, from, sizeof(from)))
		return -1;
	__builtin_memcpy(to, from + 6, 6);
	__builtin_memcpy(to + 6, from, 6);
	return bpf_skb_store_bytes(skb, 0, to, sizeof(to), 0);
}

/* A network header from the packet's destination to its source, over `length` bytes of `protocol`
 * at pkt->network.
 */
static __always_inline long answer_network(struct __sk_buff *skb, const struct packet *pkt,
					   __u32 length, __u8 protocol)
{
	if (pkt->version == 4) {
		struct ipv4_header ip = {
			.version_ihl = 0x45,
			.total = bpf_htons(sizeof(ip) + length),
			.fragment = bpf_htons(0x4000), /* don't fragment */
			.ttl = ANSWER_TTL,
			.protocol = protocol,
			.src = pkt->dst.word[3],
			.dst = pkt->src.word[3],
		};

		ip.check = csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
		return bpf_skb_store_bytes(skb, pkt->network, &ip, sizeof(ip), 0);
	} else {
		struct ipv6_header ip = {
			.version_class_flow = bpf_htonl(0x60000000),
			.length = bpf_htons(length),
			.next = protocol,
			.hop_limit = ANSWER_TTL,
		};

		__builtin_memcpy(ip.src, &pkt->dst, sizeof(ip.src));
		__builtin_memcpy(ip.dst, &pkt->src, sizeof(ip.dst));
		return bpf_skb_store_bytes(skb, pkt->network, &ip, sizeof(ip), 0);
	}
}

static __always_inline __u32 network_header_len(const struct packet *pkt)
{
	return pkt->version == 4 ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header);
}

/* Whether the transport header stands right behind a network header without options: else the
 * answer's headers would not fit over the packet's. Such packets are dropped without an answer.
 */
static __always_inline bool answer_is_possible(const struct packet *pkt)
{
	return pkt->transport_state == TRANSPORT_KNOWN && !pkt->fragment &&
	       pkt->transport == pkt->network + network_header_len(pkt);
}

/* Makes a TCP segment the reset that RFC 9293, 3.10.7.1 answers it with. */
static __always_inline long answer_reset(struct __sk_buff *skb, const struct packet *pkt,
					 bool ethernet)
{
	/* The acknowledgement counts in both cases: a socket that waits for its SYN's answer takes a
	 * reset by it, any other by its sequence number.
	 */
	struct tcp_header tcp = {
		.sport = bpf_htons(pkt->dport),
		.dport = bpf_htons(pkt->sport),
		.offset = sizeof(tcp) / 4 << 4,
		.flags = TCP_FLAG_RST | TCP_FLAG_ACK,
	};
	__s64 sum;

	if (pkt->tcp_flags & TCP_FLAG_ACK)
		tcp.seq = bpf_htonl(pkt->ack);
	tcp.ack = bpf_htonl(pkt->seq + pkt->payload_len + !!(pkt->tcp_flags & TCP_FLAG_SYN) +
			    !!(pkt->tcp_flags & TCP_FLAG_FIN));
	sum = csum_pseudo(pkt, sizeof(tcp), PROTO_TCP);
	tcp.check = csum_fold(bpf_csum_diff(NULL, 0, (__be32 *)&tcp, sizeof(tcp), sum));

	if (bpf_skb_change_tail(skb, pkt->transport + sizeof(tcp), 0) ||
	    bpf_skb_store_bytes(skb, pkt->transport, &tcp, sizeof(tcp), 0) ||
	    answer_network(skb, pkt, sizeof(tcp), PROTO_TCP))
		return -1;
	if (ethernet && answer_turn_ethernet(skb))
		return -1;
	return 0;
}

/* Makes a packet the ICMP or ICMPv6 message that it is prohibited. */
static __always_inline long answer_prohibited(struct __sk_buff *skb, const struct packet *pkt,
					      bool ethernet)
{
	struct {
		struct icmp_header icmp;
		__u8 quoted[sizeof(struct ipv6_header) + QUOTED];
	} message = {};
	__u32 quoted = network_header_len(pkt) + QUOTED;
	__s64 sum;

	/* An ICMP message about an ICMP message could go on for ever. */
	if (pkt->protocol == PROTO_ICMP || pkt->protocol == PROTO_ICMPV6)
		return -1;
	if (pkt->version == 4) {
		message.icmp.type = ICMP_UNREACHABLE;
		message.icmp.code = ICMP_PROHIBITED;
		if (bpf_skb_load_bytes(skb, pkt->network, message.quoted,
				       sizeof(struct ipv4_header) + QUOTED))
			return -1;
		sum = bpf_csum_diff(
			NULL, 0, (__be32 *)&message,
			sizeof(struct icmp_header) + sizeof(struct ipv4_header) + QUOTED, 0);
	} else {
		message.icmp.type = ICMPV6_UNREACHABLE;
		message.icmp.code = ICMPV6_PROHIBITED;
		if (bpf_skb_load_bytes(skb, pkt->network, message.quoted, sizeof(message.quoted)))
			return -1;
		sum = csum_pseudo(pkt, sizeof(message), PROTO_ICMPV6);
		sum = bpf_csum_diff(NULL, 0, (__be32 *)&message, sizeof(message), sum);
	}
	message.icmp.check = csum_fold(sum);

	/* Room for the new network header and the message's own, in front of the old ones. */
	if (bpf_skb_change_tail(skb, pkt->network + quoted, 0) ||
	    bpf_skb_adjust_room(skb, network_header_len(pkt) + sizeof(message.icmp),
				BPF_ADJ_ROOM_MAC, 0))
		return -1;
	if (bpf_skb_store_bytes(skb, pkt->network + network_header_len(pkt), &message.icmp,
				sizeof(message.icmp), 0) ||
	    answer_network(skb, pkt, sizeof(message.icmp) + quoted,
			   pkt->version == 4 ? PROTO_ICMP : PROTO_ICMPV6))
		return -1;
	if (ethernet && answer_turn_ethernet(skb))
		return -1;
	return 0;
}

#endif
