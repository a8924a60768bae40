// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* sslsniff: what programs read from and write to TLS, at the functions of OpenSSL and its kin.
 *
 * The entry of a call keeps its arguments, the return copies the payload: by then the pages are
 * there, and the length is known. The payload goes straight into the ring buffer, in records of a
 * few sizes. Probes in user space are preemptible (kernel 6.0): nothing here is kept per CPU but
 * counters, and those are added to atomically.
 *
 * Beyond those of the headers: bpf_probe_read_user (5.5), bpf_ktime_get_boot_ns and the ring buffer
 * (5.8), bpf_get_attach_cookie (5.15) only if has_cookie.
 */
#include "lib/common.bpf.h"
#include <bpf/bpf_tracing.h>
#include "sslsniff_state.bpf.h"

/* Payload capacities of records. */
#define SMALL 512
#define MEDIUM 4096
#define LARGE 16384
#define HUGE 65536

/* Records of a call at most: BATCH * BATCHES * HUGE is more than INT_MAX. */
#define BATCH 32
#define BATCHES 1024

/* A uretprobe finds the stack pointer where the return instruction left it. */
#if defined(__TARGET_ARCH_x86)
#define RETURN_ADDRESS_SIZE 8
#else
#define RETURN_ADDRESS_SIZE 0
#endif

static __always_inline void count(__u32 counter, __u64 number)
{
	__u64 *value;

	/* Also for the compiler: of the addition of a constant 0 it makes another atomic instruction,
	 * which kernels before 5.12 do not know.
	 */
	if (!number)
		return;
	value = bpf_map_lookup_elem(&counters, &counter);
	/* The value is this CPU's, but another task may run on it in between. */
	if (value)
		__sync_fetch_and_add(value, number);
}

static __always_inline void count_lost(__u64 cause, __u64 calls, __u64 bytes)
{
	if (cause >= SSL_LOST_CAUSES)
		return;
	count(SSL_LOST_CALLS + cause, calls);
	count(SSL_LOST_BYTES + cause, bytes);
}

static __always_inline bool watched(__u32 tgid)
{
	if (targ_pids && !bpf_map_lookup_elem(&pids, &tgid))
		return false;
	if (targ_uids) {
		__u32 uid = bpf_get_current_uid_gid();

		if (!bpf_map_lookup_elem(&uids, &uid))
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

static __always_inline struct connection *connection_of(__u32 tgid, __u64 ssl, __u64 now)
{
	struct connection_key key = { .ssl = ssl, .tgid = tgid };
	struct connection *connection = bpf_map_lookup_elem(&connections, &key);
	struct connection fresh = { .since_ns = now };

	if (connection)
		return connection;
	bpf_map_update_elem(&connections, &key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&connections, &key);
}

/* Fills all of a record but what its kind adds. */
static __always_inline void describe(struct ssl_record *head, __u8 kind, __u8 function, __u64 ssl,
				     const struct connection *connection, __u64 now, __u32 library)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u64 uid_gid = bpf_get_current_uid_gid();

	head->time_ns = now;
	head->ssl = ssl;
	head->since_ns = connection->since_ns;
	head->offset = 0;
	head->length = 0;
	head->call_length = 0;
	head->duration_ns = 0;
	head->cgroup = bpf_get_current_cgroup_id();
	head->captured = 0;
	head->pid = pid_tgid >> 32;
	head->tid = pid_tgid;
	head->uid = uid_gid;
	head->gid = uid_gid >> 32;
	head->library = library;
	head->kind = kind;
	head->function = function;
	head->direction = 0;
	head->flags = 0;
	__builtin_memset(head->pad, 0, sizeof(head->pad));
	bpf_get_current_comm(head->comm, sizeof(head->comm));
}

/* Sends `length` bytes, CAPACITY at most, of the transfer's payload. `length` is bounded by a
 * comparison and not by a mask: a mask would make nothing of a full record.
 */
#define DEFINE_SEND(CAPACITY)                                                            \
	struct record_##CAPACITY {                                                       \
		struct ssl_record head;                                                  \
		__u8 data[CAPACITY];                                                     \
	};                                                                               \
	static __always_inline __u64 send_##CAPACITY(const struct transfer *transfer,    \
						     __u64 length)                       \
	{                                                                                \
		struct record_##CAPACITY *record;                                        \
                                                                                         \
		record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);              \
		if (!record)                                                             \
			return SSL_LOST_RING_FULL;                                       \
		record->head = transfer->head;                                           \
		barrier_var(length);                                                     \
		if (length > CAPACITY)                                                   \
			length = CAPACITY;                                               \
		if (bpf_probe_read_user(record->data, length,                            \
					(void *)(transfer->address + transfer->done))) { \
			bpf_ringbuf_discard(record, 0);                                  \
			return SSL_LOST_UNREADABLE;                                      \
		}                                                                        \
		bpf_ringbuf_submit(record, 0);                                           \
		return SSL_LOST_NOTHING;                                                 \
	}

DEFINE_SEND(SMALL)
DEFINE_SEND(MEDIUM)
DEFINE_SEND(LARGE)
DEFINE_SEND(HUGE)

/* Sends the next record of the thread's transfer; says whether more is to come.
 *
 * Global and not static, here and below: the verifier looks at a global function once, not again
 * for every turn of the loop that calls it (kernel 5.6).
 */
__noinline int send_next(__u64 pid_tgid)
{
	struct thread *thread = bpf_map_lookup_elem(&threads, &pid_tgid);
	struct transfer *transfer;
	__u64 left, length, error;
	bool last;

	if (!thread)
		return 0;
	transfer = &thread->transfer;
	left = transfer->wanted - transfer->done;
	length = left;
	/* Half full at least, so that the ring holds payload and not holes. */
	if (huge_records && left > HUGE / 2) {
		if (length > HUGE)
			length = HUGE;
	} else if (length > LARGE) {
		length = LARGE;
	}
	last = length == left;
	transfer->head.offset = transfer->offset + transfer->done;
	transfer->head.captured = length;
	transfer->head.length = last ? length + transfer->cut : length;
	transfer->head.flags = (last ? SSL_FLAG_LAST : 0) | (transfer->lost ? SSL_FLAG_GAP : 0);
	if (length > LARGE)
		error = send_HUGE(transfer, length);
	else if (length > MEDIUM)
		error = send_LARGE(transfer, length);
	else if (length > SMALL)
		error = send_MEDIUM(transfer, length);
	else
		error = send_SMALL(transfer, length);
	transfer->done += length;
	if (error) {
		count_lost(error, 0, length);
		if (!transfer->lost)
			transfer->lost = error;
	}
	return !last;
}

__noinline int send_batch(__u64 pid_tgid)
{
	for (int i = 0; i < BATCH; i++)
		if (!send_next(pid_tgid))
			return 0;
	return 1;
}

static __always_inline struct thread *thread_of(__u64 pid_tgid)
{
	struct thread *thread = bpf_map_lookup_elem(&threads, &pid_tgid);

	if (thread)
		return thread;
	bpf_map_update_elem(&threads, &pid_tgid, &new_thread, BPF_NOEXIST);
	return bpf_map_lookup_elem(&threads, &pid_tgid);
}

/* The call of this function that has its return address at `stack`. */
static __always_inline struct call *find_call(struct thread *thread, __u8 function, __u64 stack)
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
static __always_inline struct call *new_call(struct thread *thread, __u8 function, __u64 stack)
{
	struct call *call = find_call(thread, function, stack);

	if (call)
		return call;
	for (int i = 0; i < MAX_NESTED; i++) {
		call = &thread->calls[i];
		if (!call->under_way)
			return call;
	}
	return &thread->calls[thread->oldest++ % MAX_NESTED];
}

static __always_inline int enter(struct pt_regs *ctx, __u8 function)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct thread *thread;
	struct call *call;

	if (!watched(pid_tgid >> 32))
		return 0;
	/* No room is counted at the return, where the length is known. */
	thread = thread_of(pid_tgid);
	if (!thread)
		return 0;
	call = new_call(thread, function, PT_REGS_SP(ctx));
	call->stack = PT_REGS_SP(ctx);
	call->ssl = PT_REGS_PARM1(ctx);
	call->buffer = PT_REGS_PARM2(ctx);
	call->length = PT_REGS_PARM4(ctx);
	call->start_ns = bpf_ktime_get_boot_ns();
	call->library = has_cookie ? bpf_get_attach_cookie(ctx) : 0;
	call->function = function;
	call->under_way = 1;
	if (function == SSL_FN_DO_HANDSHAKE) {
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
static __always_inline struct call *leave(struct pt_regs *ctx, struct thread *thread, __u8 function,
					  __u64 lost_bytes, bool lost)
{
	struct call *call = NULL;

	if (thread)
		call = find_call(thread, function, PT_REGS_SP(ctx) - RETURN_ADDRESS_SIZE);
	if (!call) {
		if (lost) {
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

/* SSL_read and SSL_write return the length, the _ex functions 1 and leave it in memory. */
static __always_inline int leave_data(struct pt_regs *ctx, __u8 function, __u8 direction, bool ex)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct connection *connection;
	struct transfer *transfer;
	struct thread *thread;
	struct call *call;
	__u64 length, now;
	int ret;

	if (!watched(pid_tgid >> 32))
		return 0;
	ret = PT_REGS_RC(ctx);
	thread = bpf_map_lookup_elem(&threads, &pid_tgid);
	call = leave(ctx, thread, function, ex ? 0 : ret, ex ? ret == 1 : ret > 0);
	if (!call || !thread || ret <= 0)
		return 0;
	length = ret;
	if (ex) {
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
	transfer->done = 0;
	transfer->cut = length - transfer->wanted;
	transfer->offset = connection->offset[direction];
	transfer->lost = SSL_LOST_NOTHING;
	connection->offset[direction] += length;
	count(SSL_CUT_BYTES, transfer->cut);
	describe(&transfer->head, SSL_DATA, function, call->ssl, connection, now, call->library);
	transfer->head.direction = direction;
	transfer->head.call_length = length;
	transfer->head.duration_ns = now - call->start_ns;
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

static __always_inline void send_handshake(__u64 ssl, struct connection *connection, __u64 now,
					   __u32 library, __u8 flags)
{
	struct ssl_record *record = start_event();

	if (record) {
		describe(record, SSL_HANDSHAKE, SSL_FN_DO_HANDSHAKE, ssl, connection, now, library);
		record->duration_ns = now - connection->handshake_ns;
		record->flags = SSL_FLAG_LAST | flags;
		bpf_ringbuf_submit(record, 0);
	}
	connection->handshake_ns = 0;
}

/* Without SSL_get_error() nobody knows whether a handshake that returns 0 or less has failed or
 * only waits for the socket: it has failed if the connection is freed before it is done.
 */
static __always_inline int leave_handshake(struct pt_regs *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct connection *connection;
	struct thread *thread;
	struct call *call;
	__u64 now;

	if (!watched(pid_tgid >> 32))
		return 0;
	thread = bpf_map_lookup_elem(&threads, &pid_tgid);
	call = leave(ctx, thread, SSL_FN_DO_HANDSHAKE, 0, (int)PT_REGS_RC(ctx) == 1);
	if (!call || (int)PT_REGS_RC(ctx) != 1)
		return 0;
	now = bpf_ktime_get_boot_ns();
	connection = connection_of(pid_tgid >> 32, call->ssl, now);
	if (connection && connection->handshake_ns)
		send_handshake(call->ssl, connection, now, call->library, SSL_FLAG_DONE);
	return 0;
}

/* Of an object that others refer to it only drops a reference; the connection then goes on under
 * another number.
 */
static __always_inline int free_connection(struct pt_regs *ctx)
{
	struct connection_key key = {
		.ssl = PT_REGS_PARM1(ctx),
		.tgid = bpf_get_current_pid_tgid() >> 32,
	};
	__u32 library = has_cookie ? bpf_get_attach_cookie(ctx) : 0;
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
		send_handshake(key.ssl, connection, now, library, 0);
	record = start_event();
	if (record) {
		describe(record, SSL_CLOSE, SSL_FN_FREE, key.ssl, connection, now, library);
		record->offset = connection->offset[SSL_READ];
		record->length = connection->offset[SSL_WRITE];
		record->duration_ns = now - connection->since_ns;
		record->flags = SSL_FLAG_LAST;
		bpf_ringbuf_submit(record, 0);
	}
	bpf_map_delete_elem(&connections, &key);
	return 0;
}

SEC("uprobe")
int enter_read(struct pt_regs *ctx)
{
	return enter(ctx, SSL_FN_READ);
}

SEC("uretprobe")
int leave_read(struct pt_regs *ctx)
{
	return leave_data(ctx, SSL_FN_READ, SSL_READ, false);
}

SEC("uprobe")
int enter_write(struct pt_regs *ctx)
{
	return enter(ctx, SSL_FN_WRITE);
}

SEC("uretprobe")
int leave_write(struct pt_regs *ctx)
{
	return leave_data(ctx, SSL_FN_WRITE, SSL_WRITE, false);
}

SEC("uprobe")
int enter_read_ex(struct pt_regs *ctx)
{
	return enter(ctx, SSL_FN_READ_EX);
}

SEC("uretprobe")
int leave_read_ex(struct pt_regs *ctx)
{
	return leave_data(ctx, SSL_FN_READ_EX, SSL_READ, true);
}

SEC("uprobe")
int enter_write_ex(struct pt_regs *ctx)
{
	return enter(ctx, SSL_FN_WRITE_EX);
}

SEC("uretprobe")
int leave_write_ex(struct pt_regs *ctx)
{
	return leave_data(ctx, SSL_FN_WRITE_EX, SSL_WRITE, true);
}

SEC("uprobe")
int enter_do_handshake(struct pt_regs *ctx)
{
	return enter(ctx, SSL_FN_DO_HANDSHAKE);
}

SEC("uretprobe")
int leave_do_handshake(struct pt_regs *ctx)
{
	return leave_handshake(ctx);
}

SEC("uprobe")
int enter_free(struct pt_regs *ctx)
{
	return free_connection(ctx);
}

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
