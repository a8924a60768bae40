/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* sslsniff's settings, maps and what is in them. */
#ifndef EBPFKIT_SSLSNIFF_STATE_BPF_H
#define EBPFKIT_SSLSNIFF_STATE_BPF_H

#include "lib/common.bpf.h"
#include "sslsniff.h"

/* Threads that use TLS at a time, and connections that are followed at a time. */
#define MAX_THREADS 10240
#define MAX_CONNECTIONS 65536
/* Processes that are watched at a time, and that have connections; users, commands. */
#define MAX_PIDS 65536
#define MAX_NAMED 1024

/* Cgroups that are watched. */
#define MAX_CGROUPS 16
/* Processes and causes that losses are told of. */
#define MAX_LOSSES 4096

/* Libraries that were seen to be another's file, until user space has heard of it. */
#define MAX_TWINS 1024

/* Calls that one thread can have under way: TLS inside TLS, as to an HTTPS proxy, nests two, and each
 * may be of two functions that call each other. A power of two.
 */
#define MAX_NESTED 8

/* Handshakes whose random numbers have not passed a socket yet. */
#define MAX_RANDOMS 8192
/* As TLS has them (RFC 8446, 4.1.2 and 4.1.3). */
#define RANDOM_SIZE 32
/* Random numbers that one call of a library asks for at most, of those that may be a hello's. A power of two. */
#define MAX_NOTED 4

#define COMM_LEN 16

/* Which filters are set; what passes all that are set is watched. */
const volatile __u8 targ_pids;
const volatile __u8 targ_uids;
const volatile __u8 targ_comms;
/* How many entries of `cgroups` are set. */
const volatile __u32 targ_cgroups;
/* Bytes that are copied of a call at most. */
const volatile __u64 targ_max_bytes = ~0ULL;
/* Probes are attached with cookies. */
const volatile __u8 has_cookie;
/* Programs at probes are preempted, and may have a private stack. */
const volatile __u8 is_preempted;
/* The ring has room for several HUGE records. */
const volatile __u8 huge_records = 1;
/* Where calls were made is told. */
const volatile __u8 targ_stacks;
/* Keys are told. */
const volatile __u8 targ_secrets;

/* A socket that was used so often is a connection's for good, unless it is given another: a callback uses one less often
 * than the connection its own.
 */
#define SETTLED 8

/* What a function's entry comes to if its return is of no interest: the kernel is told so where it asks. */
#define NO_RETURN 1

/* Where a call is. */
enum course {
	/* It has returned, or there was none. */
	COURSE_OVER,
	COURSE_UNDER_WAY,
	/* Another call began above it in the stack: it was left by a jump (longjmp), unless it is on another stack. */
	COURSE_LEFT,
};

/* A call between its entry and its return. */
struct call {
	/* With the function it tells calls of a thread apart. Zero: never used. */
	__u64 stack;
	/* Where the function is. */
	__u64 place;
	__u64 ssl;
	__u64 buffer;
	/* Where the _ex functions leave the length; of SSL_get0_alpn_selected too. */
	__u64 length;
	__u64 start_ns;
	__u32 library;
	/* enum ssl_function */
	__u8 function;
	/* enum course */
	__u8 course;
	/* Made by another call under way for the same bytes, which tells about them. */
	__u8 inner;
	__u8 pad;
};

/* A payload on its way into the ring. */
struct transfer {
	/* Where the payload is, how much of it is to be copied, and how much has been. */
	__u64 address;
	__u64 wanted;
	__u64 done;
	/* What follows and is not to be copied. */
	__u64 cut;
	/* Of the call in its stream. */
	__u64 offset;
	/* enum ssl_lost: why a part is lost. */
	__u64 lost;
	/* SSL_FLAG_* of each of its records. */
	__u64 flags;
	/* How many parts could not be read. */
	__u64 unreadable;
	struct ssl_record head;
};

/* Where a library puts a random number that it asked for in a call for a connection. */
struct noted {
	__u64 ssl;
	__u64 address;
	/* Where it was asked for, and of which library. */
	__u64 place;
	__u32 library;
	__u32 pad;
};

/* A key that is being derived in a call for a connection. */
struct derivation {
	/* Where its return address is; zero: there is none. */
	__u64 stack;
	__u64 ssl;
	__u64 key;
	__u64 size;
	__u64 parameters;
};

/* Memory of the program that passes a socket: the first piece of it. */
struct piece {
	__u64 address;
	__u64 length;
};

struct thread {
	struct call calls[MAX_NESTED];
	struct transfer transfer;
	struct noted noted[MAX_NOTED];
	struct derivation derivation;
	/* What is being received, where that is told at the start of it alone. */
	struct piece receiving;
	/* The call to forget if there are too many. */
	__u32 oldest;
	/* How many were noted since they were last read. */
	__u32 noted_count;
	/* How many of `calls` are under way. */
	__u32 under_way;
	__u32 pad;
	/* Of the connection that the thread used last: its process's, which is another one's only once this thread is
	 * gone. Zero: not known.
	 */
	__u64 incarnation;
};

struct connection_key {
	__u64 ssl;
	__u32 tgid;
	__u32 pad;
};

struct connection {
	__u64 since_ns;
	/* Bytes so far. */
	__u64 offset[2];
	/* When the handshake under way began; zero if none is. */
	__u64 handshake_ns;
	/* Of the socket that user space was told of: peer's address or the last of it, and ports. */
	__u64 socket;
	/* The descriptors that the program gave it to read from and to write to, each plus one; zero if
	 * it gave none, or something else since.
	 */
	__u32 read_fd;
	__u32 write_fd;
	/* GnuTLS: what was to be sent when there was no room. */
	__u64 pending;
	/* enum ssl_via of `socket`. */
	__u8 via;
	/* Pieces of its beginning that were told of, received and sent. */
	__u8 received;
	__u8 sent;
	/* A handshake was done. */
	__u8 done;
	/* Random numbers were made for another one since. */
	__u8 renewed;
	/* Data may pass before the handshake is done. */
	__u8 early;
	/* Its object was another connection's. */
	__u8 again;
	/* It was seen from before its handshake: the program said which end it is. */
	__u8 fresh;
	/* The library has given a reason for a failure before the handshake was done. */
	__u8 failed;
	/* The program has given it something in place of its socket, and no socket since. */
	__u8 no_peer;
	/* How often its socket was used since it was told of, with nothing more to be told: SETTLED at most. */
	__u8 settled;
	__u8 pad;
	/* How many besides one have to free its object. Two that do so at once may both count one, or none. */
	__s32 shared;
	/* Which of the processes with this number it is of, as `processes` says. */
	__u64 incarnation;
};

/* A random number that a call for a connection made, to be sent in its hello. */
struct random_key {
	__u32 tgid;
	__u8 random[RANDOM_SIZE];
};

struct random_of {
	__u64 ssl;
	__u64 since_ns;
};

struct comm {
	char text[COMM_LEN];
};

/* Records, each with a struct ssl_record at its start. User space sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 * 1024 * 1024);
} records SEC(".maps");

/* What each thread is about; gone with the thread.
 * Key: bpf_get_current_pid_tgid(), 8 bytes. Value: struct thread.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u64);
	__type(value, struct thread);
} threads SEC(".maps");

/* Connections, until they are freed, or user space has heard that their process ended. Programs invent as many
 * as they like, so the one that was used least recently makes room.
 * Key: struct connection_key, 16 bytes. Value: struct connection, 80 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_CONNECTIONS);
	__type(key, struct connection_key);
	__type(value, struct connection);
} connections SEC(".maps");

/* Processes that have had connections, until they end: what ends with them is told then.
 * Key: process id (tgid), 4 bytes. Value: when the first was seen, of this process and program, which tells it from
 * those that had the number before: bpf_ktime_get_boot_ns(), 8 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PIDS);
	__type(key, __u32);
	__type(value, __u64);
} processes SEC(".maps");

/* What handshakes made up and no socket has passed yet: see sslsniff_socket.bpf.h.
 * Key: struct random_key, 36 bytes. Value: struct random_of, 16 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_RANDOMS);
	__type(key, struct random_key);
	__type(value, struct random_of);
} randoms SEC(".maps");

/* Processes that are watched, with their children.
 * Key: process id (tgid), 4 bytes. Value: nothing.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PIDS);
	__type(key, __u32);
	__type(value, __u8);
} pids SEC(".maps");

/* Users that are watched.
 * Key: uid in the initial user namespace, 4 bytes. Value: nothing.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NAMED);
	__type(key, __u32);
	__type(value, __u8);
} uids SEC(".maps");

/* Names of threads that are watched.
 * Key: the name, filled up with zeros, 16 bytes. Value: nothing.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NAMED);
	__type(key, struct comm);
	__type(value, __u8);
} comms SEC(".maps");

/* Cgroups that are watched, with those below them.
 * Key: 0 to targ_cgroups - 1, 4 bytes. Value: a descriptor of the folder, 4 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, MAX_CGROUPS);
	__type(key, __u32);
	__type(value, __u32);
} cgroups SEC(".maps");

/* What was lost, by process; of the processes that lost least recently the counters alone know.
 * Key: struct ssl_loss_key, 16 bytes. Value: struct ssl_loss, 32 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_LOSSES);
	__type(key, struct ssl_loss_key);
	__type(value, struct ssl_loss);
} losses SEC(".maps");

/* Libraries that are one file under several numbers, as overlayfs has them: a call was told of by the probes of both.
 * Key: the library whose probe came second, as the cookie has it, 4 bytes. Value: the other, 4 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_TWINS);
	__type(key, __u32);
	__type(value, __u32);
} twins SEC(".maps");

/* How often each thing happened.
 * Key: enum ssl_counter, 4 bytes. Value: a count per CPU, 8 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SSL_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

const struct ssl_record *unused_record __attribute__((unused));
const enum ssl_function *unused_function __attribute__((unused));
const enum ssl_kind *unused_kind __attribute__((unused));
const enum ssl_direction *unused_direction __attribute__((unused));
const enum ssl_lost *unused_lost __attribute__((unused));
const enum ssl_counter *unused_counter __attribute__((unused));
const enum ssl_via *unused_via __attribute__((unused));
const struct ssl_addresses *unused_addresses __attribute__((unused));
const struct ssl_derived *unused_derived __attribute__((unused));
const struct ssl_loss_key *unused_loss_key __attribute__((unused));
const struct ssl_loss *unused_loss __attribute__((unused));
const struct ssl_held *unused_held __attribute__((unused));
const struct connection_key *unused_connection_key __attribute__((unused));
const struct connection *unused_connection __attribute__((unused));

/* What a thread starts with: too large for a program's stack beside the rest. */
const struct thread new_thread;

#endif
