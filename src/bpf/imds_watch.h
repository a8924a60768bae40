/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What imds_watch.bpf.c and src/tools/imds_watch share. */
#ifndef EBPFKIT_IMDS_WATCH_H
#define EBPFKIT_IMDS_WATCH_H

/* Bytes of payload that are scanned; a longer one goes up. */
#define SCAN_LIMIT 2048
/* Room in the scanner's table: a state is the place of its row. */
#define SCAN_STATE_BITS 17
#define SCAN_ENTRIES (1 << SCAN_STATE_BITS)
/* Bytes of a packet that go up: more than any, BIG TCP aside. */
#define SNAP_LENGTH 131072

/* Bytes of an answer that go up: "HTTP/1.1 200". */
#define STATUS_LENGTH 12
/* Bytes of "HTTP/1.1 100 Continue" and the two line ends behind it, */
#define CONTINUE_LENGTH 25
/* and those within which the head of such an answer is looked for. */
#define HEAD_LIMIT 256
/* From so many answers "not found" on within a window, all requests of a sender go up; */
#define SCAN_MISSES 8
/* and after so many different paths. */
#define SCAN_PATHS 64
/* Bits by which they are told apart: a power of two. */
#define SCAN_BITS 1024

/* The scanner's flags that make a request suspicious: SUSPICIOUS, BODY. END is the highest bit of all. */
#define SCAN_BAD 0x3000
/* BODY alone. */
#define SCAN_BODY 0x1000

/* Processors that have a place for what they see. */
#define SEEN_CPUS 1024

/* An endpoint's mask: the scanner's flags of which a request needs one, if there are any, */
#define IMDS_HEADERS 0x003fULL
/* (as many above them say that the request's path is one where that header does not count) */
#define SCAN_HEADERS 6
/* and whether every request to it goes up. */
#define IMDS_ALWAYS (1ULL << 63)

/* Packets. concerning = clean + delivered. */
struct imds_counters {
	/* All that the filter was shown, but for what processors below SEEN_CPUS count in `seen`. */
	__u64 seen;
	/* With payload for an endpoint, or possibly, and answers that go up. */
	__u64 concerning;
	__u64 clean;
	/* Handed to the socket, which may still have no room. */
	__u64 delivered;
};

#endif
