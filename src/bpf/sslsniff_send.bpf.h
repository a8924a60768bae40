/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How sslsniff counts, and how a payload gets into the ring buffer. */
#ifndef EBPFKIT_SSLSNIFF_SEND_BPF_H
#define EBPFKIT_SSLSNIFF_SEND_BPF_H

#include "sslsniff_state.bpf.h"
#include "lib/stacks.bpf.h"

/* Payload capacities of records. */
#define SMALL 512
#define MEDIUM 4096
#define LARGE 16384
#define HUGE 65536

#define INT_MAX 0x7fffffff

/* Parts of a call that are tried in vain. */
#define MOST_UNREADABLE 4

/* Records of a call at most: BATCH * BATCHES * HUGE is more than INT_MAX. */
#define BATCH 32
#define BATCHES 1024

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

/* Which of the processes with this number it is; zero if it is not known, as none was seen, or there was no room. */
static __always_inline __u64 incarnation_of(__u32 tgid)
{
	__u64 *since = bpf_map_lookup_elem(&processes, &tgid);

	return since ? *since : 0;
}

/* Counts what the current process lost. Global, as the functions below. */
__noinline int count_lost(__u32 cause, __u64 calls, __u64 bytes)
{
	struct ssl_loss_key key = { .tgid = bpf_get_current_pid_tgid() >> 32, .cause = cause };
	struct ssl_loss *loss;

	if (cause >= SSL_LOST_CAUSES)
		return 0;
	key.incarnation = incarnation_of(key.tgid);
	count(SSL_LOST_CALLS + cause, calls);
	count(SSL_LOST_BYTES + cause, bytes);
	loss = bpf_map_lookup_elem(&losses, &key);
	if (!loss) {
		struct ssl_loss fresh = {};

		bpf_get_current_comm(fresh.comm, sizeof(fresh.comm));
		bpf_map_update_elem(&losses, &key, &fresh, BPF_NOEXIST);
		loss = bpf_map_lookup_elem(&losses, &key);
		if (!loss)
			return 0;
	}
	__sync_fetch_and_add(&loss->calls, calls);
	__sync_fetch_and_add(&loss->bytes, bytes);
	return 0;
}

/* Whether what has this incarnation is the process's that has the number now. What was met when there was no room for
 * its process is taken for whose it looks. Global, as the functions below.
 */
__noinline int is_current(__u32 tgid, __u64 incarnation)
{
	return !incarnation || incarnation == incarnation_of(tgid);
}

/* A connection that is known, and no other's that had its number and address before: another process's, or another
 * program's.
 */
static __always_inline struct connection *known_connection(const struct connection_key *key)
{
	struct connection *connection = bpf_map_lookup_elem(&connections, key);

	return connection && is_current(key->tgid, connection->incarnation) ? connection : NULL;
}

__noinline int meet_connection(__u32 tgid, __u64 ssl, __u64 now)
{
	struct connection_key key = { .ssl = ssl, .tgid = tgid };
	struct connection *before = bpf_map_lookup_elem(&connections, &key);
	struct connection fresh = { .since_ns = now };

	/* Another thread may have met it in this moment. */
	if (before && !is_current(tgid, before->incarnation))
		bpf_map_delete_elem(&connections, &key);
	/* Without room its connections stay until others need theirs. */
	bpf_map_update_elem(&processes, &tgid, &now, BPF_NOEXIST);
	fresh.incarnation = incarnation_of(tgid);
	bpf_map_update_elem(&connections, &key, &fresh, BPF_NOEXIST);
	return 0;
}

static __always_inline struct connection *connection_of(__u32 tgid, __u64 ssl, __u64 now)
{
	struct connection_key key = { .ssl = ssl, .tgid = tgid };
	struct connection *connection = known_connection(&key);

	if (connection)
		return connection;
	meet_connection(tgid, ssl, now);
	return bpf_map_lookup_elem(&connections, &key);
}

/* The same for the current thread, which knows its process's incarnation from the last time. */
static __always_inline struct connection *connection_used(struct thread *thread, __u64 ssl,
							  __u64 now)
{
	struct connection_key key = { .ssl = ssl, .tgid = bpf_get_current_pid_tgid() >> 32 };
	struct connection *connection = bpf_map_lookup_elem(&connections, &key);

	if (connection && connection->incarnation == thread->incarnation && thread->incarnation)
		return connection;
	connection = connection_of(key.tgid, ssl, now);
	/* An earlier one's is there still if it could not be deleted: that is not to be kept. */
	if (connection)
		thread->incarnation =
			is_current(key.tgid, connection->incarnation) ? connection->incarnation : 0;
	return connection;
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
	head->via = 0;
	head->no_peer = connection->no_peer;
	__builtin_memset(head->pad, 0, sizeof(head->pad));
	bpf_get_current_comm(head->comm, sizeof(head->comm));
}

struct call_stack {
	struct ssl_record head;
	struct user_stack stack;
};

/* Where the call that returns was made, ahead of what it did: the kernel has put the registers to what
 * the caller will find. No stack is no lost call.
 */
static __always_inline void send_stack(struct pt_regs *ctx, const struct call *call,
				       const struct connection *connection, __u64 now)
{
	struct call_stack *record;

	if (!targ_stacks)
		return;
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record) {
		count(SSL_LOST_STACKS, 1);
		return;
	}
	describe(&record->head, SSL_STACK, call->function, call->ssl, connection, now,
		 call->library);
	record->head.captured = sizeof(record->stack);
	take_user_stack(ctx, &record->stack);
	bpf_ringbuf_submit(record, 0);
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
	transfer->head.flags = transfer->flags | (last ? SSL_FLAG_LAST : 0) |
			       (transfer->lost ? SSL_FLAG_GAP : 0);
	if (length > LARGE)
		error = send_HUGE(transfer, length);
	else if (length > MEDIUM)
		error = send_LARGE(transfer, length);
	else if (length > SMALL)
		error = send_MEDIUM(transfer, length);
	else
		error = send_SMALL(transfer, length);
	/* Each part takes room until it is known to be unreadable: of a length that is wrong there is no end. */
	if (error == SSL_LOST_UNREADABLE && ++transfer->unreadable >= MOST_UNREADABLE) {
		length = left;
		last = true;
	}
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

#endif
