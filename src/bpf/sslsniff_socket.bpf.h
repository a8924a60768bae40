/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which socket a connection has, and what passes it in the clear as the connection begins.
 *
 * Most programs have the library use the socket: it is the one that the thread uses while a call for the
 * connection is under way, for bytes that start as TLS's do. A callback of the program may use others.
 *
 * Programs that keep TLS and the socket apart (Node.js, asyncio: the library writes to memory) use none
 * within their calls, and what they send after one may be another connection's. But a connection begins
 * with a hello, and each hello has 32 random bytes, which the library makes up within a call for the
 * connection (see sslsniff_handshake.bpf.h): the socket that the hello goes out by, from the same process,
 * is the connection's. No other bytes are the same, so that this is never wrong: a hello that was not made
 * up in a call that was seen, or that does not start what one system call sends, leaves the socket
 * unknown. It costs nothing once a connection is there: no function is probed for it that reads or writes
 * call. Hellos in the other direction go to user space with their socket, which by then is known.
 */
#ifndef EBPFKIT_SSLSNIFF_SOCKET_BPF_H
#define EBPFKIT_SSLSNIFF_SOCKET_BPF_H

#include <bpf/bpf_tracing.h>
#include "sslsniff_handshake.bpf.h"
#include "sslsniff_peer.bpf.h"

/* System calls on sockets, and the registers that a system call leaves (asm/unistd.h, asm/ptrace.h). */
#if defined(__TARGET_ARCH_x86)
#define SYSCALL_OF(regs) BPF_CORE_READ(regs, orig_ax)
#define NR_READ 0
#define NR_WRITE 1
#define NR_READV 19
#define NR_WRITEV 20
#define NR_SENDTO 44
#define NR_RECVFROM 45
#define NR_SENDMSG 46
#define NR_RECVMSG 47
#else
#define SYSCALL_OF(regs) BPF_CORE_READ(regs, syscallno)
#define NR_READ 63
#define NR_WRITE 64
#define NR_READV 65
#define NR_WRITEV 66
#define NR_SENDTO 206
#define NR_RECVFROM 207
#define NR_SENDMSG 211
#define NR_RECVMSG 212
#endif

/* Pieces of a connection's beginning that are told of in each direction: a library may read a record's
 * header and its body apart; an alert may follow.
 */
#define MOST_PIECES 3

/* Records (RFC 8446, 5.1; the last is of RFC 6520), and messages in them (4). */
#define TLS_CHANGE_CIPHER_SPEC 20
#define TLS_HEARTBEAT 24
#define TLS_HANDSHAKE 22
#define TLS_CLIENT_HELLO 1
#define TLS_SERVER_HELLO 2

/* The start of a record that starts with a hello. */
struct hello_start {
	__u8 type;
	__u8 version[2];
	__u8 length[2];
	__u8 message;
	__u8 message_length[3];
	__u8 message_version[2];
	__u8 random[RANDOM_SIZE];
};

/* struct iov_iter before 6.4; a union then, as it is now. */
struct iov_iter___before_6_4 {
	const struct iovec *iov;
} __attribute__((preserve_access_index));

/* What the system call that the thread is in has passed, so many bytes of it; false if it is none of those
 * that are known (io_uring). A wrong guess does no harm: the bytes are no hello's.
 */
static __always_inline bool piece_of_call(struct pt_regs *regs, __u32 passed, struct piece *piece)
{
	struct {
		__u64 address;
		__u64 length;
	} vector;
	__u64 at = PT_REGS_PARM2_CORE_SYSCALL(regs);

	piece->address = at;
	piece->length = passed;
	switch ((__u32)SYSCALL_OF(regs)) {
	case NR_READ:
	case NR_WRITE:
	case NR_SENDTO:
	case NR_RECVFROM:
		return true;
	case NR_SENDMSG:
	case NR_RECVMSG:
		/* struct msghdr: a pointer and a length come first. */
		if (bpf_probe_read_user(&at, sizeof(at), (void *)(at + 16)))
			return false;
		break;
	case NR_READV:
	case NR_WRITEV:
		break;
	default:
		return false;
	}
	if (bpf_probe_read_user(&vector, sizeof(vector), (void *)at))
		return false;
	piece->address = vector.address;
	if (piece->length > vector.length)
		piece->length = vector.length;
	return true;
}

/* The same of what is about to be sent or received, where the iterator is at its start. */
static __always_inline bool piece_of_message(struct msghdr *message, __u64 passed,
					     struct piece *piece)
{
	struct iov_iter *iter = &message->msg_iter;
	const struct iovec *vector;
	struct iovec first;

	piece->length = passed;
	if (bpf_core_enum_value_exists(enum iter_type, ITER_UBUF) &&
	    BPF_CORE_READ(iter, iter_type) == bpf_core_enum_value(enum iter_type, ITER_UBUF)) {
		piece->address = (__u64)BPF_CORE_READ(iter, ubuf);
		return true;
	}
	if (bpf_core_field_exists(iter->__iov))
		vector = BPF_CORE_READ(iter, __iov);
	else
		vector = BPF_CORE_READ((struct iov_iter___before_6_4 *)iter, iov);
	if (bpf_probe_read_kernel(&first, sizeof(first), vector))
		return false;
	piece->address = (__u64)first.iov_base;
	if (piece->length > first.iov_len)
		piece->length = first.iov_len;
	return true;
}

/* What user space is told of a piece: of whom, and where it passed. */
struct passage {
	__u64 socket;
	__u64 ssl;
	__u64 since_ns;
	__u32 function;
	__u32 library;
	__u8 direction;
};

#define DEFINE_TELL(CAPACITY)                                                                    \
	static __always_inline void tell_##CAPACITY(const struct passage *passage,               \
						    const struct piece *piece)                   \
	{                                                                                        \
		const struct connection connection = { .since_ns = passage->since_ns };          \
		__u64 length = piece->length;                                                    \
		struct record_##CAPACITY *record;                                                \
                                                                                                 \
		record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);                      \
		if (!record)                                                                     \
			return;                                                                  \
		describe(&record->head, SSL_HELLO, passage->function, passage->ssl, &connection, \
			 bpf_ktime_get_boot_ns(), passage->library);                             \
		record->head.offset = passage->socket;                                           \
		record->head.length = length;                                                    \
		record->head.direction = passage->direction;                                     \
		barrier_var(length);                                                             \
		if (length > CAPACITY)                                                           \
			length = CAPACITY;                                                       \
		record->head.captured = length;                                                  \
		if (bpf_probe_read_user(record->data, length, (void *)piece->address))           \
			bpf_ringbuf_discard(record, 0);                                          \
		else                                                                             \
			bpf_ringbuf_submit(record, 0);                                           \
	}

DEFINE_TELL(SMALL)
DEFINE_TELL(MEDIUM)

static __always_inline void tell_piece(const struct passage *passage, const struct piece *piece)
{
	if (piece->length > SMALL)
		tell_MEDIUM(passage, piece);
	else
		tell_SMALL(passage, piece);
}

/* Whether it starts as a record of the connection may. What begins it is its handshake. */
static __always_inline bool starts_record(const struct piece *piece,
					  const struct connection *connection)
{
	__u8 start[2];

	if (piece->length < sizeof(start) ||
	    bpf_probe_read_user(start, sizeof(start), (void *)piece->address) || start[1] != 3)
		return false;
	if (!connection->socket && connection->handshake_ns)
		return start[0] == TLS_HANDSHAKE;
	return start[0] >= TLS_CHANGE_CIPHER_SPEC && start[0] <= TLS_HEARTBEAT;
}

/* Whether what passes is data by now, and the handshake done. */
static __always_inline bool has_data(const struct connection *connection)
{
	return !connection->early &&
	       (connection->offset[SSL_READ] || connection->offset[SSL_WRITE]);
}

/* Whether the connection begins still, so that what passes is of interest. */
static __always_inline bool begins(struct connection *connection, bool sends)
{
	if (has_data(connection) ||
	    (sends ? connection->sent : connection->received) >= MOST_PIECES)
		return false;
	if (sends)
		connection->sent++;
	else
		connection->received++;
	return true;
}

/* How `sk` is to the connection of a call in which it is used. */
enum use {
	/* It is the connection's. */
	USE_OWN,
	/* It may be: what passes tells. */
	USE_OTHER,
	/* The connection is known not to use it within calls. */
	USE_ASIDE,
};

static __always_inline enum use use_of(__u64 socket, const struct connection *connection)
{
	if (connection->socket && connection->via == SSL_VIA_CIPHERTEXT)
		return USE_ASIDE;
	return connection->socket == socket ? USE_OWN : USE_OTHER;
}

/* `piece` passes `sk`, which is `socket`, within the call. */
static __always_inline int within_call(struct sock *sk, __u64 socket, enum use use,
				       struct connection *connection, const struct call *call,
				       bool sends, const struct piece *piece)
{
	struct passage passage = {
		.socket = (__u64)sk,
		.ssl = call->ssl,
		.since_ns = connection->since_ns,
		.function = call->function,
		.library = call->library,
		.direction = sends ? SSL_WRITE : SSL_READ,
	};

	if (use == USE_OTHER && !starts_record(piece, connection))
		return 0;
	if (use == USE_OTHER || connection->via != SSL_VIA_CALL)
		tell_peer(sk, socket, connection, call->ssl, call->function, call->library,
			  SSL_VIA_CALL);
	if (begins(connection, sends))
		tell_piece(&passage, piece);
	return 0;
}

/* Nothing is to be done: the socket of the connection was told, and how it began. */
static __always_inline bool is_settled(enum use use, const struct connection *connection)
{
	return use == USE_OWN && connection->via == SSL_VIA_CALL &&
	       (has_data(connection) ||
		(connection->sent >= MOST_PIECES && connection->received >= MOST_PIECES));
}

/* A hello that passes while no call for its connection is under way, of a thread that uses TLS. */
static __always_inline int outside_calls(struct sock *sk, bool sends, const struct piece *piece)
{
	__u64 socket = socket_of(sk);
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct passage passage = {
		.socket = (__u64)sk,
		.direction = sends ? SSL_WRITE : SSL_READ,
	};
	struct hello_start start;
	struct random_of *of;

	if (!socket || piece->length < sizeof(start) ||
	    bpf_probe_read_user(&start, sizeof(start), (void *)piece->address))
		return 0;
	if (start.type != TLS_HANDSHAKE || start.version[0] != 3 ||
	    (start.message != TLS_CLIENT_HELLO && start.message != TLS_SERVER_HELLO))
		return 0;
	if (sends) {
		struct random_key key = { .tgid = tgid };
		struct connection_key whose = { .tgid = tgid };
		struct connection *connection;

		__builtin_memcpy(key.random, start.random, sizeof(key.random));
		of = bpf_map_lookup_elem(&randoms, &key);
		if (of) {
			whose.ssl = of->ssl;
			passage.since_ns = of->since_ns;
			connection = known_connection(&whose);
			/* Else it was freed, and another may be at its place. */
			if (connection && connection->since_ns == passage.since_ns) {
				passage.ssl = whose.ssl;
				tell_peer(sk, socket, connection, whose.ssl, 0, 0,
					  SSL_VIA_CIPHERTEXT);
			}
			/* Who passes it on is another socket. */
			bpf_map_delete_elem(&randoms, &key);
		}
	}
	if (!passage.ssl)
		passage.since_ns = 0;
	tell_piece(&passage, piece);
	return 0;
}

/* sock_send_length and sock_recv_length (6.3). bpf_get_current_task_btf (5.11), bpf_task_pt_regs
 * (5.15). Args: the struct sock, the length or an error, flags.
 */
static __always_inline int traced_socket(struct bpf_raw_tracepoint_args *ctx, bool sends)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	int passed = (int)ctx->args[1];
	struct connection *connection = NULL;
	enum use use = USE_ASIDE;
	struct thread *thread = current_thread();
	struct piece piece;
	struct pt_regs *regs;
	struct call *call;
	__u64 socket = 0;

	/* Whoever uses no TLS leaves here. */
	if (!thread)
		return 0;
	regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
	call = call_around(thread, PT_REGS_SP(regs));
	if (call) {
		connection = connection_used(thread, call->ssl, call->start_ns);
		/* Most calls leave here. */
		if (!connection || connection->settled >= SETTLED)
			return 0;
		socket = socket_of(sk);
		if (!socket)
			return 0;
		use = use_of(socket, connection);
		if (is_settled(use, connection)) {
			connection->settled++;
			return 0;
		}
	}
	if (passed <= 0 || !piece_of_call(regs, passed, &piece))
		return 0;
	if (use == USE_ASIDE)
		return outside_calls(sk, sends, &piece);
	return connection && call ? within_call(sk, socket, use, connection, call, sends, &piece) :
				    0;
}

SEC("raw_tp/sock_send_length")
int socket_sends(struct bpf_raw_tracepoint_args *ctx)
{
	return traced_socket(ctx, true);
}

SEC("raw_tp/sock_recv_length")
int socket_receives(struct bpf_raw_tracepoint_args *ctx)
{
	return traced_socket(ctx, false);
}

/* `piece` passes `sk`, at a function of TCP: where the thread's stack is, is not known. */
static __always_inline int passes(struct sock *sk, struct thread *thread, bool sends,
				  const struct piece *piece)
{
	struct call *call = call_around(thread, 0);
	struct connection *connection;
	enum use use;
	__u64 socket;

	if (!call)
		return outside_calls(sk, sends, piece);
	socket = socket_of(sk);
	connection = connection_of(bpf_get_current_pid_tgid() >> 32, call->ssl, call->start_ns);
	if (!socket || !connection)
		return 0;
	use = use_of(socket, connection);
	if (use == USE_ASIDE)
		return outside_calls(sk, sends, piece);
	return within_call(sk, socket, use, connection, call, sends, piece);
}

/* Where those tracepoints are not. Args: the struct sock, the struct msghdr, the size. */
SEC("?fentry/tcp_sendmsg")
int tcp_sends(unsigned long long *ctx)
{
	struct thread *thread = current_thread();
	struct piece piece;

	if (!thread || !piece_of_message((struct msghdr *)ctx[1], ctx[2], &piece))
		return 0;
	return passes((struct sock *)ctx[0], thread, true, &piece);
}

/* Where the bytes will be is known as it begins, and how many they are as it ends. */
SEC("?fentry/tcp_recvmsg")
int tcp_receives(unsigned long long *ctx)
{
	struct thread *thread = current_thread();

	if (thread && !piece_of_message((struct msghdr *)ctx[1], ctx[2], &thread->receiving))
		thread->receiving.length = 0;
	return 0;
}

/* It has six arguments before 5.19. bpf_get_func_ret (5.17). */
SEC("?fexit/tcp_recvmsg")
int tcp_received(unsigned long long *ctx)
{
	struct thread *thread = current_thread();
	struct piece piece;
	__u64 ret = 0;
	int passed;

	if (!thread || !thread->receiving.length)
		return 0;
	piece = thread->receiving;
	thread->receiving.length = 0;
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_func_ret))
		bpf_get_func_ret(ctx, &ret);
	else
		ret = ctx[6];
	passed = (int)ret;
	if (passed <= 0)
		return 0;
	if (piece.length > (__u64)passed)
		piece.length = passed;
	return passes((struct sock *)ctx[0], thread, false, &piece);
}

#endif
