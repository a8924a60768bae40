/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What sslsniff's programs and its user space share. */
#ifndef EBPFKIT_SSLSNIFF_H
#define EBPFKIT_SSLSNIFF_H

/* The functions that are probed. */
enum ssl_function {
	SSL_FN_READ,
	SSL_FN_WRITE,
	SSL_FN_READ_EX,
	SSL_FN_WRITE_EX,
	SSL_FN_DO_HANDSHAKE,
	SSL_FN_FREE,
	SSL_FN_PEEK,
	SSL_FN_PEEK_EX,
	SSL_FN_WRITE_EX2,
	SSL_FN_READ_EARLY,
	SSL_FN_WRITE_EARLY,
	SSL_FN_SENDFILE,
	SSL_FN_SHUTDOWN,
	GNUTLS_FN_RECV,
	GNUTLS_FN_SEND,
	GNUTLS_FN_SEND2,
	GNUTLS_FN_HANDSHAKE,
	GNUTLS_FN_BYE,
	GNUTLS_FN_DEINIT,
	/* What a program asks or tells the library about a connection. */
	SSL_FN_CTRL,
	SSL_FN_GET_VERSION,
	SSL_FN_GET_SERVERNAME,
	SSL_FN_GET_ALPN,
	SSL_FN_SESSION_REUSED,
	/* Which socket or stream a program gives a connection. */
	SSL_FN_SET_FD,
	SSL_FN_SET_RFD,
	SSL_FN_SET_WFD,
	SSL_FN_SET_BIO,
	SSL_FN_SET0_RBIO,
	SSL_FN_SET0_WBIO,
	/* What the library asks of libcrypto, which may be a file of its own. */
	CRYPTO_FN_RANDOM,
	CRYPTO_FN_RANDOM_EX,
	CRYPTO_FN_ERROR,
	CRYPTO_FN_ERROR_V,
	CRYPTO_FN_DERIVE,
	SSL_FN_SET_HOST_NAME,
	/* They make an object that was used ready for another connection, and are called for a first one, too. */
	SSL_FN_CLEAR,
	SSL_FN_SET_CONNECT_STATE,
	SSL_FN_SET_ACCEPT_STATE,
	GNUTLS_FN_UNCORK,
	/* One more has to free the object until it is freed. */
	SSL_FN_UP_REF,
	SSL_FUNCTIONS,
};

/* Where probes have cookies one program serves all functions: the cookie says which is called, and in which
 * library.
 */
#define SSL_COOKIE_FUNCTION 32

/* What a record tells. */
enum ssl_kind {
	/* A part of what a call read or wrote. */
	SSL_DATA,
	/* A handshake was done, or given up. */
	SSL_HANDSHAKE,
	/* The connection was freed. */
	SSL_CLOSE,
	/* The connection was shut down by the program, or it waits for the peer to do so. */
	SSL_SHUTDOWN,
	/* The socket of the connection is known: a struct ssl_addresses follows. */
	SSL_PEER,
	/* What the program asked or told the library, as text: `function` says what it is. */
	SSL_FACT,
	/* Where the call that the thread's next record is about was made: a struct user_stack follows. */
	SSL_STACK,
	/* Bytes that passed a socket as a connection began. */
	SSL_HELLO,
	/* The library said why a call fails. */
	SSL_ERROR,
	/* A key was derived: a struct ssl_derived follows. */
	SSL_SECRET,
	/* The program has given the connection something in place of its socket. */
	SSL_NO_PEER,
	/* The process is another program from now on, or is over: its connections are. Of all of them: `ssl` is zero. */
	SSL_EXIT,
};

enum ssl_direction {
	SSL_READ,
	SSL_WRITE,
};

/* The last record of its call. */
#define SSL_FLAG_LAST 1
/* A part of this call was lost before this record. */
#define SSL_FLAG_GAP 2
/* The handshake was done. */
#define SSL_FLAG_DONE 4
/* The bytes stay to be read again. */
#define SSL_FLAG_PEEK 8
/* The handshake has failed; without this and DONE it was given up. */
#define SSL_FLAG_FAILED 16
/* ERROR: the number of the reason is one of BoringSSL's. */
#define SSL_FLAG_BORING 32

/* Why something that was to be shown is not. */
enum ssl_lost {
	SSL_LOST_NOTHING,
	SSL_LOST_RING_FULL,
	/* The program's memory could not be read. */
	SSL_LOST_UNREADABLE,
	/* No room to remember the call or the connection. */
	SSL_LOST_STATE_FULL,
	SSL_LOST_CAUSES,
};

/* Calls, bytes: what was to be shown, and what of it was lost by cause. */
enum ssl_counter {
	SSL_SEEN_CALLS,
	SSL_SEEN_BYTES,
	/* Bytes that were not copied because the user wanted so. */
	SSL_CUT_BYTES,
	/* Children of watched processes that found the table of processes full. */
	SSL_MISSED_CHILDREN,
	/* Calls whose stack the ring had no room for. */
	SSL_LOST_STACKS,
	/* Keys that could not be read, or that the ring had no room for. */
	SSL_LOST_KEYS,
	/* How often a process was not stopped that was to be. */
	SSL_NOT_HELD,
	/* + enum ssl_lost */
	SSL_LOST_CALLS,
	SSL_LOST_BYTES = SSL_LOST_CALLS + SSL_LOST_CAUSES,
	SSL_COUNTERS = SSL_LOST_BYTES + SSL_LOST_CAUSES,
};

/* The start of every record; of a record with data, `captured` bytes follow. */
struct ssl_record {
	/* bpf_ktime_get_boot_ns() */
	__u64 time_ns;
	/* Address of the SSL object and the time when it was first seen: together with the process
	 * they name the connection. HELLO: zero, if it is not known whose it is. EXIT: zero.
	 */
	__u64 ssl;
	__u64 since_ns;
	/* DATA: of the record's first byte in the connection's direction.
	 * CLOSE: bytes read.
	 * PEER, HELLO: the socket, a number that no other has at the time.
	 * ERROR: the number of the reason.
	 */
	__u64 offset;
	/* DATA: bytes of the stream that the record stands for.
	 * CLOSE: bytes written.
	 * HELLO: bytes that passed in this system call.
	 */
	__u64 length;
	/* DATA: what the whole call read or wrote. */
	__u64 call_length;
	/* DATA: from the call's entry to its return.
	 * HANDSHAKE: from the first entry of SSL_do_handshake.
	 */
	__u64 duration_ns;
	__u64 cgroup;
	/* Bytes that follow the record. */
	__u32 captured;
	/* In the initial namespaces. */
	__u32 pid;
	__u32 tid;
	__u32 uid;
	__u32 gid;
	/* The cookie that the probe was attached with; zero if there is none. */
	__u32 library;
	/* enum ssl_kind, enum ssl_function, enum ssl_direction, SSL_FLAG_* */
	__u8 kind;
	__u8 function;
	__u8 direction;
	__u8 flags;
	/* enum ssl_via: PEER: how the socket was found. */
	__u8 via;
	/* Whether the connection has something in place of its socket: who lost NO_PEER knows it by this. */
	__u8 no_peer;
	__u8 pad[2];
	__u8 comm[16];
};

/* How a connection's socket was found. */
enum ssl_via {
	/* The thread used it within a call for the connection. */
	SSL_VIA_CALL,
	/* The program gave the connection its descriptor. */
	SSL_VIA_SET_FD,
	/* What a call for the connection made passed it. */
	SSL_VIA_CIPHERTEXT,
};

/* A socket's two ends. */
struct ssl_addresses {
	/* IPv6, or IPv4 in the first four bytes. Network byte order. */
	__u8 local[16];
	__u8 peer[16];
	/* Host byte order. */
	__u16 local_port;
	__u16 peer_port;
	/* AF_INET or AF_INET6 */
	__u16 family;
	__u16 pad;
};

/* What a key was derived from, and the key: the parameters of EVP_KDF_derive(3). */
#define SSL_PARAMETERS 8
#define SSL_PARAMETER_NAME 8
#define SSL_PARAMETER_BYTES 64

struct ssl_parameter {
	/* The start of its name; all zero: there is no such parameter, and none after it. */
	__u8 name[SSL_PARAMETER_NAME];
	/* Its length; what is longer than `bytes` is cut. */
	__u64 size;
	__u8 bytes[SSL_PARAMETER_BYTES];
};

struct ssl_derived {
	struct ssl_parameter parameters[SSL_PARAMETERS];
	__u64 size;
	__u8 key[SSL_PARAMETER_BYTES];
};

/* A file, as it is now: numbers of inodes and devices are used again. */
struct ssl_file {
	__u64 inode;
	/* When it was changed last, by the clock of the file system. */
	__s64 changed_s;
	__u32 changed_ns;
	/* s_dev */
	__u32 device;
	__u32 generation;
	__u32 pad;
};

/* Of a process's ancestors so many are of interest: su in su in sudo. */
#define SSL_ANCESTORS 4

/* A process that was stopped because it maps a file. */
struct ssl_held {
	struct ssl_file file;
	/* tgid in the initial namespace. */
	__u32 pid;
	/* Which of its ancestors, by bits, were stopped before it was. */
	__u32 stopped;
	/* Its parent, and so on: tgids in the initial namespace. */
	__u32 ancestors[SSL_ANCESTORS];
};

/* What of a process was lost, by cause. */
struct ssl_loss_key {
	/* Which of the processes with this number it is; zero if that is not known. */
	__u64 incarnation;
	__u32 tgid;
	/* enum ssl_lost */
	__u32 cause;
};

struct ssl_loss {
	__u64 calls;
	__u64 bytes;
	__u8 comm[16];
};

#endif
