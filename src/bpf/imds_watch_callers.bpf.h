/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who opens connections to a metadata service: recorded in connect(), where the process is at hand, and
 * kept under the flow's addresses, by which the filter and user space find it.
 */
#ifndef EBPFKIT_IMDS_WATCH_CALLERS_BPF_H
#define EBPFKIT_IMDS_WATCH_CALLERS_BPF_H

#include "lib/endpoints.bpf.h"
#include "lib/lineage.bpf.h"
#include "lib/stacks.bpf.h"

#define SOCK_STREAM 1

/* net/tcp_states.h */
#define TCP_SYN_SENT 2

/* Whether bpf_get_current_task() and reading what it leads to are to be had (kernel 5.8 or so, and
 * CAP_PERFMON), so that parents, executable and command line are recorded.
 */
const volatile __u8 record_lineage;

/* socket cookie -> who called connect() */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct caller);
} connecting SEC(".maps");

/* flow -> who opened it */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct flow);
	__type(value, struct caller);
} opened SEC(".maps");

/* socket cookie -> the functions that called connect() (520 bytes) */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct user_stack);
} stacks SEC(".maps");

static const struct caller nobody;

/* Leaves who is calling, if it is a TCP connection to an endpoint. */
static __always_inline void record(struct bpf_sock_addr *ctx, const union address *remote)
{
	struct caller *caller;
	__u64 cookie;

	if (ctx->type != SOCK_STREAM)
		return;
	if (!endpoint_lookup(remote, bpf_ntohs((__u16)ctx->user_port), PROTO_TCP))
		return;
	cookie = bpf_get_socket_cookie(ctx);
	/* Filled in where it lies: too long for the stack. */
	bpf_map_update_elem(&connecting, &cookie, &nobody, BPF_ANY);
	caller = bpf_map_lookup_elem(&connecting, &cookie);
	if (!caller)
		return;
	identity_of_current(&caller->who);
	caller->cookie = cookie;
	/* Kernel 5.7. */
	caller->netns = bpf_get_netns_cookie(ctx);
	if (record_lineage)
		lineage_of_current(caller);
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

static const struct user_stack no_stack;

/* In connect() between the hook above and the one below, which may not look at stacks: kernel 4.17
 * for raw tracepoints, 4.16 for this one. bpf_probe_read_kernel(): 5.5.
 */
SEC("raw_tp/inet_sock_set_state")
int imds_stack(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sock *sk = (const void *)ctx->args[0];
	struct user_stack *stack;
	__u64 cookie;

	if ((int)ctx->args[2] != TCP_SYN_SENT)
		return 0;
	/* Given by the hook, if it concerns us. */
	cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (!cookie || !bpf_map_lookup_elem(&connecting, &cookie))
		return 0;
	/* Filled in where it lies: too long for the stack. */
	bpf_map_update_elem(&stacks, &cookie, &no_stack, BPF_ANY);
	stack = bpf_map_lookup_elem(&stacks, &cookie);
	if (stack)
		take_user_stack(ctx, stack);
	return 0;
}

/* Runs in connect() as well, when the local port is known. */
SEC("sockops")
int imds_sockops(struct bpf_sock_ops *ops)
{
	struct caller *caller;
	struct flow flow;
	__u64 cookie;

	if (ops->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
		return 1;
	cookie = bpf_get_socket_cookie(ops);
	if (!flow_of_sockops(ops, &flow))
		return 1;
	caller = bpf_map_lookup_elem(&connecting, &cookie);
	if (caller)
		bpf_map_update_elem(&opened, &flow, caller, BPF_ANY);
	else
		/* Whoever had these ports before did not open this one. */
		bpf_map_delete_elem(&opened, &flow);
	bpf_map_delete_elem(&connecting, &cookie);
	return 1;
}

#endif
