// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The gates of tc-guard: what stays attached while policies come and go.
 *
 * A gate jumps to the program that judges, if there is one, and else lets everything pass. Three
 * things follow: setting `armed` starts the whole guard in one step, however many hooks it has; setting
 * it to the other bank, where another policy's programs wait, replaces the policy in one step at all
 * hooks, between two packets; and as the kernel empties a slot when the last descriptor or pin of its map has gone, a guard that was killed leaves nothing
 * that judges, even where its gate stays attached (clsact).
 *
 * A slot whose map and key are constants is a direct jump (kernel 5.5).
 *
 * Helpers: bpf_tail_call (4.2); bpf_get_netns_cookie (5.7, cgroup hooks).
 */
#include "lib/common.bpf.h"

/* linux/pkt_cls.h: on to the next program. TCX_NEXT of linux/bpf.h is the same number. */
#define TC_ACT_UNSPEC (-1)
/* Of a cgroup hook. */
#define PROCEED 1

/* Which bank's programs are asked: 1, 2, or 0 for none. */
__u8 armed;
/* User space's notes for whoever takes the guard over: the mark of packets that were judged as they
 * came in, which policy is in force, and when the guard began (CLOCK_BOOTTIME).
 */
__u16 judged;
__u16 generation;
__u64 since_ns;
/* The guarded network namespace: its cookie, and its inode number. */
__u64 home_netns;
__u32 home_inode;
/* The thread that asks for its network namespace's cookie, as bpf_get_current_pid_tgid() has it. */
__u64 asking;

/* Programs are only compatible with a slot if they have its first program's type and, since kernel
 * 6.18, its attach type: so each gate has a slot of its own.
 * Key: bank less 1, 4 bytes. Value: the program's descriptor, 4 bytes.
 */
#define GATE(section, context, hook, otherwise)                     \
	struct {                                                    \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY);              \
		__uint(max_entries, 2);                             \
		__type(key, __u32);                                 \
		__type(value, __u32);                               \
	} slot_##hook SEC(".maps");                                 \
                                                                    \
	SEC(section)                                                \
	int gate_##hook(struct context *ctx)                        \
	{                                                           \
		__u8 bank = armed;                                  \
                                                                    \
		if (bank == 1)                                      \
			bpf_tail_call_static(ctx, &slot_##hook, 0); \
		else if (bank == 2)                                 \
			bpf_tail_call_static(ctx, &slot_##hook, 1); \
		return otherwise;                                   \
	}

GATE("tc", __sk_buff, egress_eth, TC_ACT_UNSPEC)
GATE("tc", __sk_buff, egress_ip, TC_ACT_UNSPEC)
GATE("tc", __sk_buff, ingress_eth, TC_ACT_UNSPEC)
GATE("cgroup/connect4", bpf_sock_addr, connect4, PROCEED)
GATE("cgroup/connect6", bpf_sock_addr, connect6, PROCEED)
GATE("cgroup/sendmsg4", bpf_sock_addr, sendmsg4, PROCEED)
GATE("cgroup/sendmsg6", bpf_sock_addr, sendmsg6, PROCEED)

/* Answers a thread that connects a socket: before kernel 5.14 nothing else does. */
SEC("cgroup/connect4")
int learn_netns(struct bpf_sock_addr *ctx)
{
	if (bpf_get_current_pid_tgid() == asking)
		home_netns = bpf_get_netns_cookie(ctx);
	return PROCEED;
}
