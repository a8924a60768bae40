/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is in a payload: whether its requests are clean, what they ask for, and where a head ends. All of
 * it reads a copy of the payload, byte by byte.
 *
 * Helpers: bpf_skb_load_bytes (4.5); global functions (5.6).
 */
#ifndef EBPFKIT_IMDS_WATCH_SCAN_BPF_H
#define EBPFKIT_IMDS_WATCH_SCAN_BPF_H

#include "lib/common.bpf.h"
#include "imds_watch.h"

/* src/tools/imds_watch/scanner.rs: for each byte its class; at state + class the next state in the
 * low SCAN_STATE_BITS and the flags it raises in the high ones.
 */
const volatile __u8 scan_classes[256];
const volatile __u32 scan_table[SCAN_ENTRIES];
const volatile __u32 scan_start;
/* Random, so that nobody can choose paths whose hashes are alike; the second one is odd. */
const volatile __u64 scan_key[2];

/* Bytes that are read at a time: SCAN_LIMIT is a multiple of it. */
#define SCAN_PART 64

struct scratch {
	__u8 byte[SCAN_LIMIT];
	/* Where the automaton is: what scan_table had last. */
	__u32 entry;
	/* Raised by the request that it is in. */
	__u32 flags;
	/* Those that make one of the requests suspicious, or 1 where a header is missing. */
	__u32 bad;
	/* How many requests have ended. */
	__u32 requests;
	/* What the requests ask for, so far. */
	__u64 hash;
	/* Spaces up to there. */
	__u32 spaces;
	/* Whether no more of it counts. */
	__u32 hashed;
};

/* 0 -> room for a payload and what is found in it (2080 bytes). A socket filter runs with bottom halves disabled:
 * one CPU, one user.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline struct scratch *scratch_room(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

enum finding {
	/* Complete requests that are as they should be. */
	CLEAN,
	/* Complete requests, one of which is not. */
	SUSPICIOUS,
	/* Not, or not only, complete requests, or services disagree about what they are. */
	UNREADABLE,
};

/* Runs the automaton on from byte `from` for SCAN_PART bytes, but for none behind `len`.
 *
 * A global function (kernel 5.6): the verifier follows each round of its loop, once, and not for each part,
 * nor for each of the ways that lead there: an eighth of the instructions that the filter would else be.
 */
__noinline int imds_scan_part(__u32 from, __u32 len, __u32 required)
{
	/* Nothing is missing where nothing is required. */
	__u32 needed = required ? 1 : 0;
	struct scratch *room = scratch_room();
	__u32 requests, entry, flags, bad;
	__u32 i;

	if (!room)
		return 0;
	entry = room->entry;
	flags = room->flags;
	bad = room->bad;
	requests = room->requests;
	/* No branch but the loop's own. */
	for (i = 0; i < SCAN_PART; i++) {
		__u32 at = from + i;
		__u32 missing;
		__u32 ended;

		if (at >= len)
			break;
		/* Changes nothing: no payload is longer. */
		barrier_var(at);
		at &= SCAN_LIMIT - 1;
		entry = (entry & (SCAN_ENTRIES - 1)) + scan_classes[room->byte[at]];
		entry = scan_table[entry & (SCAN_ENTRIES - 1)];
		flags |= entry >> SCAN_STATE_BITS;
		/* All ones where a head ends, else zero. */
		ended = (__s32)entry >> 31;
		barrier_var(ended);
		/* 1 where no required flag was raised that counts, else 0. */
		missing = ((flags & ~(flags >> SCAN_HEADERS) & required) - 1) >> 31;
		barrier_var(missing);
		bad |= ended & (flags & SCAN_BAD);
		bad |= ended & missing & needed;
		flags &= ~ended;
		requests -= ended;
	}
	room->entry = entry;
	room->flags = flags;
	room->bad = bad;
	room->requests = requests;
	return 0;
}

/* Runs the automaton over `len` bytes of payload; says which enum finding. scanner.rs does the same
 * in Scanner::clean(). `required` are flags, of which each request needs one
 * that its path does not rule out.
 */
__noinline int imds_scan(struct __sk_buff *skb, __u32 payload, __u32 len, __u32 required)
{
	struct scratch *room = scratch_room();
	__u32 from, last;

	if (!room)
		return UNREADABLE;
	/* By way of the last byte's index: from "not zero" a kernel of 5.10 does not conclude "one at
	 * least", which the helper wants.
	 */
	last = len - 1;
	barrier_var(last);
	if (last >= SCAN_LIMIT)
		return UNREADABLE;
	if (bpf_skb_load_bytes(skb, payload, room->byte, last + 1))
		return UNREADABLE;
	room->entry = scan_start;
	room->flags = 0;
	room->bad = 0;
	room->requests = 0;
	for (from = 0; from < SCAN_LIMIT; from += SCAN_PART) {
		if (from >= len)
			break;
		imds_scan_part(from, len, required);
	}
	if (!(room->entry >> 31) || room->bad & SCAN_BODY)
		return UNREADABLE;
	return room->bad ? SUSPICIOUS : CLEAN;
}

/* 1 for zero, and 0 for a number up to 2^31, without a branch: the verifier would follow both. */
static __always_inline __u32 is_zero(__u32 number)
{
	__u32 borrow = number - 1;

	barrier_var(borrow);
	return borrow >> 31;
}

/* Hashes on from byte `from` for SCAN_PART bytes, as imds_scan_part() scans. */
__noinline int imds_asked_part(__u32 from, __u32 len)
{
	struct scratch *room = scratch_room();
	__u32 single, spaces, i;
	__u64 hash;

	if (!room)
		return 0;
	single = is_zero(room->requests ^ 1);
	spaces = room->spaces;
	hash = room->hash;
	for (i = 0; i < SCAN_PART; i++) {
		__u32 at = from + i;
		__u32 byte;

		if (at >= len)
			break;
		barrier_var(at);
		at &= SCAN_LIMIT - 1;
		byte = room->byte[at];
		/* The first space is behind the method. */
		spaces += is_zero(byte ^ ' ');
		if (single & (spaces >> 1 | is_zero(byte ^ '?'))) {
			room->hashed = 1;
			break;
		}
		hash = (hash ^ byte) * scan_key[1];
	}
	room->spaces = spaces;
	room->hash = hash;
	return 0;
}

/* A keyed hash of what those requests ask for that imds_scan() has just found to be clean, in the low
 * bits, and above SCAN_BITS how many requests there are. One request is looked at up to the end of its
 * path, of several every byte.
 */
__noinline int imds_asked(__u32 len)
{
	struct scratch *room = scratch_room();
	__u64 hash;
	__u32 from;

	if (!room)
		return 0;
	room->hash = scan_key[0];
	room->spaces = 0;
	room->hashed = 0;
	for (from = 0; from < SCAN_LIMIT; from += SCAN_PART) {
		if (from >= len || room->hashed)
			break;
		imds_asked_part(from, len);
	}
	/* Each bit of it shall depend on every byte. */
	hash = (room->hash ^ room->hash >> 32) * scan_key[1];
	return room->requests * SCAN_BITS | (hash >> 32 & (SCAN_BITS - 1));
}

/* How many bytes the head has that `len` bytes of payload begin with, its empty line included; 0 if it
 * is longer than HEAD_LIMIT. A global function, as imds_scan_part() is.
 */
__noinline int imds_head(struct __sk_buff *skb, __u32 payload, __u32 len)
{
	struct scratch *room = scratch_room();
	__u32 latest = 0;
	__u32 last;
	__u32 i;

	if (!room)
		return 0;
	if (len > HEAD_LIMIT)
		len = HEAD_LIMIT;
	/* Kept from the compiler, which would leave the loop to this bound alone. */
	barrier_var(len);
	/* As imds_scan() does. */
	last = len - 1;
	barrier_var(last);
	if (last >= HEAD_LIMIT || bpf_skb_load_bytes(skb, payload, room->byte, last + 1))
		return 0;
	for (i = 0; i < HEAD_LIMIT; i++) {
		if (i >= len)
			break;
		latest = latest << 8 | room->byte[i];
		/* "\r\n\r\n" */
		if (latest == 0x0d0a0d0a)
			return i + 1;
	}
	return 0;
}

#endif
