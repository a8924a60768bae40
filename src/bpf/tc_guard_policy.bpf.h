/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who may: the rules of a policy, by user, group and cgroup. A rule is a bit; an endpoint's mask has
 * the rules that open it. All of this is loaded anew with each policy.
 *
 * Helpers: bpf_skb_ancestor_cgroup_id (4.19), bpf_get_current_ancestor_cgroup_id (5.7 in cgroup
 * hooks), bpf_spin_lock (5.1), bpf_ktime_get_ns (4.1).
 */
#ifndef EBPFKIT_TC_GUARD_POLICY_BPF_H
#define EBPFKIT_TC_GUARD_POLICY_BPF_H

#include "lib/endpoints.bpf.h"
#include "lib/executable.bpf.h"
#include "lib/identity.bpf.h"
#include "tc_guard.h"

/* Users, groups and cgroups at most, each. */
#define MAX_SUBJECTS 16384
/* Who sends how fast, at most. */
#define MAX_BUCKETS 65536
/* Groups of a process that are looked at: its own, and so many of its supplementary ones, lowest
 * first.
 */
#define MAX_GROUPS 128

/* Which policy this is, for its reports. */
const volatile __u16 generation;
/* What a packet is marked with that was judged as it came in. Neither this nor this ^ GUARD_COUNTED, the
 * mark of a packet that was counted as it left, is zero.
 */
const volatile __u16 judged;
/* Whether anything is denied, anywhere. */
const volatile __u8 enforcing;
/* Denials are dropped in silence. */
const volatile __u8 silent;
/* What is allowed is reported too. */
const volatile __u8 report_allowed;
/* The network namespace whose sockets have the machine's own users: its cookie, and its inode number. */
const volatile __u64 home_netns;
const volatile __u32 home_inode;
/* Whether rules name groups. */
const volatile __u8 any_groups;
/* Depths at which rules name cgroups, 1 being below the root; then zeros. */
const volatile __u8 cgroup_level[GUARD_CGROUP_LEVELS];
/* Nanoseconds between two packets at the limit, and how much earlier one may come; zero for no limit.
 */
const volatile __u64 limit_interval_ns;
const volatile __u64 limit_tolerance_ns;

/* Which rules a user is a subject of.
 * Key: uid as the initial user namespace has it, 4 bytes. Value: a bit per rule, 8 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_SUBJECTS);
	__type(key, __u32);
	__type(value, __u64);
} users SEC(".maps");

/* Key: gid as the initial user namespace has it, 4 bytes. Value: a bit per rule, 8 bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_SUBJECTS);
	__type(key, __u32);
	__type(value, __u64);
} groups SEC(".maps");

/* Key: the id of a cgroup2 directory, 8 bytes. Value: a bit per rule, 8 bytes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_SUBJECTS);
	__type(key, __u64);
	__type(value, __u64);
} cgroups SEC(".maps");

struct exact_key {
	union address address;
	__be16 port;
	/* IANA; TCP or UDP */
	__u8 protocol;
	__u8 pad;
};

/* Endpoints that are a single port of a single address, as the table of endpoints has them: those that
 * a metadata service has. One lookup in place of two longer ones.
 * Key: struct exact_key, 20 bytes. Value: struct endpoint_target, 16 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2 * MAX_ENDPOINT_PREFIXES);
	__type(key, struct exact_key);
	__type(value, struct endpoint_target);
} exact_endpoints SEC(".maps");

struct grant {
	/* A bit per rule. */
	__u64 rules;
	/* What the socket was allowed first. Written as this is made and never again, so that nobody reads parts
	 * of two: another CPU may be judging a packet of the same socket.
	 */
	struct exact_key first;
	__u32 pad;
};

/* By what a socket's owner was allowed before.
 * Key: the socket. Value: struct grant, 32 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct grant);
} grants SEC(".maps");

/* Those rules that the groups of whoever connected a socket are subjects of. Of this policy alone: of another's the
 * bits mean something else.
 * Key: the socket. Value: a bit per rule, 8 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} memberships SEC(".maps");

struct bucket_key {
	/* The one that a rule named, so that those below it share; zero for sockets whose uid counts. */
	__u64 cgroup;
	__u32 uid;
	__u32 endpoint;
};

struct guard_bucket {
	struct bpf_spin_lock lock;
	__u32 pad;
	/* When the next packet is due (bpf_ktime_get_ns()). */
	__u64 due_ns;
};

/* How fast each user sends to each endpoint.
 * Key: struct bucket_key, 16 bytes. Value: struct guard_bucket, 16 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_BUCKETS);
	__type(key, struct bucket_key);
	__type(value, struct guard_bucket);
} buckets SEC(".maps");

/* What a process runs, where several may write at once, and others read. It is counted how often writing was begun, and
 * ended. Who reads has what was whole if no more was begun at the end than had ended at the beginning; who writes was
 * alone if no more but its own was. (There is no barrier for programs: on a processor that reorders stores, arm64,
 * some nanoseconds are left.)
 */
struct kept_executable {
	struct executable executable;
	__u32 begun;
	__u32 ended;
};

#define READ_NOW(field) (*(const volatile __typeof__(field) *)&(field))

/* Who connected a socket, or sent from it: what the hook leaves there for its packets. */
struct known_caller {
	/* Written after the beginning and before the end, too. */
	struct identity who;
	struct kept_executable kept;
};

static __always_inline __u64 rules_of_user(__u32 uid)
{
	__u64 *rules = bpf_map_lookup_elem(&users, &uid);

	return rules ? *rules : 0;
}

static __always_inline __u64 rules_of_group(__u32 gid)
{
	__u64 *rules = bpf_map_lookup_elem(&groups, &gid);

	return rules ? *rules : 0;
}

static __always_inline __u64 rules_of_cgroup(__u64 id)
{
	__u64 *rules = bpf_map_lookup_elem(&cgroups, &id);

	return rules ? *rules : 0;
}

/* Those of the mask that the socket's cgroup, and all above it, are subjects of. Writes which of these
 * is the uppermost, if there is any.
 */
static __noinline __u64 rules_of_cgroups(struct __sk_buff *skb, __u64 mask, __u64 *named)
{
	__u64 rules = 0, found, id;
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < GUARD_CGROUP_LEVELS; i++) {
		if (!cgroup_level[i])
			break;
		id = bpf_skb_ancestor_cgroup_id(skb, cgroup_level[i]);
		found = rules_of_cgroup(id) & mask;
		if (found && !rules)
			*named = id;
		rules |= found;
	}
	return rules;
}

/* Those of the current task's cgroup and of all above it. */
static __noinline __u64 rules_of_current_cgroups(void)
{
	__u64 rules = 0;
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < GUARD_CGROUP_LEVELS; i++) {
		if (!cgroup_level[i])
			break;
		rules |= rules_of_cgroup(bpf_get_current_ancestor_cgroup_id(cgroup_level[i]));
	}
	return rules;
}

/* Those of the supplementary groups of the current task. Needs CAP_PERFMON, as it reads the kernel's
 * memory: bpf_get_current_task (4.8), bpf_probe_read_kernel (5.5).
 */
static __always_inline __u64 rules_of_supplementary_groups(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct group_info *info = BPF_CORE_READ(task, cred, group_info);
	int count = BPF_CORE_READ(info, ngroups);
	__u64 rules = 0;
	kgid_t gid;
	int i;

	for (i = 0; i < MAX_GROUPS; i++) {
		if (i >= count || bpf_core_read(&gid, sizeof(gid), &info->gid[i]))
			break;
		rules |= rules_of_group(gid.val);
	}
	return rules;
}

/* Whether `packets` more are too many, now. What the table has no room for shares the bucket of
 * nobody, which user space has made.
 */
static __noinline bool over_limit(__u64 cgroup, __u32 uid, __u32 endpoint, __u32 packets)
{
	struct bucket_key key = { .cgroup = cgroup, .uid = uid, .endpoint = endpoint };
	struct bucket_key nobody = {};
	struct guard_bucket fresh = {};
	struct guard_bucket *bucket = bpf_map_lookup_elem(&buckets, &key);
	__u64 now = bpf_ktime_get_ns();
	__u64 due;
	bool over;

	if (!bucket) {
		bpf_map_update_elem(&buckets, &key, &fresh, BPF_NOEXIST);
		bucket = bpf_map_lookup_elem(&buckets, &key);
		if (!bucket) {
			nobody.endpoint = endpoint;
			nobody.uid = -1;
			bucket = bpf_map_lookup_elem(&buckets, &nobody);
		}
		if (!bucket)
			return true;
	}
	/* The generic cell rate algorithm (ITU-T I.371, annex A.1). */
	bpf_spin_lock(&bucket->lock);
	due = bucket->due_ns > now ? bucket->due_ns : now;
	over = due - now > limit_tolerance_ns;
	if (!over)
		bucket->due_ns = due + limit_interval_ns * packets;
	bpf_spin_unlock(&bucket->lock);
	return over;
}

#endif
