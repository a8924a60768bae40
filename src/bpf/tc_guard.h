/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What tc-guard's programs and its user space share. Include lib/identity.bpf.h and
 * lib/executable.bpf.h first.
 */
#ifndef EBPFKIT_TC_GUARD_H
#define EBPFKIT_TC_GUARD_H

/* What became of a packet to a guarded endpoint, or of a call that would have sent one; also the
 * index of its counter.
 */
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
	/* The uid: of the socket's creator, or of the caller. */
	GUARD_USER,
	/* A group of the caller. */
	GUARD_GROUP,
	/* The socket's or the caller's cgroup, or one above it. */
	GUARD_CGROUP,
	/* No socket: forwarded, or made by the kernel or by a raw device. */
	GUARD_NO_SOCKET,
	/* TIME_WAIT or a connection request: a socket without an owner. */
	GUARD_PARTIAL_SOCKET,
	/* A socket of another network namespace: its uid is what its user namespace calls it. */
	GUARD_FOREIGN_SOCKET,
	/* Allowed, but too often. */
	GUARD_OVER_LIMIT,
	/* Only in a report: whoever came when the table of reports was full. */
	GUARD_OTHERS,
	/* Behind more VLAN tags than are looked behind: it may go anywhere. */
	GUARD_UNREADABLE,
};

/* Who saw it. */
enum guard_layer {
	GUARD_TC_EGRESS,
	GUARD_TC_INGRESS,
	/* connect() or sendmsg(): nothing was sent. */
	GUARD_CONNECT,
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
	/* Calls that were refused with EPERM; they are among GUARD_DENIED. */
	GUARD_CALLS,
	/* Packets over the limit; they are among GUARD_DENIED or GUARD_WOULD_DENY. */
	GUARD_LIMITED,
	GUARD_COUNTERS,
};

/* The bit of an endpoint's mask that says that what no rule opens is denied, not only reported. The
 * other bits are rules.
 */
#define GUARD_ENFORCED (1ULL << 63)

/* In a key: no endpoint in particular. */
#define GUARD_NO_ENDPOINT 0xffffffffU

/* The bit in which the mark of a packet that was counted as it left differs from that of one that was
 * judged as it came in.
 */
#define GUARD_COUNTED 0x8000

/* Depths of cgroups below the root at which rules may name them, at most. */
#define GUARD_CGROUP_LEVELS 8

/* Packets with the same key are reported together. */
struct guard_key {
	/* bpf_skb_cgroup_id() of a GUARD_FOREIGN_SOCKET, else zero. */
	__u64 cgroup;
	/* Zero unless the reason is GUARD_USER, GUARD_GROUP, GUARD_CGROUP or GUARD_OVER_LIMIT. As the
	 * initial user namespace has it.
	 */
	__u32 uid;
	/* Index of the endpoint in user space's list of this generation, or GUARD_NO_ENDPOINT. */
	__u32 endpoint;
	/* Which policy: 0 at first, one more with each that replaces another. 0 for GUARD_OTHERS. */
	__u16 generation;
	/* enum guard_verdict, enum guard_reason */
	__u8 verdict;
	__u8 reason;
	__u8 pad[4];
};

struct guard_report {
	/* Packets and calls so far. */
	__u64 total;
	/* bpf_ktime_get_boot_ns() of the last event that was sent. */
	__u64 last_ns;
};

/* A packet or call that was judged, and how many of its key there have been. */
struct guard_event {
	__u64 time_ns;
	__u64 total;
	/* Of the socket, or of the caller; zero if there is neither. */
	__u64 cgroup;
	struct guard_key key;
	/* Who connected the socket; pid zero if nobody knows. */
	struct identity who;
	/* IPv4 addresses are IPv4-mapped. The source of a call is not known yet, and zero. */
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
	/* enum guard_layer */
	__u8 layer;
	__u8 pad[5];
	/* Of `who`, as it was then. */
	struct executable executable;
};

#endif
