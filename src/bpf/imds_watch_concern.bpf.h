/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether a packet may be to or from an endpoint: all that is asked of most packets.
 *
 * Helpers: bpf_skb_load_bytes (4.5); bpf_cast_to_kern_ctx and bpf_rdonly_cast where they are (6.2).
 */
#ifndef EBPFKIT_IMDS_WATCH_CONCERN_BPF_H
#define EBPFKIT_IMDS_WATCH_CONCERN_BPF_H

#include "lib/endpoints.bpf.h"

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

/* Whether what may be an IP header at `at` may be of a packet to or from an endpoint: rare, and so a function of its
 * own.
 */
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

/* The same of a packet that is said to begin with an IPv4 header: who writes frames may say anything. */
static __always_inline bool may_concern_v4(struct __sk_buff *skb)
{
	struct iphdr *ip = direct_header(skb, struct iphdr);

	if (!ip || ip->version != 4)
		return may_concern(skb, 0);
	return is_side_v4(ip->saddr, ip->daddr);
}

static __always_inline bool may_concern_v6(struct __sk_buff *skb)
{
	struct ipv6hdr *ip = direct_header(skb, struct ipv6hdr);

	if (!ip || ip->version != 6)
		return may_concern(skb, 0);
	return is_side_v6(&ip->saddr, &ip->daddr);
}

#endif
