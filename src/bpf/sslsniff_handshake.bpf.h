/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the library asks of libcrypto within a call for a connection: the random number of its hello, why
 * the call fails, and its keys. Such functions are called as a connection begins or fails, not for each
 * read or write.
 */
#ifndef EBPFKIT_SSLSNIFF_HANDSHAKE_BPF_H
#define EBPFKIT_SSLSNIFF_HANDSHAKE_BPF_H

#include <bpf/bpf_tracing.h>
#include "sslsniff_send.bpf.h"

/* How far the library's frames reach below a call's: callbacks of the program among them. Beyond, the
 * call was left by a jump and the stack pointer is another's.
 */
#define DEEPEST_CALL (1 << 20)

/* openssl/err.h: the part of the library that an error is of. In BoringSSL's the second argument of
 * ERR_put_error() is always zero, in OpenSSL's it is the function.
 */
#define ERR_LIB_SSL 20
#define BORINGSSL_ERR_LIB_SSL 16

/* OSSL_PARAM(3) */
struct ossl_param {
	__u64 key;
	__u64 data_type;
	__u64 data;
	__u64 data_size;
	__u64 return_size;
};

struct secret_record {
	struct ssl_record head;
	struct ssl_derived derived;
};

static __always_inline struct thread *current_thread(void)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&threads, &pid_tgid);
}

/* The call at this place. The verifier forgets which it is: what follows is verified once, and not for each of them.
 * `unknown` is any number that it knows nothing of.
 */
static __always_inline struct call *call_at(struct thread *thread, __u64 index, __u64 unknown)
{
	forget_bounds(index, unknown);
	return &thread->calls[index & (MAX_NESTED - 1)];
}

/* The innermost call under way, if the thread is in it; of TLS inside TLS that is the connection on the
 * socket. `stack` is where the thread's stack is now, or zero if that cannot be known.
 */
static __always_inline struct call *call_around(struct thread *thread, __u64 stack)
{
	__u64 innermost = ~0ULL;

	if (!thread->under_way)
		return NULL;
	for (int i = 0; i < MAX_NESTED; i++) {
		const struct call *call = &thread->calls[i];

		if (call->course == COURSE_UNDER_WAY && call->stack < innermost)
			innermost = call->stack;
		forget_bounds(innermost, call->ssl);
	}
	if (stack && innermost - stack > DEEPEST_CALL)
		return NULL;
	for (__u32 i = 0; i < MAX_NESTED; i++)
		if (thread->calls[i].course == COURSE_UNDER_WAY &&
		    thread->calls[i].stack == innermost)
			return call_at(thread, i, innermost);
	return NULL;
}

/* The probes of both libraries have told of one call: they are one file under several numbers, as overlayfs has them. */
static __always_inline void tell_twins(__u32 library, __u32 other)
{
	if (!bpf_map_lookup_elem(&twins, &library))
		bpf_map_update_elem(&twins, &library, &other, BPF_NOEXIST);
}

/* RAND_bytes(bytes, count), RAND_bytes_ex(context, bytes, count, strength). */
static __always_inline int note_random(struct pt_regs *ctx, __u32 function, __u32 library)
{
	__u64 second = PT_REGS_PARM2(ctx), third = PT_REGS_PARM3(ctx), first = PT_REGS_PARM1(ctx);
	__u64 place = PT_REGS_IP(ctx);
	bool ex = function == CRYPTO_FN_RANDOM_EX;
	struct thread *thread = current_thread();
	struct noted *noted;
	struct call *call;
	__u64 address, size;

	barrier_var(first);
	barrier_var(second);
	barrier_var(third);
	address = ex ? second : first;
	size = ex ? third : (__u32)second;
	if (!thread || size != RANDOM_SIZE)
		return 0;
	call = call_around(thread, PT_REGS_SP(ctx));
	if (!call)
		return 0;
	for (int i = 0; i < MAX_NOTED; i++) {
		noted = &thread->noted[i];
		if (noted->address != address || noted->ssl != call->ssl)
			continue;
		if (noted->place == place && noted->library != library)
			tell_twins(library, noted->library);
		return 0;
	}
	noted = &thread->noted[thread->noted_count++ % MAX_NOTED];
	noted->ssl = call->ssl;
	noted->address = address;
	noted->place = place;
	noted->library = library;
	return 0;
}

/* As a call returns the numbers are where they were to be put: in the connection's own memory, which
 * outlives the call. Other numbers of this size, as session identifiers, are never found in a hello's
 * place for its random number.
 */
__noinline int remember_randoms(__u64 pid_tgid)
{
	struct thread *thread = bpf_map_lookup_elem(&threads, &pid_tgid);
	struct random_key key = { .tgid = pid_tgid >> 32 };
	__u64 now = bpf_ktime_get_boot_ns();

	if (!thread)
		return 0;
	for (int i = 0; i < MAX_NOTED; i++) {
		struct noted *noted = &thread->noted[i];
		struct connection *connection;
		struct random_of of;

		if (!noted->address)
			continue;
		connection = connection_of(key.tgid, noted->ssl, now);
		if (connection &&
		    !bpf_probe_read_user(key.random, sizeof(key.random), (void *)noted->address)) {
			of.ssl = noted->ssl;
			of.since_ns = connection->since_ns;
			bpf_map_update_elem(&randoms, &key, &of, BPF_ANY);
			connection->renewed = 1;
		}
		noted->address = 0;
	}
	thread->noted_count = 0;
	return 0;
}

/* Whether its handshake was done, as far as was seen. */
static __always_inline bool has_begun(const struct connection *connection)
{
	return connection->done || connection->offset[SSL_READ] || connection->offset[SSL_WRITE];
}

/* ERR_put_error(library, function, reason, file, line), ERR_vset_error(library, reason, format, args). */
static __always_inline int error_raised(struct pt_regs *ctx, __u32 function)
{
	__u32 library = PT_REGS_PARM1(ctx), second = PT_REGS_PARM2(ctx), third = PT_REGS_PARM3(ctx);
	struct thread *thread = current_thread();
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct connection_key key = { .tgid = pid_tgid >> 32 };
	struct connection *connection;
	struct ssl_record *record;
	struct call *call;

	barrier_var(second);
	barrier_var(third);
	if (function == CRYPTO_FN_ERROR) {
		if (library != (second ? ERR_LIB_SSL : BORINGSSL_ERR_LIB_SSL))
			return 0;
	} else if (library != ERR_LIB_SSL) {
		return 0;
	}
	if (!thread)
		return 0;
	call = call_around(thread, PT_REGS_SP(ctx));
	if (!call)
		return 0;
	key.ssl = call->ssl;
	connection = known_connection(&key);
	/* That a handshake is not done is not why, whoever complains when it is given up. */
	if (call->function == SSL_FN_SHUTDOWN && (!connection || !has_begun(connection)))
		return 0;
	/* A call that reads or writes makes none before it has moved something: this may be its first. */
	if (!connection)
		connection = connection_of(key.tgid, key.ssl, call->start_ns);
	if (!connection)
		return 0;
	if (!has_begun(connection))
		connection->failed = 1;
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record)
		return 0;
	describe(record, SSL_ERROR, call->function, call->ssl, connection, bpf_ktime_get_boot_ns(),
		 call->library);
	record->offset = function == CRYPTO_FN_ERROR ? third : second;
	if (function == CRYPTO_FN_ERROR && !second)
		record->flags = SSL_FLAG_BORING;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* EVP_KDF_derive(context, key, length, parameters) */
static __always_inline int begin_derivation(struct pt_regs *ctx)
{
	struct thread *thread = current_thread();
	struct call *call;

	if (!thread || !targ_secrets)
		return NO_RETURN;
	call = call_around(thread, PT_REGS_SP(ctx));
	if (!call)
		return NO_RETURN;
	thread->derivation.stack = PT_REGS_SP(ctx);
	thread->derivation.ssl = call->ssl;
	thread->derivation.key = PT_REGS_PARM2(ctx);
	thread->derivation.size = PT_REGS_PARM3(ctx);
	thread->derivation.parameters = PT_REGS_PARM4(ctx);
	return 0;
}

/* Copies as much of `size` bytes at `from` as there is room for, and zeros; false if they cannot be
 * read.
 */
static __always_inline bool copy_bytes(__u8 to[SSL_PARAMETER_BYTES], __u64 from, __u64 size)
{
	__builtin_memset(to, 0, SSL_PARAMETER_BYTES);
	barrier_var(size);
	if (size > SSL_PARAMETER_BYTES)
		size = SSL_PARAMETER_BYTES;
	return !size || !bpf_probe_read_user(to, size, (void *)from);
}

/* What the thread has derived; the caller's parameters are still there. */
__noinline int send_secret(__u64 pid_tgid)
{
	struct thread *thread = bpf_map_lookup_elem(&threads, &pid_tgid);
	struct connection *connection;
	struct secret_record *record;
	bool more = true, readable;
	__u64 now = bpf_ktime_get_boot_ns();

	if (!thread)
		return 0;
	connection = connection_of(pid_tgid >> 32, thread->derivation.ssl, now);
	if (!connection)
		return 0;
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record) {
		count(SSL_LOST_KEYS, 1);
		return 0;
	}
	describe(&record->head, SSL_SECRET, CRYPTO_FN_DERIVE, thread->derivation.ssl, connection,
		 now, 0);
	record->head.captured = sizeof(record->derived);
	record->derived.size = thread->derivation.size;
	readable = copy_bytes(record->derived.key, thread->derivation.key, thread->derivation.size);
	for (int i = 0; i < SSL_PARAMETERS; i++) {
		struct ssl_parameter *parameter = &record->derived.parameters[i];
		struct ossl_param given = {};

		__builtin_memset(parameter, 0, sizeof(*parameter));
		if (!more)
			continue;
		if (bpf_probe_read_user(
			    &given, sizeof(given),
			    (void *)(thread->derivation.parameters + i * sizeof(given)))) {
			readable = false;
			break;
		}
		more = given.key != 0;
		if (!more)
			continue;
		bpf_probe_read_user_str(parameter->name, sizeof(parameter->name),
					(void *)given.key);
		parameter->size = given.data_size;
		readable = copy_bytes(parameter->bytes, given.data, given.data_size) && readable;
	}
	if (!readable) {
		bpf_ringbuf_discard(record, 0);
		count(SSL_LOST_KEYS, 1);
		return 0;
	}
	bpf_ringbuf_submit(record, 0);
	return 0;
}

#endif
