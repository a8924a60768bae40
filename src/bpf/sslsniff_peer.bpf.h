/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The socket of a connection: told to user space, and found by the descriptor that the program gave. */
#ifndef EBPFKIT_SSLSNIFF_PEER_BPF_H
#define EBPFKIT_SSLSNIFF_PEER_BPF_H

#include "sslsniff_send.bpf.h"

/* sys/socket.h */
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
/* sys/stat.h */
#define S_IFMT 0170000
#define S_IFSOCK 0140000

struct peer_record {
	struct ssl_record head;
	struct ssl_addresses addresses;
};

/* What tells a socket from others: peer's address or the last of it, and ports. Two sockets of a process
 * that are alive have not both the same. Zero, if it is no stream socket that has two ends: a callback may
 * ask a resolver or write to a log, by datagrams.
 */
static __always_inline __u64 socket_of(struct sock *sk)
{
	__u16 family, local_port, peer_port;
	__u64 socket;

	if (BPF_CORE_READ(sk, sk_type) != SOCK_STREAM)
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	peer_port = BPF_CORE_READ(sk, __sk_common.skc_dport);
	local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	/* A socket that was reset has given its port back. */
	if ((family != AF_INET && family != AF_INET6) || !local_port || !peer_port)
		return 0;
	socket = (__u64)peer_port << 16 | local_port;
	if (family == AF_INET)
		socket |= (__u64)BPF_CORE_READ(sk, __sk_common.skc_daddr) << 32;
	else
		socket |= (__u64)BPF_CORE_READ(sk, __sk_common.skc_v6_daddr.in6_u.u6_addr32[3])
			  << 32;
	return socket;
}

/* Tells the ends of `sk`, which is `socket`. */
static __always_inline void tell_peer(struct sock *sk, __u64 socket, struct connection *connection,
				      __u64 ssl, __u32 function, __u32 library, __u8 via)
{
	struct peer_record *record;
	__u16 family;

	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	/* The next use of the socket tries again. */
	if (!record)
		return;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	describe(&record->head, SSL_PEER, function, ssl, connection, bpf_ktime_get_boot_ns(),
		 library);
	record->head.captured = sizeof(record->addresses);
	record->head.via = via;
	record->head.offset = (__u64)sk;
	__builtin_memset(&record->addresses, 0, sizeof(record->addresses));
	record->addresses.family = family;
	record->addresses.local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	record->addresses.peer_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
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
	record->head.no_peer = 0;
	bpf_ringbuf_submit(record, 0);
	connection->settled = 0;
	connection->socket = socket;
	connection->via = via;
	connection->no_peer = 0;
}

/* The socket that the current process has under a descriptor, or NULL. */
static __always_inline struct sock *socket_at(__u32 fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct file **files, *file = NULL;
	struct socket *socket;

	if (fd >= BPF_CORE_READ(task, files, fdt, max_fds))
		return NULL;
	files = BPF_CORE_READ(task, files, fdt, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), files + fd) || !file ||
	    (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, file) == file ? BPF_CORE_READ(socket, sk) : NULL;
}

/* Of a connection whose socket is not known, and to which the program gave one, for both directions. It
 * may have been connected only since. Global: the verifier looks at it once.
 */
__noinline int use_descriptor(__u64 ssl, __u32 function, __u32 library)
{
	struct connection_key key = { .ssl = ssl, .tgid = bpf_get_current_pid_tgid() >> 32 };
	struct connection *connection = known_connection(&key);
	struct sock *sk;
	__u64 socket;

	if (!connection || !connection->read_fd || !connection->write_fd)
		return 0;
	sk = socket_at(connection->write_fd - 1);
	if (!sk || (connection->read_fd != connection->write_fd &&
		    socket_at(connection->read_fd - 1) != sk))
		return 0;
	socket = socket_of(sk);
	if (socket)
		tell_peer(sk, socket, connection, ssl, function, library, SSL_VIA_SET_FD);
	return 0;
}

/* Before something is told of a connection. */
static __always_inline void find_peer(const struct connection *connection, __u64 ssl,
				      __u32 function, __u32 library)
{
	if (!connection->socket && connection->write_fd)
		use_descriptor(ssl, function, library);
}

#endif
