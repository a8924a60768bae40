/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which functions there are, and the calls of them that are under way: what is known as one begins is
 * kept for its return.
 */
#ifndef EBPFKIT_SSLSNIFF_CALLS_BPF_H
#define EBPFKIT_SSLSNIFF_CALLS_BPF_H

#include "sslsniff_handshake.bpf.h"
#include <bpf/bpf_tracing.h>

/* A uretprobe finds the stack pointer where the return instruction left it. */
#if defined(__TARGET_ARCH_x86)
#define RETURN_ADDRESS_SIZE 8
#else
#define RETURN_ADDRESS_SIZE 0
#endif

/* What functions have in common: sets of enum ssl_function. */
#define BIT(function) (1ULL << (function))
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
#define GNUTLS_SENDS (BIT(GNUTLS_FN_SEND) | BIT(GNUTLS_FN_SEND2))
#define MOVES_DATA (AT_FOURTH | AT_FIFTH | RETURNS_INT | RETURNS_LONG)
#define WRITES                                                                  \
	(BIT(SSL_FN_WRITE) | BIT(SSL_FN_WRITE_EX) | BIT(SSL_FN_WRITE_EX2) |     \
	 BIT(SSL_FN_WRITE_EARLY) | BIT(SSL_FN_SENDFILE) | BIT(GNUTLS_FN_SEND) | \
	 BIT(GNUTLS_FN_SEND2))
#define PEEKS (BIT(SSL_FN_PEEK) | BIT(SSL_FN_PEEK_EX))
#define HANDSHAKES (BIT(SSL_FN_DO_HANDSHAKE) | BIT(GNUTLS_FN_HANDSHAKE))
#define SHUTDOWNS (BIT(SSL_FN_SHUTDOWN) | BIT(GNUTLS_FN_BYE))
#define FREES (BIT(SSL_FN_FREE) | BIT(GNUTLS_FN_DEINIT))
#define RESTARTS (BIT(SSL_FN_CLEAR) | BIT(SSL_FN_SET_CONNECT_STATE) | BIT(SSL_FN_SET_ACCEPT_STATE))
/* They move data before the handshake is done, and begin it. */
#define EARLY (BIT(SSL_FN_READ_EARLY) | BIT(SSL_FN_WRITE_EARLY))
#define NAMES (BIT(SSL_FN_CTRL) | BIT(SSL_FN_SET_HOST_NAME))
/* They give a connection descriptors, or streams of another kind (BIO) in their place: SSL_set_fd() does so
 * itself before it returns.
 */
#define SETS_FD (BIT(SSL_FN_SET_FD) | BIT(SSL_FN_SET_RFD) | BIT(SSL_FN_SET_WFD))
#define SETS_BIO (BIT(SSL_FN_SET_BIO) | BIT(SSL_FN_SET0_RBIO) | BIT(SSL_FN_SET0_WBIO))
#define MAKES_RANDOM (BIT(CRYPTO_FN_RANDOM) | BIT(CRYPTO_FN_RANDOM_EX))
#define RAISES_ERROR (BIT(CRYPTO_FN_ERROR) | BIT(CRYPTO_FN_ERROR_V))
#define SHARES BIT(SSL_FN_UP_REF)
/* What they do is done at their entry. */
#define ENTRY_ALONE (FREES | RESTARTS | NAMES | SETS_BIO | MAKES_RANDOM | RAISES_ERROR | SHARES)
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

/* The place in `calls` of the call of this function that has its return address at `stack`; MAX_NESTED: there is none. */
static __always_inline __u32 index_of_call(const struct thread *thread, __u32 function, __u64 stack)
{
	for (__u32 i = 0; i < MAX_NESTED; i++)
		if (thread->calls[i].stack == stack && thread->calls[i].function == function)
			return i;
	return MAX_NESTED;
}

/* Room for a call at a stack pointer that no other has had. One that was left by a jump keeps its place until another
 * has the same stack pointer, or until there is no other place: its return is counted, should it come.
 */
static __always_inline __u32 index_of_room(struct thread *thread)
{
	for (__u32 i = 0; i < MAX_NESTED; i++)
		if (thread->calls[i].course == COURSE_OVER)
			return i;
	__sync_fetch_and_add(&calls_without_room, 1);
	for (__u32 i = 0; i < MAX_NESTED; i++)
		if (thread->calls[i].course == COURSE_LEFT)
			return i;
	return thread->oldest++;
}

/* A call begins at `stack`. Those that lie below it have been left by a jump, and what is done from now on is not done
 * for them; or the program has several stacks, and they go on later.
 */
static __always_inline void leave_those_below(struct thread *thread, __u64 stack)
{
	if (!thread->under_way)
		return;
	for (int i = 0; i < MAX_NESTED; i++) {
		struct call *call = &thread->calls[i];
		__u64 above = stack - call->stack;

		/* What is learned of one must not tell what follows apart. */
		forget_bounds(above, call->ssl);
		/* Zero and less, as a large number, are the call itself and those around it. */
		if (call->course == COURSE_UNDER_WAY && above - 1 < DEEPEST_CALL - 1) {
			call->course = COURSE_LEFT;
			thread->under_way--;
		}
	}
}

/* Whether `call`, about to be made, does the work of another that is under way: SSL_write_ex may call
 * SSL_write_ex2, the early data functions call the plain ones, and BoringSSL's SSL_read SSL_peek. They
 * pass on where the bytes are. A tail call leaves the stack where it was. gnutls_record_uncork() sends what
 * the program has sent before, and was told of, from memory of the library.
 */
static __always_inline bool is_inner(struct thread *thread, const struct call *call)
{
	for (int i = 0; i < MAX_NESTED; i++) {
		const struct call *outer = &thread->calls[i];
		__u64 above = outer->stack - call->stack, ssl = outer->ssl ^ call->ssl;
		__u64 buffer = outer->buffer ^ call->buffer;

		/* As above. */
		forget_bounds(above, outer->start_ns);
		forget_bounds(ssl, outer->start_ns);
		forget_bounds(buffer, outer->start_ns);
		if (outer->course != COURSE_UNDER_WAY || ssl || outer->function == call->function ||
		    (__s64)above < 0)
			continue;
		if (outer->function == GNUTLS_FN_UNCORK ||
		    (!buffer && HAS(MOVES_DATA, outer->function & 63)))
			return true;
	}
	return false;
}

/* Which function's call for this connection the thread is in, plus one: zero if it is in none, or has left it by a
 * jump, which where its stack is says. A global function, verified once.
 */
__noinline int function_around(__u64 ssl, __u64 stack)
{
	struct thread *thread = current_thread();
	struct call *call = thread ? call_around(thread, stack) : NULL;

	return call && call->ssl == ssl ? call->function + 1 : 0;
}

static __always_inline bool sends_early(__u64 ssl, __u64 stack)
{
	__u32 around = function_around(ssl, stack);

	return around && HAS(EARLY, (around - 1) & 63);
}

/* Whether another probe at the very place has told of this call: one file under several numbers. A function that is
 * left for another one by a jump has the same stack, and is elsewhere.
 */
static __always_inline bool is_told_twice(const struct call *call, __u32 library, __u64 place)
{
	__u32 other = call->library;

	if (call->course != COURSE_UNDER_WAY || other == library || call->place != place)
		return false;
	tell_twins(library, other);
	return true;
}

static __always_inline int enter(struct pt_regs *ctx, __u32 function, __u32 library)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u64 first = PT_REGS_PARM1(ctx), second = PT_REGS_PARM2(ctx), place = PT_REGS_IP(ctx);
	__u64 third = PT_REGS_PARM3(ctx), fifth = PT_REGS_PARM5(ctx), stack = PT_REGS_SP(ctx);
	__u32 begins_handshake = HAS(HANDSHAKES, function), index;
	struct thread *thread;
	struct call *call;
	bool is_new;

	/* A choice among arguments must not become one among places of the context. */
	barrier_var(third);
	barrier_var(fifth);
	barrier_var(stack);
	if (!watched(pid_tgid >> 32))
		return NO_RETURN;
	/* No room is counted at the return, where the length is known. */
	thread = thread_of(pid_tgid);
	if (!thread) {
		__sync_fetch_and_add(&calls_without_room, 1);
		return 0;
	}
	/* Within a call for early data it is begun, and not what the program waits for. */
	if (begins_handshake && sends_early(PT_REGS_PARM1(ctx), stack))
		begins_handshake = 0;
	forget_bounds(begins_handshake, stack);
	leave_those_below(thread, stack);
	index = index_of_call(thread, function, stack);
	is_new = index == MAX_NESTED;
	if (is_new)
		index = index_of_room(thread);
	call = call_at(thread, index, stack);
	if (!is_new && is_told_twice(call, library, place))
		return 0;
	call->stack = stack;
	call->place = place;
	call->ssl = first;
	call->buffer = second;
	if (HAS(AT_FIFTH, function))
		call->length = fifth;
	else if (function == SSL_FN_GET_ALPN)
		call->length = third;
	else
		call->length = PT_REGS_PARM4(ctx);
	call->start_ns = bpf_ktime_get_boot_ns();
	call->library = library;
	call->function = function;
	/* It may have the place of one that was left by a jump to where it began. */
	if (call->course == COURSE_UNDER_WAY)
		thread->under_way--;
	call->course = COURSE_OVER;
	call->inner = HAS(MOVES_DATA, function) && thread->under_way && is_inner(thread, call);
	call->course = COURSE_UNDER_WAY;
	thread->under_way++;
	if (begins_handshake) {
		struct connection *connection;

		connection = connection_used(thread, call->ssl, call->start_ns);
		if (connection && !connection->handshake_ns)
			connection->handshake_ns = call->start_ns;
	}
	if (HAS(EARLY, function)) {
		struct connection *connection;

		connection = connection_used(thread, call->ssl, call->start_ns);
		if (connection)
			connection->early = 1;
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
	__u64 stack = PT_REGS_SP(ctx) - RETURN_ADDRESS_SIZE;
	__u32 index = thread ? index_of_call(thread, function, stack) : MAX_NESTED;
	struct call *call;

	if (!thread || index == MAX_NESTED) {
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
	call = call_at(thread, index, stack);
	if (call->course == COURSE_OVER)
		return NULL;
	if (call->course == COURSE_UNDER_WAY)
		thread->under_way--;
	call->course = COURSE_OVER;
	if (thread->noted_count)
		remember_randoms(bpf_get_current_pid_tgid());
	return call;
}

#endif
