/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a packet's network header to its addresses, ports and payload.
 *
 * Programs decide with a few instructions of their own whether a packet concerns anybody, and come
 * here only if it may. Works in TC and in socket filters: the only helper is bpf_skb_load_bytes()
 * (kernel 4.5), which also reads what is not in the linear part of the packet.
 */
#ifndef EBPFKIT_PACKET_BPF_H
#define EBPFKIT_PACKET_BPF_H

#include "common.bpf.h"

/* netinet/in.h, IANA protocol numbers */
#define PROTO_HOPOPTS 0
#define PROTO_ICMP 1
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_AH 51
#define PROTO_ICMPV6 58
#define PROTO_DSTOPTS 60
#define PROTO_MOBILITY 135
#define PROTO_HIP 139
#define PROTO_SHIM6 140

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV6_FRAGMENT_OFFSET 0xfff8
#define IPV6_MORE_FRAGMENTS 0x0001

#define TCP_FLAG_FIN 0x01
#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_RST 0x04
#define TCP_FLAG_ACK 0x10

/* An IPv6 packet has each extension header once, destination options twice (RFC 8200, 4.1): eight
 * is more than any honest packet carries.
 */
#define MAX_EXTENSION_HEADERS 8

/* An address as it is compared: IPv4 in its IPv4-mapped form. */
union address {
	__be32 word[4];
	__u8 byte[16];
};

enum transport {
	/* Ports and flags were read. */
	TRANSPORT_KNOWN,
	/* A later fragment: no ports in it. */
	TRANSPORT_FRAGMENT,
	/* Cut short, or more extension headers than are followed: nobody can tell. */
	TRANSPORT_OPAQUE,
};

struct packet {
	union address src;
	union address dst;
	/* Bytes from the start of skb->data. */
	__u32 network;
	__u32 transport;
	__u32 payload;
	/* Bytes of payload; of the TCP or UDP header's own view where it is known, else of the
	 * network header's.
	 */
	__u32 payload_len;
	/* Of TCP, host byte order. */
	__u32 seq;
	__u32 ack;
	/* Host byte order; zero for protocols without. */
	__u16 sport;
	__u16 dport;
	/* IANA protocol number after all extension headers. */
	__u8 protocol;
	/* 4 or 6 */
	__u8 version;
	/* TCP_FLAG_*; zero for other protocols. */
	__u8 tcp_flags;
	/* enum transport */
	__u8 transport_state;
	/* Whether this is a fragment, the first one included. */
	__u8 fragment;
};

static __always_inline void address_map_v4(union address *to, __be32 v4)
{
	to->word[0] = 0;
	to->word[1] = 0;
	to->word[2] = bpf_htonl(0xffff);
	to->word[3] = v4;
}

/* Whether an IPv6 "next header" of this number is one that another follows. */
static __always_inline bool is_extension_header(__u8 number)
{
	switch (number) {
	case PROTO_HOPOPTS:
	case PROTO_ROUTING:
	case PROTO_DSTOPTS:
	case PROTO_FRAGMENT:
	case PROTO_AH:
	case PROTO_MOBILITY:
	case PROTO_HIP:
	case PROTO_SHIM6:
		return true;
	default:
		return false;
	}
}

/* Of a packet that was not read to its transport header, whether `protocol` is the protocol of that
 * and not of one more header in between.
 */
static __always_inline bool packet_protocol_is_known(const struct packet *pkt)
{
	return pkt->version == 4 || !is_extension_header(pkt->protocol);
}

/* Bytes between `offset` and the end of the packet, which is at most at `end`. The length in the network header wins where it
 * is shorter (a short Ethernet frame is padded) and not zero (BIG TCP).
 */
static __always_inline __u32 packet_left(__u32 end, __u32 network, __u32 total, __u32 offset)
{
	if (total && network + total < end)
		end = network + total;
	return end > offset ? end - offset : 0;
}

/* Reads the transport header at pkt->transport, where payload_len bytes are left. */
static __always_inline void packet_transport(struct __sk_buff *skb, struct packet *pkt)
{
	struct tcphdr tcp;
	struct udphdr udp;
	__u32 header = 0;

	if (pkt->protocol == PROTO_TCP) {
		if (bpf_skb_load_bytes(skb, pkt->transport, &tcp, sizeof(tcp)))
			return;
		header = tcp.doff * 4;
		if (header < sizeof(tcp) || header > pkt->payload_len)
			return;
		/* Byte 13 of the header; bit fields have no address. */
		pkt->tcp_flags = ((__u8 *)&tcp)[13];
		pkt->seq = bpf_ntohl(tcp.seq);
		pkt->ack = bpf_ntohl(tcp.ack_seq);
		pkt->sport = bpf_ntohs(tcp.source);
		pkt->dport = bpf_ntohs(tcp.dest);
	} else if (pkt->protocol == PROTO_UDP) {
		if (bpf_skb_load_bytes(skb, pkt->transport, &udp, sizeof(udp)))
			return;
		header = sizeof(udp);
		if (header > pkt->payload_len)
			return;
		pkt->sport = bpf_ntohs(udp.source);
		pkt->dport = bpf_ntohs(udp.dest);
	}
	pkt->payload += header;
	pkt->payload_len -= header;
	pkt->transport_state = TRANSPORT_KNOWN;
}

/* The network header's part of a packet. */
struct network_layer {
	/* Where the transport header begins, from the start of skb->data. */
	__u32 transport;
	/* Bytes of network header and what follows, as the header says; 0 if it does not. */
	__u32 total;
	__u8 protocol;
	/* Whether this is a fragment, and whether a later one. */
	__u8 fragment;
	__u8 later;
	/* Whether the transport header was not reached. */
	__u8 opaque;
};

static __always_inline int packet_network_v4(struct __sk_buff *skb, struct packet *pkt,
					     struct network_layer *layer)
{
	struct iphdr ip;
	__u16 fragment;
	__u32 header;

	if (bpf_skb_load_bytes(skb, pkt->network, &ip, sizeof(ip)))
		return -1;
	header = ip.ihl * 4;
	if (header < sizeof(ip))
		return -1;
	address_map_v4(&pkt->src, ip.saddr);
	address_map_v4(&pkt->dst, ip.daddr);
	layer->protocol = ip.protocol;
	layer->transport = pkt->network + header;
	layer->total = bpf_ntohs(ip.tot_len);
	fragment = bpf_ntohs(ip.frag_off);
	layer->fragment = !!(fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS));
	layer->later = !!(fragment & IPV4_FRAGMENT_OFFSET);
	return 0;
}

static __always_inline int packet_network_v6(struct __sk_buff *skb, __u32 len, struct packet *pkt,
					     struct network_layer *layer)
{
	struct ipv6hdr ip;
	__u32 at;
	__u8 next;
	int i;

	if (bpf_skb_load_bytes(skb, pkt->network, &ip, sizeof(ip)))
		return -1;
	__builtin_memcpy(&pkt->src, &ip.saddr, sizeof(pkt->src));
	__builtin_memcpy(&pkt->dst, &ip.daddr, sizeof(pkt->dst));
	layer->total = bpf_ntohs(ip.payload_len);
	if (layer->total)
		layer->total += sizeof(ip);
	next = ip.nexthdr;
	at = pkt->network + sizeof(ip);

	/* Unrolled: kernels before 6.2 or so take the loop that clang makes of it for one without an end
	 * ("back-edge").
	 */
#pragma clang loop unroll(full)
	for (i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		/* Next header and length; of a fragment header also offset and flag. */
		__u8 ext[4];
		__u16 fragment;

		if (!is_extension_header(next))
			break;
		if (bpf_skb_load_bytes(skb, at, ext, sizeof(ext))) {
			layer->opaque = 1;
			break;
		}
		if (next == PROTO_FRAGMENT) {
			fragment = (__u16)ext[2] << 8 | ext[3];
			if (fragment & (IPV6_FRAGMENT_OFFSET | IPV6_MORE_FRAGMENTS))
				layer->fragment = 1;
			at += 8;
			if (fragment & IPV6_FRAGMENT_OFFSET) {
				next = ext[0];
				layer->later = 1;
				break;
			}
		} else if (next == PROTO_AH) {
			/* RFC 4302, 2.2: in 4-byte units, less two. */
			at += ((__u32)ext[1] + 2) * 4;
		} else {
			/* RFC 8200, 4.3: in 8-byte units, not counting the first. */
			at += ((__u32)ext[1] + 1) * 8;
		}
		next = ext[0];
		forget_bounds(at, len);
		forget_bounds(next, len);
	}
	if (!layer->later && is_extension_header(next))
		layer->opaque = 1;
	layer->protocol = next;
	layer->transport = at;
	return 0;
}

/* Reads the packet whose network header is `network` bytes into skb->data. Every field of `pkt` is
 * set. Returns 0 if it is IPv4 or IPv6, so that version, src and dst are known; then
 * transport_state says how much else is. Returns a negative number for anything else.
 */
static __always_inline int packet_parse(struct __sk_buff *skb, __u32 network, struct packet *pkt)
{
	struct network_layer layer = {};
	__u32 len = skb->len;
	__u8 first;

	/* Read once: the compiler would else compute with the context's address, which the verifier
	 * allows to CAP_PERFMON only.
	 */
	barrier_var(len);
	__builtin_memset(pkt, 0, sizeof(*pkt));
	pkt->network = network;
	if (bpf_skb_load_bytes(skb, network, &first, sizeof(first)))
		return -1;
	pkt->version = first >> 4;
	if (pkt->version == 4) {
		if (packet_network_v4(skb, pkt, &layer))
			return -1;
	} else if (pkt->version == 6) {
		if (packet_network_v6(skb, len, pkt, &layer))
			return -1;
	} else {
		return -1;
	}
	forget_bounds(layer.transport, len);
	forget_bounds(layer.total, len);
	forget_bounds(layer.protocol, len);
	forget_bounds(layer.fragment, len);
	forget_bounds(layer.later, len);
	forget_bounds(layer.opaque, len);
	forget_bounds(pkt->version, len);

	pkt->protocol = layer.protocol;
	pkt->fragment = layer.fragment;
	pkt->transport = layer.transport;
	pkt->payload = layer.transport;
	pkt->payload_len = packet_left(len, network, layer.total, layer.transport);
	pkt->transport_state = TRANSPORT_OPAQUE;
	if (layer.later)
		pkt->transport_state = TRANSPORT_FRAGMENT;
	else if (!layer.opaque)
		packet_transport(skb, pkt);
	forget_bounds(pkt->payload_len, len);
	forget_bounds(pkt->transport_state, len);
	forget_bounds(pkt->protocol, len);
	return 0;
}

#endif
