/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The layer of tc-guard in connect() and sendmsg(): refuses at once, with EPERM, and leaves at the
 * socket who it was.
 *
 * It judges the process that calls, where TC judges the socket, that is, its creator: who got an
 * allowed user's socket handed down does not pass here. It is the quicker and the better informed
 * layer, not the one that counts: what does not come through here is judged in TC.
 *
 * Helpers: bpf_get_netns_cookie (5.7), bpf_sk_storage_get (5.8), those of identity.bpf.h and
 * executable.bpf.h.
 */
#ifndef EBPFKIT_TC_GUARD_CONNECT_BPF_H
#define EBPFKIT_TC_GUARD_CONNECT_BPF_H

#include "tc_guard_report.bpf.h"

/* What a cgroup hook returns; REFUSE makes the call fail with EPERM. */
#define REFUSE 0
#define PROCEED 1

/* Who connected a socket, or sent from it to a guarded endpoint, or tried to. It goes with the socket,
 * so that nobody can push it out by making many. Stays when a policy replaces another.
 * Key: the socket. Value: struct known_caller, 384 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct known_caller);
} callers SEC(".maps");

/* What opens an endpoint of this mask to the current task, as in opened(). */
static __always_inline bool opened_to_caller(__u32 uid, __u64 group_rules, __u64 mask, __u8 *reason)
{
	__u64 rules = mask & ~GUARD_ENFORCED;

	*reason = GUARD_USER;
	if (rules_of_user(uid) & rules)
		return true;
	if (group_rules & rules) {
		*reason = GUARD_GROUP;
		return true;
	}
	if (cgroup_level[0] && rules_of_current_cgroups() & rules) {
		*reason = GUARD_CGROUP;
		return true;
	}
	return false;
}

/* Writes to the caller's record at the socket what it runs. Needs CAP_PERFMON.
 *
 * A global function, which the verifier walks through once for each program: inline, it did so for each
 * way that leads here, and starting a guard took five times as long.
 */
int record_executable(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct known_caller *known;

	if (!sk)
		return 0;
	known = bpf_sk_storage_get(&callers, sk, NULL, 0);
	if (!known)
		return 0;
	executable_of((void *)bpf_get_current_task(), &known->kept.executable);
	/* Of a file that is nowhere in a mount there is no path. */
	if (!known->kept.executable.length)
		known->kept.executable.length = EXECUTABLE_PATH;
	return 0;
}

static __always_inline int judge_call(struct bpf_sock_addr *ctx, const union address *remote,
				      bool perfmon)
{
	/* Without room at the socket nobody has looked; what /proc says later is the caller's choice. */
	const struct kept_executable *executable =
		(const struct kept_executable *)(perfmon ? &lost_executable : &no_executable);
	const struct endpoint_target *target;
	struct known_caller *known = NULL;
	__u64 mask, group_rules = 0, *kept;
	struct identity who = {};
	struct sighting seen = {};
	struct guard_key key = {};
	struct packet pkt = {};
	struct bpf_sock *sk;
	__u32 ended = 0;
	bool home;

	pkt.dst = *remote;
	pkt.dport = bpf_ntohs(ctx->user_port);
	pkt.protocol = ctx->protocol;
	target = endpoint_lookup(&pkt.dst, pkt.dport, pkt.protocol);
	if (!target)
		return PROCEED;
	mask = target->mask;
	key.endpoint = target->endpoint;
	if (perfmon)
		identity_of_current(&who);
	else
		identity_without_comm(&who);
	sk = ctx->sk;
	/* For the packet layer too, which may judge another user: so whoever it is. */
	if (perfmon && any_groups) {
		group_rules = rules_of_group(who.gid) | rules_of_supplementary_groups();
		kept = sk ? bpf_sk_storage_get(&memberships, sk, NULL,
					       BPF_SK_STORAGE_GET_F_CREATE) :
			    NULL;
		if (kept)
			*kept = group_rules;
	}
	if (sk)
		known = bpf_sk_storage_get(&callers, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	/* Else clang copies all of it from read-only data, where no pointer can be. */
	barrier_var(executable);
	if (known) {
		ended = READ_NOW(known->kept.ended) + 1;
		__sync_fetch_and_add(&known->kept.begun, 1);
		asm volatile("" ::: "memory");
		known->who = who;
		if (perfmon) {
			record_executable(ctx);
			executable = &known->kept;
		}
		asm volatile("" ::: "memory");
		/* Another call has written in between, and this may be parts of both: it is nobody's. The last of
		 * those that do so finds out.
		 */
		if (READ_NOW(known->kept.begun) != ended) {
			__builtin_memset(&known->who, 0, sizeof(known->who));
			/* Else /proc is asked, of whoever calls next. */
			if (perfmon)
				known->kept.executable.length = EXECUTABLE_PATH;
		}
		__sync_fetch_and_add(&known->kept.ended, 1);
	}
	/* Containers are judged as their packets come in, by their cgroup. */
	home = bpf_get_netns_cookie(ctx) == home_netns;
	if (home && !opened_to_caller(who.uid, group_rules, mask, &key.reason) &&
	    mask & GUARD_ENFORCED) {
		key.generation = generation;
		key.verdict = GUARD_DENIED;
		key.uid = who.uid;
		seen.who = &who;
		seen.executable = executable;
		seen.ended = ended;
		seen.cgroup = who.cgroup;
		seen.layer = GUARD_CONNECT;
		count(GUARD_DENIED);
		count(GUARD_CALLS);
		report(&pkt, &key, &seen);
		return REFUSE;
	}
	/* What is only audited is reported when it is sent. */
	return PROCEED;
}

static __always_inline int judge_call_v4(struct bpf_sock_addr *ctx, bool perfmon)
{
	union address remote;
	__be32 v4 = ctx->user_ip4;

	if (!endpoint_possible_v4(bpf_ntohl(v4)))
		return PROCEED;
	address_map_v4(&remote, v4);
	return judge_call(ctx, &remote, perfmon);
}

static __always_inline int judge_call_v6(struct bpf_sock_addr *ctx, bool perfmon)
{
	__u32 port = ctx->user_port;
	union address remote;
	__u32 first;

	remote.word[0] = ctx->user_ip6[0];
	remote.word[1] = ctx->user_ip6[1];
	remote.word[2] = ctx->user_ip6[2];
	remote.word[3] = ctx->user_ip6[3];
	/* An IPv4-mapped destination comes here, and leaves as IPv4. */
	if (!remote.word[0] && !remote.word[1] && remote.word[2] == bpf_htonl(0xffff)) {
		if (!endpoint_possible_v4(bpf_ntohl(remote.word[3])))
			return PROCEED;
	} else {
		/* A constant on the path where it is zero, and an access that is a different one on each
		 * path is refused without CAP_PERFMON.
		 */
		first = bpf_ntohl(remote.word[0]) >> 16;
		forget_bounds(first, port);
		if (!endpoint_possible_v6(first, bpf_ntohl(remote.word[3]) & 0xffff))
			return PROCEED;
	}
	return judge_call(ctx, &remote, perfmon);
}

/* Each twice: the second reads the task's name and its supplementary groups, which takes
 * CAP_PERFMON.
 */
#define CALL(section, hook, version)                     \
	SEC(section)                                     \
	int hook(struct bpf_sock_addr *ctx)              \
	{                                                \
		return judge_call_##version(ctx, false); \
	}                                                \
	SEC(section)                                     \
	int hook##_perfmon(struct bpf_sock_addr *ctx)    \
	{                                                \
		return judge_call_##version(ctx, true);  \
	}

CALL("cgroup/connect4", connect4, v4)
CALL("cgroup/connect6", connect6, v6)
CALL("cgroup/sendmsg4", sendmsg4, v4)
CALL("cgroup/sendmsg6", sendmsg6, v6)

#endif
