/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What becomes of a connection but data: its handshake, its end, and what a program asks or tells about it. */
#ifndef EBPFKIT_SSLSNIFF_CONNECTION_BPF_H
#define EBPFKIT_SSLSNIFF_CONNECTION_BPF_H

#include "sslsniff_calls.bpf.h"
#include "sslsniff_peer.bpf.h"

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

/* Whether it is done again by name only: OpenSSL says of a finished handshake each time that it is done. */
static __always_inline bool is_old_news(const struct connection *connection, __u32 function)
{
	return connection->done && !connection->renewed && !HAS(GNUTLS, function);
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
	/* To send early data a client is done with the handshake before it has heard anything. */
	if (sends_early(call->ssl, PT_REGS_SP(ctx)))
		return 0;
	now = bpf_ktime_get_boot_ns();
	connection = connection_of(pid_tgid >> 32, call->ssl, now);
	if (!connection) {
		count(SSL_SEEN_CALLS, 1);
		count_lost(SSL_LOST_STATE_FULL, 1, 0);
	} else if (is_old_news(connection, function)) {
		connection->handshake_ns = 0;
	} else if (connection->handshake_ns) {
		if (flags & SSL_FLAG_DONE) {
			connection->done = 1;
			connection->renewed = 0;
		}
		find_peer(connection, call->ssl, function, call->library);
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
	connection = known_connection(&key);
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

/* SSL_set_fd(ssl, fd) and its kin, which return 1. */
static __always_inline int leave_fd(struct pt_regs *ctx, __u32 function)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	int ret = PT_REGS_RC(ctx);
	struct connection *connection;
	struct thread *thread;
	struct call *call;

	thread = bpf_map_lookup_elem(&threads, &pid_tgid);
	call = leave(ctx, thread, function, 0, false);
	if (!call || ret != 1)
		return 0;
	connection = connection_of(pid_tgid >> 32, call->ssl, bpf_ktime_get_boot_ns());
	if (!connection)
		return 0;
	connection->settled = 0;
	if (function != SSL_FN_SET_WFD)
		connection->read_fd = (__u32)call->buffer + 1;
	if (function != SSL_FN_SET_RFD)
		connection->write_fd = (__u32)call->buffer + 1;
	return 0;
}

/* What the program gives now is not the descriptor that it gave before. */
static __always_inline int enter_bio(struct pt_regs *ctx, __u32 function)
{
	struct connection_key key = {
		.ssl = PT_REGS_PARM1(ctx),
		.tgid = bpf_get_current_pid_tgid() >> 32,
	};
	struct connection *connection = known_connection(&key);
	struct ssl_record *record;

	if (!connection)
		return 0;
	connection->settled = 0;
	if (function != SSL_FN_SET0_WBIO)
		connection->read_fd = 0;
	if (function != SSL_FN_SET0_RBIO)
		connection->write_fd = 0;
	if (!connection->socket)
		return 0;
	connection->socket = 0;
	connection->via = SSL_VIA_CALL;
	connection->no_peer = 1;
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	/* Then each record from now on tells. */
	if (!record)
		return 0;
	describe(record, SSL_NO_PEER, function, key.ssl, connection, bpf_ktime_get_boot_ns(), 0);
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* EVP_KDF_derive() returns 1. */
static __always_inline int end_derivation(struct pt_regs *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	struct thread *thread = bpf_map_lookup_elem(&threads, &pid_tgid);

	if (!thread || !thread->derivation.stack ||
	    thread->derivation.stack != PT_REGS_SP(ctx) - RETURN_ADDRESS_SIZE)
		return 0;
	if ((int)PT_REGS_RC(ctx) == 1)
		send_secret(pid_tgid);
	thread->derivation.stack = 0;
	return 0;
}

static __always_inline void send_close(__u32 function, __u64 ssl, struct connection *connection,
				       __u64 now, __u32 library)
{
	struct ssl_record *record = start_event();

	if (!record)
		return;
	describe(record, SSL_CLOSE, function, ssl, connection, now, library);
	record->offset = connection->offset[SSL_READ];
	record->length = connection->offset[SSL_WRITE];
	record->duration_ns = now - connection->since_ns;
	record->flags = SSL_FLAG_LAST;
	bpf_ringbuf_submit(record, 0);
}

/* Whether anything was seen of it but what an object is given before its connection begins: a name, a socket. */
static __always_inline bool is_used(const struct connection *connection)
{
	return connection->offset[SSL_READ] || connection->offset[SSL_WRITE] ||
	       connection->received || connection->sent || connection->done || connection->failed ||
	       connection->handshake_ns;
}

/* SSL_up_ref(ssl): SSL_free() is called once more until the object is freed. */
static __always_inline int share_connection(struct pt_regs *ctx)
{
	struct connection_key key = {
		.ssl = PT_REGS_PARM1(ctx),
		.tgid = bpf_get_current_pid_tgid() >> 32,
	};
	struct connection *connection = known_connection(&key);

	if (!connection && watched(key.tgid))
		connection = connection_of(key.tgid, key.ssl, bpf_ktime_get_boot_ns());
	if (connection)
		__sync_fetch_and_add(&connection->shared, 1);
	return 0;
}

/* Of an object that others refer to it only drops a reference. Those of a time before the probes came are not
 * known: the connection then goes on under another number.
 */
static __always_inline int free_connection(struct pt_regs *ctx, __u32 function, __u32 library)
{
	struct connection_key key = {
		.ssl = PT_REGS_PARM1(ctx),
		.tgid = bpf_get_current_pid_tgid() >> 32,
	};
	struct connection *connection;
	bool is_news;
	__u64 now;

	/* Whichever thread does it: what is known of was watched. */
	connection = known_connection(&key);
	if (!connection)
		return 0;
	if (connection->shared > 0) {
		__sync_fetch_and_add(&connection->shared, -1);
		return 0;
	}
	/* Objects are made ready for a connection, or for another one, and freed without it. */
	is_news = !(connection->again || connection->fresh) || is_used(connection);
	now = bpf_ktime_get_boot_ns();
	/* It was left to calls that read or write. */
	if (connection->fresh && connection->failed && !has_begun(connection) &&
	    !connection->handshake_ns)
		connection->handshake_ns = connection->since_ns;
	if (connection->handshake_ns)
		send_handshake(function == SSL_FN_FREE ? SSL_FN_DO_HANDSHAKE : GNUTLS_FN_HANDSHAKE,
			       key.ssl, connection, now, library, 0);
	if (is_news)
		send_close(function, key.ssl, connection, now, library);
	bpf_map_delete_elem(&connections, &key);
	return 0;
}

/* The object is for another connection from now on: of a program that uses it again, or of one that has it
 * where another was that was never freed, maybe by an earlier process of this number.
 */
static __always_inline int restart_connection(struct pt_regs *ctx, __u32 function, __u32 library)
{
	struct connection_key key = {
		.ssl = PT_REGS_PARM1(ctx),
		.tgid = bpf_get_current_pid_tgid() >> 32,
	};
	struct connection *connection, next = {};

	/* Whichever thread does it: what is known of was watched. */
	connection = known_connection(&key);
	if (!connection) {
		/* Which end it is a program says before the handshake: but for connections that were there before. */
		if (function != SSL_FN_CLEAR && watched(key.tgid))
			connection = connection_of(key.tgid, key.ssl, bpf_ktime_get_boot_ns());
		if (connection)
			connection->fresh = 1;
		return 0;
	}
	if (!is_used(connection))
		return 0;
	/* As a handshake begins, OpenSSL clears the object itself. */
	if (function_around(key.ssl, PT_REGS_SP(ctx)))
		return 0;
	next.again = 1;
	next.fresh = 1;
	next.since_ns = bpf_ktime_get_boot_ns();
	/* It stays the program's, whichever socket it is. */
	next.read_fd = connection->read_fd;
	next.write_fd = connection->write_fd;
	next.shared = connection->shared;
	next.incarnation = connection->incarnation;
	next.no_peer = connection->no_peer;
	if (connection->handshake_ns && connection->done)
		next.handshake_ns = next.since_ns;
	else if (connection->handshake_ns)
		send_handshake(SSL_FN_DO_HANDSHAKE, key.ssl, connection, next.since_ns, library, 0);
	send_close(function, key.ssl, connection, next.since_ns, library);
	bpf_map_update_elem(&connections, &key, &next, BPF_ANY);
	return 0;
}

/* Names of servers and of protocols have at most 255 bytes (RFC 6066, RFC 7301). */
#define LONGEST_FACT 256

struct fact_record {
	struct ssl_record head;
	char text[LONGEST_FACT];
};

/* Sends what a program asks or tells its library about a connection. `length` is 0 if the text ends
 * with a zero byte; a fact may have no text. A name that is given may be in memory that nobody has touched
 * yet, as constants are: nothing is lost, as the hello tells it.
 */
static __always_inline int send_fact(__u32 function, __u64 ssl, __u32 library, __u64 text,
				     __u32 length)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct connection *connection;
	struct fact_record *record;
	long read;

	connection = connection_of(bpf_get_current_pid_tgid() >> 32, ssl, now);
	if (!connection) {
		count(SSL_SEEN_CALLS, 1);
		count_lost(SSL_LOST_STATE_FULL, 1, 0);
		return 0;
	}
	find_peer(connection, ssl, function, library);
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record) {
		count(SSL_SEEN_CALLS, 1);
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
		if (!HAS(NAMES, function)) {
			count(SSL_SEEN_CALLS, 1);
			count_lost(SSL_LOST_UNREADABLE, 1, 0);
		}
		return 0;
	}
	count(SSL_SEEN_CALLS, 1);
	record->head.flags = SSL_FLAG_LAST;
	record->head.captured = read;
	bpf_ringbuf_submit(record, 0);
	return 0;
}

/* SSL_set_tlsext_host_name(ssl, name) is a macro for SSL_ctrl(ssl, command, type, name); BoringSSL has a
 * function of that name.
 */
static __always_inline int enter_name(struct pt_regs *ctx, __u32 function, __u32 library)
{
	__u64 second = PT_REGS_PARM2(ctx), fourth = PT_REGS_PARM4(ctx);
	bool is_ctrl = function == SSL_FN_CTRL;
	__u64 name;

	/* As in enter(). */
	barrier_var(second);
	barrier_var(fourth);
	name = is_ctrl ? fourth : second;
	/* Without a name an earlier one is taken back. */
	if ((is_ctrl && (int)second != SSL_CTRL_SET_TLSEXT_HOSTNAME) || !name ||
	    !watched(bpf_get_current_pid_tgid() >> 32))
		return 0;
	return send_fact(function, PT_REGS_PARM1(ctx), library, name, 0);
}

/* Whether anything is agreed upon by now: before, the library names the version that it would like best. */
static __always_inline bool is_agreed(__u64 pid_tgid, __u64 ssl)
{
	struct connection_key key = { .ssl = ssl, .tgid = pid_tgid >> 32 };
	struct connection *connection = known_connection(&key);

	return connection && has_begun(connection);
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
	if (!text || (function == SSL_FN_GET_VERSION && !is_agreed(pid_tgid, call->ssl)))
		return 0;
	return send_fact(function, call->ssl, call->library, text, length);
}

#endif
