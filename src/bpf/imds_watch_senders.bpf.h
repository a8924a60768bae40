/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who may be scanning: senders that ask for many different paths, or for many that are not there. From then
 * on their clean requests go up, too.
 *
 * Helpers: bpf_ktime_get_boot_ns (5.8).
 */
#ifndef EBPFKIT_IMDS_WATCH_SENDERS_BPF_H
#define EBPFKIT_IMDS_WATCH_SENDERS_BPF_H

#include "imds_watch_scan.bpf.h"
#include "lib/packet.bpf.h"

/* Nanoseconds within which many paths, or many answers "not found", are a scan. */
const volatile __u64 scan_window;

struct sender {
	/* Nanoseconds since boot: when it was begun to count, and until when clean requests go up. */
	__u64 since;
	__u64 until;
	/* Answers "not found". */
	__u32 misses;
	/* Different paths that clean requests asked for: the bits that are set below, but for packets with
	 * several requests in them, which count as so many.
	 */
	__u32 paths;
	/* A bit for each, by its hash. Two may share one: of 64, two or so do. */
	__u64 asked[SCAN_BITS / 64];
};

/* who asks, by address (16 bytes) -> what for, of late (152 bytes) */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, union address);
	__type(value, struct sender);
} senders SEC(".maps");

static const struct sender new_sender;

/* What a sender did within the window that `now` is in; NULL if there is no room to remember it. */
static __always_inline struct sender *sender_at(const union address *who, __u64 now)
{
	struct sender *sender = bpf_map_lookup_elem(&senders, who);

	if (!sender) {
		/* Too long for the stack. */
		bpf_map_update_elem(&senders, who, &new_sender, BPF_ANY);
		sender = bpf_map_lookup_elem(&senders, who);
		if (!sender)
			return NULL;
	}
	if (!sender->since || now - sender->since >= scan_window) {
		sender->since = now;
		sender->misses = 0;
		sender->paths = 0;
		__builtin_memset(sender->asked, 0, sizeof(sender->asked));
	}
	return sender;
}

/* Counts `len` bytes of clean requests; whether they are to be seen, as their sender may be scanning. */
static __always_inline bool may_be_scan(const union address *who, __u32 len)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct sender *sender = sender_at(who, now);
	__u32 asked;
	__u64 *word;
	__u64 bit;

	if (!sender)
		return true;
	asked = imds_asked(len);
	word = &sender->asked[asked / 64 % (SCAN_BITS / 64)];
	bit = 1ULL << (asked & 63);
	if (!(*word & bit)) {
		*word |= bit;
		sender->paths += asked / SCAN_BITS;
		if (sender->paths > SCAN_PATHS)
			sender->until = now + scan_window;
	}
	return now < sender->until;
}

/* Counts an answer "not found"; whether its sender's requests were to be seen before. */
static __always_inline bool count_miss(const union address *who)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct sender *sender = sender_at(who, now);
	bool seen;

	if (!sender)
		return false;
	seen = now < sender->until;
	__sync_fetch_and_add(&sender->misses, 1);
	if (sender->misses >= SCAN_MISSES)
		sender->until = now + scan_window;
	return seen;
}

#endif
