/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether a packet may be to or from an endpoint: all that is asked of most packets.
 *
 * Helpers: bpf_skb_load_bytes (4.5), bpf_skb_load_bytes_relative (4.18); bpf_cast_to_kern_ctx and bpf_rdonly_cast where they are (6.2).
 */
#ifndef EBPFKIT_IMDS_WATCH_CONCERN_BPF_H
#define EBPFKIT_IMDS_WATCH_CONCERN_BPF_H

#include "lib/endpoints.bpf.h"

/* Inlined by the verifier where the kernel has them (6.2): a direct look at the packet, at a quarter
 * of what a helper costs.
 */
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;
extern void *bpf_rdonly_cast(const void *address, __u32 type) __ksym __weak;

/* At skb->data, if so many bytes are in the linear part and can be looked at; else NULL. */
#define direct_data(skb, size)                                            \
	({                                                                \
		void *_data = NULL;                                       \
                                                                          \
		/* Both came with the same kernel. */                     \
		if (bpf_ksym_exists(bpf_cast_to_kern_ctx)) {              \
			struct sk_buff *_skb = bpf_cast_to_kern_ctx(skb); \
                                                                          \
			if (_skb->len - _skb->data_len >= (size))         \
				_data = _skb->data;                       \
		}                                                         \
		_data;                                                    \
	})

/* The 64 bits there. Each look at what a cast gives is checked as it is made, which costs more than the look: few and
 * wide ones are made. Of the kernel's types this is one that is two numbers of 64 bits.
 */
#define direct_word(data, at)                                                               \
	(((struct timespec64 *)bpf_rdonly_cast((data) + (at),                               \
					       bpf_core_type_id_kernel(struct timespec64))) \
		 ->tv_sec)

/* Where an IPv4 header has its addresses (RFC 791, 3.1), and an IPv6 header the last 16 bits of its source, which are followed
 * by its destination (RFC 8200, 3). Numbers, as the place of a kernel type's field is an instruction more.
 */
#define IPV4_ADDRESSES 12
#define IPV6_MIDDLE 22
/* Its source, and the last 64 bits of its destination. */
#define IPV6_SOURCE 8
#define IPV6_LAST 32

/* 16 bits of an address, as they lie in memory, hashed to 6. The multiplier is one that keeps the known services apart
 * from networks and hosts that are common.
 */
#define ENDPOINT_HASH 0x922b20c3U

enum endpoint_hint {
	HINT_V4_FIRST,
	HINT_V6_FIRST,
	HINT_V6_LAST,
	ENDPOINT_HINTS,
};

/* For the first and the last 16 bits of an address, whether any endpoint has some with that hash: a bit each. No
 * memory but this word is read for most packets.
 */
const volatile __u64 endpoint_hints[ENDPOINT_HINTS];

/* In the lowest bit. */
static __always_inline __u64 hinted(enum endpoint_hint hint, __u64 half)
{
	return endpoint_hints[hint] >> (((__u32)half & 0xffff) * ENDPOINT_HASH >> 26);
}

/* Of both addresses, source first; of the last of the source's bits and the first of the destination's. */
static __always_inline bool are_hinted_v4(__u64 both)
{
	return (hinted(HINT_V4_FIRST, both) | hinted(HINT_V4_FIRST, both >> 32)) & 1;
}

static __always_inline bool are_hinted_v6(__u64 middle)
{
	return (hinted(HINT_V6_LAST, middle) | hinted(HINT_V6_FIRST, middle >> 16)) & 1;
}

/* Whether either address may be an endpoint's, of which both are given, source first. A function of its own, as few
 * packets get here, and as the program has to stay small.
 */
static __noinline bool are_possible_v4(__u64 both)
{
	return endpoint_possible_v4(bpf_ntohl(both >> 32)) || endpoint_possible_v4(bpf_ntohl(both));
}

/* The same of IPv6, of which these are given, each 16 bits: the source's last and the destination's first, as they follow
 * each other, and the source's first and the destination's last.
 */
static __noinline bool are_possible_v6(__u32 inner, __u32 outer)
{
	return endpoint_possible_v6(bpf_ntohs(inner >> 16), bpf_ntohs(outer >> 16)) ||
	       endpoint_possible_v6(bpf_ntohs(outer), bpf_ntohs(inner));
}

/* Where the addresses are, in memory. */
static __always_inline bool is_side_v4(const struct iphdr *ip)
{
	return are_possible_v4((__u64)ip->daddr << 32 | ip->saddr);
}

static __always_inline bool is_side_v6(const struct ipv6hdr *ip)
{
	const __be16 *src = ip->saddr.in6_u.u6_addr16, *dst = ip->daddr.in6_u.u6_addr16;

	return are_possible_v6((__u32)dst[0] << 16 | src[7], (__u32)dst[7] << 16 | src[0]);
}

/* linux/if_packet.h */
#define PACKET_OUTGOING 4

static __always_inline bool is_tag(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

/* The type that stands in an Ethernet frame which leaves: its sender may have told another. Zero if there is none. */
static __always_inline __be16 frame_type(struct __sk_buff *skb)
{
	__be16 type = 0;

	if (skb->pkt_type != PACKET_OUTGOING ||
	    bpf_skb_load_bytes_relative(skb, ETH_HLEN - sizeof(type), &type, sizeof(type),
					BPF_HDR_START_MAC))
		return 0;
	return type;
}

/* Whether it leaves with a tag at the start of what is seen here, whatever protocol its sender says it is of. */
static __noinline bool leaves_tagged(struct __sk_buff *skb)
{
	return is_tag(frame_type(skb));
}

/* Whether it is said to leave with a tag and has none, and may concern an endpoint: the kernel takes the IP header's first
 * bytes for the tag, and what is seen here begins behind them. Only who writes frames himself makes such a one, and
 * can keep its header out of what can be read, too.
 */
static __noinline bool is_misplaced(struct __sk_buff *skb)
{
	__u64 both;
	__be16 type;

	if (!is_tag(skb->protocol))
		return false;
	type = frame_type(skb);
	if (type == bpf_htons(ETH_P_IP))
		return bpf_skb_load_bytes_relative(skb, ETH_HLEN + IPV4_ADDRESSES, &both,
						   sizeof(both), BPF_HDR_START_MAC) ||
		       are_hinted_v4(both);
	if (type == bpf_htons(ETH_P_IPV6))
		return bpf_skb_load_bytes_relative(skb, ETH_HLEN + IPV6_MIDDLE, &both, sizeof(both),
						   BPF_HDR_START_MAC) ||
		       are_hinted_v6(both);
	return false;
}

/* Whether what may be an IP header at `at` may be of a packet to or from an endpoint, or is a tag that was not to be
 * there: rare, and so a function of its own; a global one is verified once, wherever it is asked.
 */
__noinline int imds_may_concern(struct __sk_buff *skb, __u32 at)
{
	struct ipv6hdr ip;
	__u8 version;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(struct iphdr)))
		return false;
	version = *(__u8 *)&ip >> 4;
	if (version == 4)
		return is_side_v4((struct iphdr *)&ip);
	if (version != 6)
		return !at && leaves_tagged(skb);
	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return false;
	return is_side_v6(&ip);
}

/* imds_may_concern() of what is said to be an IPv6 header at the start, where it cannot be looked at directly. */
static __noinline bool may_concern_whole_v6(struct __sk_buff *skb)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)) || ip.version != 6)
		return imds_may_concern(skb, 0);
	return is_side_v6(&ip);
}

/* The same as imds_may_concern() of a packet that is said to begin with an IPv4 header: who writes frames may say anything. */
static __always_inline bool may_concern_v4(struct __sk_buff *skb)
{
	void *data = direct_data(skb, sizeof(struct iphdr));
	__u64 both;

	if (!data || (direct_word(data, 0) & 0xf0) != 0x40)
		return imds_may_concern(skb, 0);
	both = direct_word(data, IPV4_ADDRESSES);
	return are_hinted_v4(both) && are_possible_v4(both);
}

/* The same of IPv6. Its source may be an endpoint only if its last bits may, its destination only if its first may: these
 * are neighbours.
 */
static __always_inline bool may_concern_v6(struct __sk_buff *skb)
{
	void *data = direct_data(skb, sizeof(struct ipv6hdr));
	__u64 middle;

	if (!data || (direct_word(data, 0) & 0xf0) != 0x60)
		return may_concern_whole_v6(skb);
	middle = direct_word(data, IPV6_MIDDLE);
	return are_hinted_v6(middle) &&
	       are_possible_v6(middle, (direct_word(data, IPV6_LAST) >> 48 << 16) |
					       (direct_word(data, IPV6_SOURCE) & 0xffff));
}

#endif
