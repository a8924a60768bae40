/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What tc-guard tells: exact counters, a table of totals and a ring of events. All of this stays when
 * a policy replaces another.
 *
 * Helpers: bpf_ktime_get_boot_ns and the ring buffer (5.8).
 */
#ifndef EBPFKIT_TC_GUARD_REPORT_BPF_H
#define EBPFKIT_TC_GUARD_REPORT_BPF_H

#include "tc_guard_policy.bpf.h"

/* Packet keys that are reported apart at most. */
#define MAX_REPORTS 32768

/* Nanoseconds between two events of one key. */
const volatile __u64 event_interval_ns = 1000000000;

/* How often each thing happened.
 * Key: enum guard_verdict or enum guard_counter, 4 bytes. Value: a count per CPU, 8 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, GUARD_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* How many packets of each key there were, so that a flood costs an event a second and no count.
 * Key: struct guard_key, 24 bytes. Value: struct guard_report, 16 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_REPORTS);
	__type(key, struct guard_key);
	__type(value, struct guard_report);
} reports SEC(".maps");

/* struct guard_event, one after another. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

const struct guard_event *unused_event __attribute__((unused));
const struct guard_report *unused_report __attribute__((unused));
const enum guard_reason *unused_reason __attribute__((unused));
const enum guard_counter *unused_counter __attribute__((unused));
const enum guard_verdict *unused_verdict __attribute__((unused));
const enum guard_layer *unused_layer __attribute__((unused));

static __always_inline void count(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &counter);

	/* Atomic, as a PREEMPT_RT kernel may run another packet of this CPU in between. */
	if (value)
		__sync_fetch_and_add(value, 1);
}

/* Of whom nothing is known. */
const volatile struct identity nobody;
/* Of which nobody can know more than /proc says, and of which /proc is not to be asked. */
const volatile struct kept_executable no_executable;
const volatile struct kept_executable lost_executable = {
	.executable = { .length = EXECUTABLE_PATH },
};

/* Where and by whom something was seen. */
struct sighting {
	/* Never NULL: without CAP_PERFMON the verifier lets nobody ask whether a place on the stack is. */
	const struct identity *who;
	/* Likewise. */
	const struct kept_executable *executable;
	__u64 cgroup;
	__u32 ifindex;
	/* How often it had been written when `who` was found there. */
	__u32 ended;
	/* enum guard_layer */
	__u8 layer;
};

static __always_inline void send_event(const struct packet *pkt, const struct guard_key *key,
				       const struct sighting *seen, struct guard_report *report,
				       __u64 now)
{
	struct guard_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		/* The next packet of the key tries again, with the whole count. */
		count(GUARD_EVENTS_LOST);
		return;
	}
	report->last_ns = now;
	event->time_ns = now;
	event->total = report->total;
	event->cgroup = seen->cgroup;
	event->key = *key;
	event->who = *seen->who;
	__builtin_memcpy(event->src, &pkt->src, sizeof(event->src));
	__builtin_memcpy(event->dst, &pkt->dst, sizeof(event->dst));
	event->ifindex = seen->ifindex;
	event->sport = pkt->sport;
	event->dport = pkt->dport;
	event->protocol = pkt->protocol;
	event->transport = pkt->transport_state;
	event->layer = seen->layer;
	__builtin_memset(event->pad, 0, sizeof(event->pad));
	event->executable = seen->executable->executable;
	/* Another call writes meanwhile, or has: these may be parts of two, or another's. */
	asm volatile("" ::: "memory");
	if (READ_NOW(seen->executable->begun) != seen->ended) {
		event->executable.length = EXECUTABLE_PATH;
		/* A call knows itself. */
		if (seen->layer != GUARD_CONNECT)
			__builtin_memset(&event->who, 0, sizeof(event->who));
	}
	bpf_ringbuf_submit(event, 0);
}

/* Not inline: its stack is its own. Where a compiler puts a number into the place of a pointer that it
 * no longer needs, the verifier objects without CAP_PERFMON.
 */
static __noinline void report(const struct packet *pkt, const struct guard_key *key,
			      const struct sighting *seen)
{
	struct guard_report *entry = bpf_map_lookup_elem(&reports, key);
	struct guard_report fresh = {};
	struct guard_key told = *key;
	__u64 now;

	if (!entry) {
		/* Another CPU may be faster: then its entry is the one to count in. */
		bpf_map_update_elem(&reports, key, &fresh, BPF_NOEXIST);
		entry = bpf_map_lookup_elem(&reports, key);
		if (!entry) {
			/* Full: user space has made an entry for all who come now, one for each verdict:
			 * as many as there is room for, however many endpoints and policies there are.
			 */
			told.cgroup = 0;
			told.uid = 0;
			told.endpoint = GUARD_NO_ENDPOINT;
			told.generation = 0;
			told.reason = GUARD_OTHERS;
			entry = bpf_map_lookup_elem(&reports, &told);
		}
		if (!entry) {
			count(GUARD_UNREPORTED);
			return;
		}
	}
	__sync_fetch_and_add(&entry->total, 1);
	now = bpf_ktime_get_boot_ns();
	if (!entry->last_ns || now - entry->last_ns >= event_interval_ns)
		send_event(pkt, &told, seen, entry, now);
}

#endif
