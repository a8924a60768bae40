/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What tc-guard's programs and its user space share. */
#ifndef EBPFKIT_TC_GUARD_H
#define EBPFKIT_TC_GUARD_H

/* What became of a packet to a guarded endpoint; also the index of its counter. */
enum guard_verdict {
	GUARD_ALLOWED,
	GUARD_DENIED,
	/* Audit: it would have been denied, and passed. */
	GUARD_WOULD_DENY,
	/* A TCP segment that carries nothing out and opens nothing: not judged. */
	GUARD_PASSED,
	GUARD_VERDICTS,
};

/* What the verdict was made from. */
enum guard_reason {
	/* The uid of the socket's creator. */
	GUARD_USER,
	/* No socket: forwarded, or made by the kernel or by a raw device. */
	GUARD_NO_SOCKET,
	/* TIME_WAIT or a connection request: a socket without an owner. */
	GUARD_PARTIAL_SOCKET,
	/* A socket of another network namespace: its uid is what its user namespace calls it. */
	GUARD_FOREIGN_SOCKET,
	/* Only in a report: whoever came when the table of reports was full. */
	GUARD_OTHERS,
};

/* Counters besides those of the verdicts. */
enum guard_counter {
	GUARD_EVENTS_LOST = GUARD_VERDICTS,
	/* Packets that found the table of reports full. */
	GUARD_UNREPORTED,
	GUARD_RESETS,
	GUARD_PROHIBITED,
	/* Denials that could not be answered and were dropped instead. */
	GUARD_UNANSWERED,
	GUARD_COUNTERS,
};

/* Packets with the same key are reported together. */
struct guard_key {
	/* Zero unless the reason is GUARD_USER. As the socket's network namespace's user namespace has
	 * it: the initial one, for the machine's own sockets.
	 */
	__u32 uid;
	/* Index of the endpoint in user space's list. */
	__u32 endpoint;
	/* enum guard_verdict, enum guard_reason */
	__u8 verdict;
	__u8 reason;
	__u8 pad[6];
};

struct guard_report {
	/* Packets so far. */
	__u64 total;
	/* bpf_ktime_get_boot_ns() of the last event that was sent. */
	__u64 last_ns;
};

/* A packet that was judged, and how many of its key there have been. */
struct guard_event {
	__u64 time_ns;
	__u64 total;
	/* Zero if there is no socket. */
	__u64 cgroup;
	struct guard_key key;
	/* IPv4 addresses are IPv4-mapped. */
	__u8 src[16];
	__u8 dst[16];
	__u32 ifindex;
	/* Host byte order; zero where the protocol has none or they are not known. */
	__u16 sport;
	__u16 dport;
	/* IANA */
	__u8 protocol;
	/* enum transport */
	__u8 transport;
	__u8 pad[6];
};

#endif
