// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* sslsniff: what programs read from and write to TLS, at the functions of OpenSSL and its kin, and of
 * GnuTLS.
 *
 * The entry of a call keeps its arguments, the return copies the payload: by then the pages are
 * there, and the length is known. The payload goes straight into the ring buffer, in records of a
 * few sizes. Probes in user space are preemptible (kernel 6.0): nothing here is kept per CPU but
 * counters, and those are added to atomically.
 *
 * Beyond those of the headers: bpf_current_task_under_cgroup (4.9), bpf_probe_read_user and its _str
 * (5.5), bpf_get_stack (4.18), bpf_ktime_get_boot_ns and the ring buffer (5.8), bpf_get_attach_cookie
 * (5.15) only where probes have cookies, bpf_tail_call (4.2).
 */
#include "lib/common.bpf.h"
#include <bpf/bpf_tracing.h>
#include "sslsniff_state.bpf.h"
#include "sslsniff_send.bpf.h"
#include "sslsniff_handshake.bpf.h"
#include "sslsniff_calls.bpf.h"
#include "sslsniff_connection.bpf.h"
#include "sslsniff_socket.bpf.h"
#include "sslsniff_hold.bpf.h"

/* gnutls_record_send(session, bytes, size) that found no room may be made again as (session, NULL, 0): the
 * bytes are remembered for that.
 */
static __always_inline void remember_pending(const struct call *call, __u64 tgid)
{
	struct connection *connection;

	if (!call->buffer || call->inner)
		return;
	connection = connection_of(tgid, call->ssl, call->start_ns);
	if (connection)
		connection->pending = call->buffer;
}

static __always_inline int leave_data(struct pt_regs *ctx, __u32 function)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u32 direction = HAS(WRITES, function);
	bool in_memory = HAS(AT_FOURTH | AT_FIFTH, function);
	struct connection *connection;
	struct transfer *transfer;
	struct thread *thread;
	struct call *call;
	__u64 length, now;
	__s64 ret;

	ret = HAS(RETURNS_LONG, function) ? (__s64)PT_REGS_RC(ctx) : (int)PT_REGS_RC(ctx);
	thread = bpf_map_lookup_elem(&threads, &pid_tgid);
	call = leave(ctx, thread, function, in_memory ? 0 : ret, in_memory ? ret == 1 : ret > 0);
	if (!call || !thread)
		return 0;
	if (HAS(GNUTLS_SENDS, function) && (ret == GNUTLS_E_AGAIN || ret == GNUTLS_E_INTERRUPTED))
		remember_pending(call, pid_tgid >> 32);
	if (ret <= 0 || call->inner)
		return 0;
	length = ret;
	if (in_memory) {
		if (ret != 1)
			return 0;
		if (bpf_probe_read_user(&length, sizeof(length), (void *)call->length)) {
			count(SSL_SEEN_CALLS, 1);
			count_lost(SSL_LOST_UNREADABLE, 1, 0);
			return 0;
		}
		if (!length)
			return 0;
	}
	count(SSL_SEEN_CALLS, 1);
	/* No call moves so much (MAX_RW_COUNT, linux/fs.h): it is not what the library left there. */
	if (length > INT_MAX) {
		count_lost(SSL_LOST_UNREADABLE, 1, 0);
		return 0;
	}
	count(SSL_SEEN_BYTES, length);
	now = bpf_ktime_get_boot_ns();
	connection = connection_used(thread, call->ssl, now);
	if (!connection) {
		count_lost(SSL_LOST_STATE_FULL, 1, length);
		return 0;
	}
	find_peer(connection, call->ssl, function, call->library);
	/* A handshake that was left under way has been done by this, or before it. */
	if (!HAS(EARLY, function) && connection->handshake_ns) {
		connection->handshake_ns = 0;
		connection->done = 1;
	}
	transfer = &thread->transfer;
	transfer->address = call->buffer;
	if (!transfer->address && HAS(GNUTLS_SENDS, function))
		transfer->address = connection->pending;
	transfer->wanted = length > targ_max_bytes ? targ_max_bytes : length;
	/* The bytes of a file never are in the program's memory. */
	if (function == SSL_FN_SENDFILE)
		transfer->wanted = 0;
	transfer->done = 0;
	transfer->cut = length - transfer->wanted;
	transfer->lost = SSL_LOST_NOTHING;
	transfer->unreadable = 0;
	/* Not indexed: clang would make of it an access that the verifier cannot follow. */
	if (direction == SSL_WRITE) {
		transfer->offset = connection->offset[SSL_WRITE];
		connection->offset[SSL_WRITE] += length;
	} else {
		transfer->offset = connection->offset[SSL_READ];
		if (!HAS(PEEKS, function))
			connection->offset[SSL_READ] += length;
	}
	count(SSL_CUT_BYTES, transfer->cut);
	send_stack(ctx, call, connection, now);
	describe(&transfer->head, SSL_DATA, function, call->ssl, connection, now, call->library);
	transfer->head.direction = direction;
	transfer->head.call_length = length;
	transfer->head.duration_ns = now - call->start_ns;
	transfer->flags = HAS(PEEKS, function) ? SSL_FLAG_PEEK : 0;
	for (int i = 0; i < BATCHES; i++)
		if (!send_batch(pid_tgid))
			break;
	/* More than 2 GiB, or more than 512 MiB through a small ring. */
	if (transfer->done < transfer->wanted) {
		count_lost(SSL_LOST_RING_FULL, 0, transfer->wanted - transfer->done);
		if (!transfer->lost)
			transfer->lost = SSL_LOST_RING_FULL;
	}
	if (transfer->lost)
		count_lost(transfer->lost, 1, 0);
	return 0;
}

/* What was sent within it was told of before. */
static __always_inline int leave_uncork(struct pt_regs *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct thread *thread = bpf_map_lookup_elem(&threads, &pid_tgid);

	leave(ctx, thread, GNUTLS_FN_UNCORK, 0, false);
	return 0;
}

/* any_enters and any_leaves, for the programs of single functions to go on with.
 * Key: ENTERS or LEAVES, 4 bytes. Value: a program's descriptor, 4 bytes.
 */
#define ENTERS 0
#define LEAVES 1
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} common SEC(".maps");

/* Which function was called, from the program for it to the common one: kernels without cookies do not
 * interrupt one of these for another.
 * Key: 0, 4 bytes. Value: a cookie as of SSL_COOKIE_FUNCTION, without a library, 8 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} called SEC(".maps");

static __always_inline __u64 cookie_of(struct pt_regs *ctx)
{
	__u64 *cookie;
	__u32 zero = 0;

	if (has_cookie)
		return bpf_get_attach_cookie(ctx);
	cookie = bpf_map_lookup_elem(&called, &zero);
	return cookie ? *cookie : ~0ULL;
}

/* A program that has a tail call, made or not, keeps its variables on the stack of the task. Without, the
 * kernel may keep them in memory that the program has once for each processor (a private stack: kernel
 * 6.13 on x86-64, later on arm64), for programs of this type without a look at where they run. Here they
 * are preempted: another task that enters the program on this processor then writes over the variables
 * of the first one, whose calls would end early or be told as another's. Older kernels of arm64 refuse
 * tail calls beside functions of their own (before 6.0).
 */
static __always_inline void keep_own_stack(struct pt_regs *ctx)
{
	/* Empty where this is set. */
	if (is_preempted)
		bpf_tail_call_static(ctx, &common, ENTERS);
}

static __always_inline int passes_in(struct pt_regs *ctx)
{
	__u64 cookie = cookie_of(ctx);
	__u32 function = cookie >> SSL_COOKIE_FUNCTION;

	if (function >= SSL_FUNCTIONS) {
		keep_own_stack(ctx);
		return NO_RETURN;
	}
	if (HAS(ENTRY_ALONE, function)) {
		if (HAS(FREES, function))
			free_connection(ctx, function, cookie);
		else if (HAS(RESTARTS, function))
			restart_connection(ctx, function, cookie);
		else if (HAS(NAMES, function))
			enter_name(ctx, function, cookie);
		else if (HAS(SETS_BIO, function))
			enter_bio(ctx, function);
		else if (HAS(SHARES, function))
			share_connection(ctx);
		else if (HAS(MAKES_RANDOM, function))
			note_random(ctx, function, cookie);
		else
			error_raised(ctx, function);
		return NO_RETURN;
	}
	if (function == CRYPTO_FN_DERIVE)
		return begin_derivation(ctx);
	return enter(ctx, function, cookie);
}

static __always_inline int passes_out(struct pt_regs *ctx)
{
	__u32 function = cookie_of(ctx) >> SSL_COOKIE_FUNCTION;

	if (function >= SSL_FUNCTIONS) {
		keep_own_stack(ctx);
		return 0;
	}
	if (HAS(MOVES_DATA, function))
		return leave_data(ctx, function);
	if (HAS(HANDSHAKES, function))
		return leave_handshake(ctx, function);
	if (HAS(SHUTDOWNS, function))
		return leave_closing(ctx, function);
	if (HAS(SETS_FD, function))
		return leave_fd(ctx, function);
	if (function == CRYPTO_FN_DERIVE)
		return end_derivation(ctx);
	if (function == GNUTLS_FN_UNCORK)
		return leave_uncork(ctx);
	return leave_fact(ctx, function);
}

SEC("uprobe")
int any_enters(struct pt_regs *ctx)
{
	passes_in(ctx);
	return 0;
}

SEC("uprobe")
int any_leaves(struct pt_regs *ctx)
{
	return passes_out(ctx);
}

/* Whether a session's program runs at the return: without an argument before kernel 7.0. */
extern bool bpf_session_is_return(void) __ksym __weak;
extern bool bpf_session_is_return___of(void *ctx) __ksym __weak;

/* Both in one, where the kernel has that (6.13): a call that is not watched takes no trap at its return, and one that
 * is takes less.
 */
SEC("?uprobe.session")
int any_passes(struct pt_regs *ctx)
{
	bool returns = false;

	if (bpf_ksym_exists(bpf_session_is_return))
		returns = bpf_session_is_return();
	else if (bpf_ksym_exists(bpf_session_is_return___of))
		returns = bpf_session_is_return___of(ctx);
	return returns ? passes_out(ctx) : passes_in(ctx);
}

static __always_inline int go_on(struct pt_regs *ctx, __u64 function, const __u32 with)
{
	__u32 zero = 0;
	__u64 *cookie = bpf_map_lookup_elem(&called, &zero);

	if (cookie)
		*cookie = function << SSL_COOKIE_FUNCTION;
	bpf_tail_call_static(ctx, &common, with);
	return 0;
}

/* Without cookies there is a program for each function, and nobody knows the library. */
#define DEFINE_ENTRY(NAME, FUNCTION)                 \
	SEC("uprobe")                                \
	int enter_##NAME(struct pt_regs *ctx)        \
	{                                            \
		return go_on(ctx, FUNCTION, ENTERS); \
	}
#define DEFINE_CALL(NAME, FUNCTION)                  \
	DEFINE_ENTRY(NAME, FUNCTION)                 \
	SEC("uretprobe")                             \
	int leave_##NAME(struct pt_regs *ctx)        \
	{                                            \
		return go_on(ctx, FUNCTION, LEAVES); \
	}

DEFINE_CALL(read, SSL_FN_READ)
DEFINE_CALL(write, SSL_FN_WRITE)
DEFINE_CALL(read_ex, SSL_FN_READ_EX)
DEFINE_CALL(write_ex, SSL_FN_WRITE_EX)
DEFINE_CALL(write_ex2, SSL_FN_WRITE_EX2)
DEFINE_CALL(peek, SSL_FN_PEEK)
DEFINE_CALL(peek_ex, SSL_FN_PEEK_EX)
DEFINE_CALL(read_early, SSL_FN_READ_EARLY)
DEFINE_CALL(write_early, SSL_FN_WRITE_EARLY)
DEFINE_CALL(sendfile, SSL_FN_SENDFILE)
DEFINE_CALL(gnutls_recv, GNUTLS_FN_RECV)
DEFINE_CALL(gnutls_send, GNUTLS_FN_SEND)
DEFINE_CALL(gnutls_send2, GNUTLS_FN_SEND2)
DEFINE_CALL(do_handshake, SSL_FN_DO_HANDSHAKE)
DEFINE_CALL(gnutls_handshake, GNUTLS_FN_HANDSHAKE)
DEFINE_CALL(shutdown, SSL_FN_SHUTDOWN)
DEFINE_CALL(gnutls_bye, GNUTLS_FN_BYE)
DEFINE_CALL(get_version, SSL_FN_GET_VERSION)
DEFINE_CALL(get_servername, SSL_FN_GET_SERVERNAME)
DEFINE_CALL(get_alpn, SSL_FN_GET_ALPN)
DEFINE_CALL(session_reused, SSL_FN_SESSION_REUSED)
DEFINE_ENTRY(free, SSL_FN_FREE)
DEFINE_ENTRY(gnutls_deinit, GNUTLS_FN_DEINIT)
DEFINE_ENTRY(ssl_ctrl, SSL_FN_CTRL)
DEFINE_CALL(set_fd, SSL_FN_SET_FD)
DEFINE_CALL(set_rfd, SSL_FN_SET_RFD)
DEFINE_CALL(set_wfd, SSL_FN_SET_WFD)
DEFINE_ENTRY(set_bio, SSL_FN_SET_BIO)
DEFINE_ENTRY(set0_rbio, SSL_FN_SET0_RBIO)
DEFINE_ENTRY(set0_wbio, SSL_FN_SET0_WBIO)
DEFINE_ENTRY(random, CRYPTO_FN_RANDOM)
DEFINE_ENTRY(random_ex, CRYPTO_FN_RANDOM_EX)
DEFINE_ENTRY(error, CRYPTO_FN_ERROR)
DEFINE_ENTRY(error_v, CRYPTO_FN_ERROR_V)
DEFINE_CALL(derive, CRYPTO_FN_DERIVE)
DEFINE_ENTRY(set_host_name, SSL_FN_SET_HOST_NAME)
DEFINE_ENTRY(clear, SSL_FN_CLEAR)
DEFINE_ENTRY(set_connect_state, SSL_FN_SET_CONNECT_STATE)
DEFINE_ENTRY(set_accept_state, SSL_FN_SET_ACCEPT_STATE)
DEFINE_CALL(gnutls_uncork, GNUTLS_FN_UNCORK)
DEFINE_ENTRY(up_ref, SSL_FN_UP_REF)

/* Children of watched processes are watched. Args: the parent's and the child's task_struct. */
SEC("raw_tp/sched_process_fork")
int process_forks(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *parent = (struct task_struct *)ctx->args[0];
	struct task_struct *child = (struct task_struct *)ctx->args[1];
	__u32 parent_tgid = BPF_CORE_READ(parent, tgid);
	__u32 tgid = BPF_CORE_READ(child, tgid);
	__u8 nothing = 0;

	if (tgid == parent_tgid || !bpf_map_lookup_elem(&pids, &parent_tgid))
		return 0;
	if (bpf_map_update_elem(&pids, &tgid, &nothing, BPF_ANY))
		count(SSL_MISSED_CHILDREN, 1);
	return 0;
}

/* Tells that the connections of the current process are over, if it had any. Where the ring has no room for that it
 * is a loss, and they stay until others need theirs: whoever has the number next is another incarnation.
 */
static __always_inline void end_connections(__u32 tgid)
{
	struct connection none = {};
	struct ssl_record *record;

	if (bpf_map_delete_elem(&processes, &tgid))
		return;
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record) {
		count(SSL_SEEN_CALLS, 1);
		count_lost(SSL_LOST_RING_FULL, 1, 0);
		return;
	}
	describe(record, SSL_EXIT, 0, 0, &none, bpf_ktime_get_boot_ns(), 0);
	bpf_ringbuf_submit(record, 0);
}

/* Args: the task_struct of the thread that ends, which is the current one. */
SEC("raw_tp/sched_process_exit")
int thread_exits(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u32 tgid = pid_tgid >> 32;

	bpf_map_delete_elem(&threads, &pid_tgid);
	if (BPF_CORE_READ(task, signal, live.counter))
		return 0;
	/* Its number may be another's next. */
	if (targ_pids)
		bpf_map_delete_elem(&pids, &tgid);
	end_connections(tgid);
	return 0;
}

/* Args: the task_struct of the process that is another program now, the number that its thread had, the
 * struct linux_binprm.
 */
SEC("raw_tp/sched_process_exec")
int process_executes(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	__u64 before = (__u64)tgid << 32 | (__u32)ctx->args[1];

	/* The calls that it was in never return. */
	bpf_map_delete_elem(&threads, &before);
	end_connections(tgid);
	return 0;
}
