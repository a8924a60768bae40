/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which socket a connection has: the one that its thread uses while a call for the connection is
 * under way. A connection over memory (Node.js, asyncio) uses none within its calls, and stays
 * without: what is read from a socket before or written to one after may be another connection's.
 */
#ifndef EBPFKIT_SSLSNIFF_SOCKET_BPF_H
#define EBPFKIT_SSLSNIFF_SOCKET_BPF_H

#include <bpf/bpf_tracing.h>
#include "sslsniff_send.bpf.h"

/* sys/socket.h */
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1

/* How far the library's frames reach below a call's: callbacks of the program among them. Beyond, the
 * call was left by a jump and the stack pointer is another's.
 */
#define DEEPEST_CALL (1 << 20)

struct peer_record {
	struct ssl_record head;
	struct ssl_addresses addresses;
};

/* The innermost call under way; of TLS inside TLS that is the connection on the socket. */
static __always_inline struct call *innermost(struct thread *thread)
{
	struct call *found = NULL;

	for (int i = 0; i < MAX_NESTED; i++) {
		struct call *call = &thread->calls[i];

		if (call->under_way && (!found || call->stack < found->stack))
			found = call;
	}
	return found;
}

/* `stack` is where the thread's stack is now, or zero if that cannot be known. */
static __always_inline int uses_socket(struct sock *sk, struct thread *thread, __u64 stack)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct connection *connection;
	struct peer_record *record;
	__u16 family, peer_port;
	struct call *call;
	__u64 socket;

	call = innermost(thread);
	if (!call || (stack && call->stack - stack > DEEPEST_CALL))
		return 0;
	/* A callback may ask a resolver or write to a log, by datagrams. */
	if (BPF_CORE_READ(sk, sk_type) != SOCK_STREAM)
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	peer_port = BPF_CORE_READ(sk, __sk_common.skc_dport);
	if ((family != AF_INET && family != AF_INET6) || !peer_port)
		return 0;
	connection = connection_of(pid_tgid >> 32, call->ssl, call->start_ns);
	if (!connection)
		return 0;
	/* Two sockets of a process that are alive have not both the same. */
	socket = (__u64)peer_port << 16 | BPF_CORE_READ(sk, __sk_common.skc_num);
	if (family == AF_INET)
		socket |= (__u64)BPF_CORE_READ(sk, __sk_common.skc_daddr) << 32;
	else
		socket |= (__u64)BPF_CORE_READ(sk, __sk_common.skc_v6_daddr.in6_u.u6_addr32[3])
			  << 32;
	if (connection->socket == socket)
		return 0;
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	/* The next use of the socket tries again. */
	if (!record)
		return 0;
	describe(&record->head, SSL_PEER, call->function, call->ssl, connection,
		 bpf_ktime_get_boot_ns(), call->library);
	record->head.captured = sizeof(record->addresses);
	record->head.via = SSL_VIA_CALL;
	__builtin_memset(&record->addresses, 0, sizeof(record->addresses));
	record->addresses.family = family;
	record->addresses.local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	record->addresses.peer_port = bpf_ntohs(peer_port);
	if (family == AF_INET) {
		BPF_CORE_READ_INTO((__be32 *)record->addresses.local, sk,
				   __sk_common.skc_rcv_saddr);
		BPF_CORE_READ_INTO((__be32 *)record->addresses.peer, sk, __sk_common.skc_daddr);
	} else {
		BPF_CORE_READ_INTO((struct in6_addr *)record->addresses.local, sk,
				   __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO((struct in6_addr *)record->addresses.peer, sk,
				   __sk_common.skc_v6_daddr);
	}
	bpf_ringbuf_submit(record, 0);
	connection->socket = socket;
	return 0;
}

static __always_inline struct thread *current_thread(void)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&threads, &pid_tgid);
}

/* sock_send_length and sock_recv_length (6.3). bpf_get_current_task_btf (5.11), bpf_task_pt_regs
 * (5.15).
 */
static __always_inline int traced_socket(struct bpf_raw_tracepoint_args *ctx)
{
	struct thread *thread = current_thread();
	struct pt_regs *regs;

	/* Whoever uses no TLS leaves here. */
	if (!thread)
		return 0;
	regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
	return uses_socket((struct sock *)ctx->args[0], thread, PT_REGS_SP_CORE(regs));
}

/* Args: the struct sock, the length or an error, flags. */
SEC("raw_tp/sock_send_length")
int socket_sends(struct bpf_raw_tracepoint_args *ctx)
{
	return traced_socket(ctx);
}

SEC("raw_tp/sock_recv_length")
int socket_receives(struct bpf_raw_tracepoint_args *ctx)
{
	return traced_socket(ctx);
}

/* Where those tracepoints are not. Args: the struct sock first. */
SEC("?fentry/tcp_sendmsg")
int tcp_sends(unsigned long long *ctx)
{
	struct thread *thread = current_thread();

	return thread ? uses_socket((struct sock *)ctx[0], thread, 0) : 0;
}

SEC("?fentry/tcp_recvmsg")
int tcp_receives(unsigned long long *ctx)
{
	struct thread *thread = current_thread();

	return thread ? uses_socket((struct sock *)ctx[0], thread, 0) : 0;
}

#endif
