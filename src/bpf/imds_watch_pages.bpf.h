/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether a packet's sender can still change it: what the filter reads need not be what arrives.
 *
 * Helpers: bpf_cast_to_kern_ctx and bpf_rdonly_cast (6.2). Without them nobody can tell.
 */
#ifndef EBPFKIT_IMDS_WATCH_PAGES_BPF_H
#define EBPFKIT_IMDS_WATCH_PAGES_BPF_H

#include "imds_watch_concern.bpf.h"

/* sendfile() and splice() put the pages of a file into the packet, which stay mapped where they were (SHARED_FRAG); a
 * send() with MSG_ZEROCOPY the sender's own. Of the latter a tap gets a copy where the packet leaves, which
 * is no clone any more, as all others are there, and has no flags; where it arrives, what reads it does.
 *
 * Of packets that were put together in a list each one has flags of its own: those count as well as if they said so.
 */
static __always_inline bool may_change(struct __sk_buff *skb)
{
	struct skb_shared_info *shared;
	struct sk_buff *packet;

	if (!bpf_ksym_exists(bpf_cast_to_kern_ctx))
		return false;
	packet = bpf_cast_to_kern_ctx(skb);
	/* All of it is in the kernel's own memory. */
	if (!packet->data_len)
		return false;
	shared = bpf_rdonly_cast(packet->head + packet->end,
				 bpf_core_type_id_kernel(struct skb_shared_info));
	if (shared->flags & (SKBFL_ZEROCOPY_ENABLE | SKBFL_SHARED_FRAG) || shared->frag_list)
		return true;
	return skb->pkt_type == PACKET_OUTGOING && !BPF_CORE_READ_BITFIELD(packet, cloned);
}

#endif
