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
#include "sslsniff_socket.bpf.h"

/* A uretprobe finds the stack pointer where the return instruction left it. */
#if defined(__TARGET_ARCH_x86)
#define RETURN_ADDRESS_SIZE 8
#else
#define RETURN_ADDRESS_SIZE 0
#endif

/* What functions have in common: sets of enum ssl_function. */
#define BIT(function) (1U << (function))
#define HAS(set, function) ((set) >> (function) & 1)

/* They return 1 and leave the length in memory: at their fourth argument, or at their fifth. */
#define AT_FOURTH                                                           \
	(BIT(SSL_FN_READ_EX) | BIT(SSL_FN_WRITE_EX) | BIT(SSL_FN_PEEK_EX) | \
	 BIT(SSL_FN_READ_EARLY) | BIT(SSL_FN_WRITE_EARLY))
#define AT_FIFTH BIT(SSL_FN_WRITE_EX2)
/* They return the length, as an int or as a ssize_t. */
#define RETURNS_INT (BIT(SSL_FN_READ) | BIT(SSL_FN_WRITE) | BIT(SSL_FN_PEEK))
#define RETURNS_LONG \
	(BIT(SSL_FN_SENDFILE) | BIT(GNUTLS_FN_RECV) | BIT(GNUTLS_FN_SEND) | BIT(GNUTLS_FN_SEND2))
#define MOVES_DATA (AT_FOURTH | AT_FIFTH | RETURNS_INT | RETURNS_LONG)
#define WRITES                                                                  \
	(BIT(SSL_FN_WRITE) | BIT(SSL_FN_WRITE_EX) | BIT(SSL_FN_WRITE_EX2) |     \
	 BIT(SSL_FN_WRITE_EARLY) | BIT(SSL_FN_SENDFILE) | BIT(GNUTLS_FN_SEND) | \
	 BIT(GNUTLS_FN_SEND2))
#define PEEKS (BIT(SSL_FN_PEEK) | BIT(SSL_FN_PEEK_EX))
#define HANDSHAKES (BIT(SSL_FN_DO_HANDSHAKE) | BIT(GNUTLS_FN_HANDSHAKE))
#define SHUTDOWNS (BIT(SSL_FN_SHUTDOWN) | BIT(GNUTLS_FN_BYE))
#define FREES (BIT(SSL_FN_FREE) | BIT(GNUTLS_FN_DEINIT))
#define GNUTLS (BIT(GNUTLS_FN_HANDSHAKE) | BIT(GNUTLS_FN_BYE))

/* gnutls/gnutls.h: errors after which the same call is made again. */
#define GNUTLS_E_WARNING_ALERT_RECEIVED -16
#define GNUTLS_E_AGAIN -28
#define GNUTLS_E_GOT_APPLICATION_DATA -38
#define GNUTLS_E_INTERRUPTED -52

/* openssl/tls1.h: what SSL_set_tlsext_host_name() makes SSL_ctrl() do. */
#define SSL_CTRL_SET_TLSEXT_HOSTNAME 55

static __always_inline bool watched(__u32 tgid)
{
	if (targ_pids && !bpf_map_lookup_elem(&pids, &tgid))
		return false;
	if (targ_uids) {
		__u32 uid = bpf_get_current_uid_gid();

		if (!bpf_map_lookup_elem(&uids, &uid))
			return false;
	}
	if (targ_cgroups) {
		bool inside = false;

		for (__u32 i = 0; i < MAX_CGROUPS && i < targ_cgroups; i++)
			inside = inside || bpf_current_task_under_cgroup(&cgroups, i) == 1;
		if (!inside)
			return false;
	}
	if (targ_comms) {
		struct comm comm = {};

		bpf_get_current_comm(comm.text, sizeof(comm.text));
		if (!bpf_map_lookup_elem(&comms, &comm))
			return false;
	}
	return true;
}

/* Calls that found no room as they began, and those of them that have returned. A return whose beginning
 * is not known is one of them, or of a call that was under way as the probes came: of that the kernel tells
 * if another program's return probe was there before.
 */
__u64 calls_without_room, returns_without_room;

static __always_inline struct thread *thread_of(__u64 pid_tgid)
{
	struct thread *thread = bpf_map_lookup_elem(&threads, &pid_tgid);

	if (thread)
		return thread;
	bpf_map_update_elem(&threads, &pid_tgid, &new_thread, BPF_NOEXIST);
	return bpf_map_lookup_elem(&threads, &pid_tgid);
}

/* The call of this function that has its return address at `stack`. */
static __always_inline struct call *find_call(struct thread *thread, __u32 function, __u64 stack)
{
	for (int i = 0; i < MAX_NESTED; i++) {
		struct call *call = &thread->calls[i];

		if (call->stack == stack && call->function == function)
			return call;
	}
	return NULL;
}

/* Room for a call. A call that never returned (longjmp) keeps its place until another has the same
 * stack pointer, or until there is no other place.
 */
static __always_inline struct call *new_call(struct thread *thread, __u32 function, __u64 stack)
{
	struct call *call = find_call(thread, function, stack);

	if (call)
		return call;
	for (int i = 0; i < MAX_NESTED; i++) {
		call = &thread->calls[i];
		if (!call->under_way)
			return call;
	}
	__sync_fetch_and_add(&calls_without_room, 1);
	return &thread->calls[thread->oldest++ % MAX_NESTED];
}

/* Whether `call`, about to be made, does the work of another that is under way: SSL_write_ex may call
 * SSL_write_ex2, the early data functions call the plain ones, and BoringSSL's SSL_read SSL_peek. They
 * pass on where the bytes are. A tail call leaves the stack where it was.
 */
static __always_inline bool is_inner(struct thread *thread, const struct call *call)
{
	for (int i = 0; i < MAX_NESTED; i++) {
		const struct call *outer = &thread->calls[i];

		if (outer->under_way && outer->ssl == call->ssl && outer->buffer == call->buffer &&
		    outer->function != call->function && outer->stack >= call->stack &&
		    HAS(MOVES_DATA, outer->function & 31))
			return true;
	}
	return false;
}

static __always_inline int enter(struct pt_regs *ctx, __u32 function, __u32 library)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u64 third = PT_REGS_PARM3(ctx), fifth = PT_REGS_PARM5(ctx), stack = PT_REGS_SP(ctx);
	struct thread *thread;
	struct call *call;

	/* A choice among arguments must not become one among places of the context. */
	barrier_var(third);
	barrier_var(fifth);
	barrier_var(stack);
	if (!watched(pid_tgid >> 32))
		return 0;
	/* No room is counted at the return, where the length is known. */
	thread = thread_of(pid_tgid);
	if (!thread) {
		__sync_fetch_and_add(&calls_without_room, 1);
		return 0;
	}
	call = new_call(thread, function, stack);
	call->stack = stack;
	call->ssl = PT_REGS_PARM1(ctx);
	call->buffer = PT_REGS_PARM2(ctx);
	if (HAS(AT_FIFTH, function))
		call->length = fifth;
	else if (function == SSL_FN_GET_ALPN)
		call->length = third;
	else
		call->length = PT_REGS_PARM4(ctx);
	call->start_ns = bpf_ktime_get_boot_ns();
	call->library = library;
	call->function = function;
	call->under_way = 0;
	call->inner = HAS(MOVES_DATA, function) && is_inner(thread, call);
	call->under_way = 1;
	if (HAS(HANDSHAKES, function)) {
		struct connection *connection;

		connection = connection_of(pid_tgid >> 32, call->ssl, call->start_ns);
		if (connection && !connection->handshake_ns)
			connection->handshake_ns = call->start_ns;
	}
	return 0;
}

/* The call that returns, or NULL. It is over whatever it returned; its entry stays, so that a
 * second probe at the same place (one file under two inode numbers, as overlayfs has them) finds
 * that its work is done.
 */
static __always_inline struct call *leave(struct pt_regs *ctx, struct thread *thread,
					  __u32 function, __u64 lost_bytes, bool lost)
{
	struct call *call = NULL;

	if (thread)
		call = find_call(thread, function, PT_REGS_SP(ctx) - RETURN_ADDRESS_SIZE);
	if (!call) {
		if (returns_without_room >= calls_without_room ||
		    !watched(bpf_get_current_pid_tgid() >> 32))
			return NULL;
		__sync_fetch_and_add(&returns_without_room, 1);
		if (lost) {
			if (lost_bytes > INT_MAX)
				lost_bytes = 0;
			count(SSL_SEEN_CALLS, 1);
			count(SSL_SEEN_BYTES, lost_bytes);
			count_lost(SSL_LOST_STATE_FULL, 1, lost_bytes);
		}
		return NULL;
	}
	if (!call->under_way)
		return NULL;
	call->under_way = 0;
	return call;
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
	if (!call || !thread || ret <= 0 || call->inner)
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
	connection = connection_of(pid_tgid >> 32, call->ssl, now);
	if (!connection) {
		count_lost(SSL_LOST_STATE_FULL, 1, length);
		return 0;
	}
	transfer = &thread->transfer;
	transfer->address = call->buffer;
	transfer->wanted = length > targ_max_bytes ? targ_max_bytes : length;
	/* The bytes of a file never are in the program's memory. */
	if (function == SSL_FN_SENDFILE)
		transfer->wanted = 0;
	transfer->done = 0;
	transfer->cut = length - transfer->wanted;
	transfer->lost = SSL_LOST_NOTHING;
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

/* A record without payload. */
static __always_inline struct ssl_record *start_event(void)
{
	struct ssl_record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	count(SSL_SEEN_CALLS, 1);
	if (!record)
		count_lost(SSL_LOST_RING_FULL, 1, 0);
	return record;
}

static __always_inline void send_handshake(__u32 function, __u64 ssl, struct connection *connection,
					   __u64 now, __u32 library, __u8 flags)
{
	struct ssl_record *record = start_event();

	if (record) {
		describe(record, SSL_HANDSHAKE, function, ssl, connection, now, library);
		record->duration_ns = now - connection->handshake_ns;
		record->flags = SSL_FLAG_LAST | flags;
		bpf_ringbuf_submit(record, 0);
	}
	connection->handshake_ns = 0;
}

/* How a handshake or a shutdown ended: SSL_FLAG_DONE, SSL_FLAG_FAILED, or zero if it is not over.
 * Without SSL_get_error() nobody knows whether OpenSSL's, which return 0 or less, have failed or only
 * wait for the socket: a handshake has failed if the connection is freed before it is done.
 */
static __always_inline __u8 outcome(__u32 function, int ret)
{
	if (!HAS(GNUTLS, function))
		return ret == 1 ? SSL_FLAG_DONE : 0;
	switch (ret) {
	case 0:
		return SSL_FLAG_DONE;
	case GNUTLS_E_WARNING_ALERT_RECEIVED:
	case GNUTLS_E_AGAIN:
	case GNUTLS_E_GOT_APPLICATION_DATA:
	case GNUTLS_E_INTERRUPTED:
		return 0;
	default:
		return ret < 0 ? SSL_FLAG_FAILED : 0;
	}
}

static __always_inline int leave_handshake(struct pt_regs *ctx, __u32 function)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u8 flags = outcome(function, PT_REGS_RC(ctx));
	struct connection *connection;
	struct thread *thread;
	struct call *call;
	__u64 now;

	thread = bpf_map_lookup_elem(&threads, &pid_tgid);
	call = leave(ctx, thread, function, 0, flags != 0);
	if (!call || !flags)
		return 0;
	now = bpf_ktime_get_boot_ns();
	connection = connection_of(pid_tgid >> 32, call->ssl, now);
	if (!connection) {
		count(SSL_SEEN_CALLS, 1);
		count_lost(SSL_LOST_STATE_FULL, 1, 0);
	} else if (connection->handshake_ns) {
		send_stack(ctx, call, connection, now);
		send_handshake(function, call->ssl, connection, now, call->library, flags);
	}
	return 0;
}

/* Told when the program has said that it is done; the peer may or may not have said so. */
static __always_inline int leave_closing(struct pt_regs *ctx, __u32 function)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	int ret = PT_REGS_RC(ctx);
	struct connection_key key = { .tgid = pid_tgid >> 32 };
	struct connection *connection;
	struct ssl_record *record;
	struct thread *thread;
	struct call *call;
	__u64 now;

	thread = bpf_map_lookup_elem(&threads, &pid_tgid);
	call = leave(ctx, thread, function, 0, ret >= 0);
	if (!call || ret < 0)
		return 0;
	key.ssl = call->ssl;
	connection = bpf_map_lookup_elem(&connections, &key);
	if (!connection)
		return 0;
	now = bpf_ktime_get_boot_ns();
	record = start_event();
	if (!record)
		return 0;
	describe(record, SSL_SHUTDOWN, function, call->ssl, connection, now, call->library);
	record->duration_ns = now - call->start_ns;
	record->flags = SSL_FLAG_LAST | outcome(function, ret);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* Of an object that others refer to it only drops a reference; the connection then goes on under
 * another number.
 */
static __always_inline int free_connection(struct pt_regs *ctx, __u32 function, __u32 library)
{
	struct connection_key key = {
		.ssl = PT_REGS_PARM1(ctx),
		.tgid = bpf_get_current_pid_tgid() >> 32,
	};
	struct connection *connection;
	struct ssl_record *record;
	__u64 now;

	if (!watched(key.tgid))
		return 0;
	connection = bpf_map_lookup_elem(&connections, &key);
	if (!connection)
		return 0;
	now = bpf_ktime_get_boot_ns();
	if (connection->handshake_ns)
		send_handshake(function == SSL_FN_FREE ? SSL_FN_DO_HANDSHAKE : GNUTLS_FN_HANDSHAKE,
			       key.ssl, connection, now, library, 0);
	record = start_event();
	if (record) {
		describe(record, SSL_CLOSE, function, key.ssl, connection, now, library);
		record->offset = connection->offset[SSL_READ];
		record->length = connection->offset[SSL_WRITE];
		record->duration_ns = now - connection->since_ns;
		record->flags = SSL_FLAG_LAST;
		bpf_ringbuf_submit(record, 0);
	}
	bpf_map_delete_elem(&connections, &key);
	return 0;
}

/* Names of servers and of protocols have at most 255 bytes (RFC 6066, RFC 7301). */
#define LONGEST_FACT 256

struct fact_record {
	struct ssl_record head;
	char text[LONGEST_FACT];
};

/* Sends what a program asks or tells its library about a connection. `length` is 0 if the text ends
 * with a zero byte; a fact may have no text.
 */
static __always_inline int send_fact(__u32 function, __u64 ssl, __u32 library, __u64 text,
				     __u32 length)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct connection *connection;
	struct fact_record *record;
	long read;

	count(SSL_SEEN_CALLS, 1);
	connection = connection_of(bpf_get_current_pid_tgid() >> 32, ssl, now);
	if (!connection) {
		count_lost(SSL_LOST_STATE_FULL, 1, 0);
		return 0;
	}
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record) {
		count_lost(SSL_LOST_RING_FULL, 1, 0);
		return 0;
	}
	describe(&record->head, SSL_FACT, function, ssl, connection, now, library);
	if (!text) {
		read = 0;
	} else if (length) {
		barrier_var(length);
		if (length >= LONGEST_FACT)
			length = LONGEST_FACT - 1;
		read = bpf_probe_read_user(record->text, length, (void *)text);
		read = read ? read : length;
	} else {
		read = bpf_probe_read_user_str(record->text, sizeof(record->text), (void *)text);
		read--;
	}
	if (read < 0 || read >= LONGEST_FACT) {
		bpf_ringbuf_discard(record, 0);
		count_lost(SSL_LOST_UNREADABLE, 1, 0);
		return 0;
	}
	record->head.flags = SSL_FLAG_LAST;
	record->head.captured = read;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* SSL_set_tlsext_host_name() is a macro for SSL_ctrl(ssl, command, type, name). */
static __always_inline int enter_ctrl(struct pt_regs *ctx, __u32 library)
{
	if ((int)PT_REGS_PARM2(ctx) != SSL_CTRL_SET_TLSEXT_HOSTNAME ||
	    !watched(bpf_get_current_pid_tgid() >> 32))
		return 0;
	return send_fact(SSL_FN_CTRL, PT_REGS_PARM1(ctx), library, PT_REGS_PARM4(ctx), 0);
}

/* The functions that return text, or a number, or leave where text is and how long. */
static __always_inline int leave_fact(struct pt_regs *ctx, __u32 function)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	bool tells = function == SSL_FN_GET_ALPN || PT_REGS_RC(ctx);
	struct thread *thread;
	__u32 length = 0;
	struct call *call;
	__u64 text;

	thread = bpf_map_lookup_elem(&threads, &pid_tgid);
	text = PT_REGS_RC(ctx);
	call = leave(ctx, thread, function, 0, tells);
	if (!call || !thread)
		return 0;
	if (function == SSL_FN_SESSION_REUSED)
		return (int)text == 1 ? send_fact(function, call->ssl, call->library, 0, 0) : 0;
	if (function == SSL_FN_GET_ALPN &&
	    (bpf_probe_read_user(&text, sizeof(text), (void *)call->buffer) ||
	     bpf_probe_read_user(&length, sizeof(length), (void *)call->length) || !length))
		return 0;
	if (!text)
		return 0;
	return send_fact(function, call->ssl, call->library, text, length);
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

SEC("uprobe")
int any_enters(struct pt_regs *ctx)
{
	__u64 cookie = cookie_of(ctx);
	__u32 function = cookie >> SSL_COOKIE_FUNCTION;

	if (function >= SSL_FUNCTIONS) {
		keep_own_stack(ctx);
		return 0;
	}
	if (HAS(FREES, function))
		return free_connection(ctx, function, cookie);
	if (function == SSL_FN_CTRL)
		return enter_ctrl(ctx, cookie);
	return enter(ctx, function, cookie);
}

SEC("uprobe")
int any_leaves(struct pt_regs *ctx)
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
	return leave_fact(ctx, function);
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

/* Args: the task_struct of the thread that ends, which is the current one. */
SEC("raw_tp/sched_process_exit")
int thread_exits(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u32 tgid = pid_tgid >> 32;

	bpf_map_delete_elem(&threads, &pid_tgid);
	if (targ_pids) {
		struct task_struct *task = (struct task_struct *)ctx->args[0];

		/* Its number may be another's next. */
		if (!BPF_CORE_READ(task, signal, live.counter))
			bpf_map_delete_elem(&pids, &tgid);
	}
	return 0;
}
