/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The layer of tc-guard in connect() and sendmsg(): refuses at once, with EPERM, and leaves at the
 * socket who it was.
 *
 * It judges the process that calls, where TC judges the socket, that is, its creator: who got an
 * allowed user's socket handed down does not pass here. It is the quicker and the better informed
 * layer, not the one that counts: what does not come through here is judged in TC.
 *
 * Helpers: bpf_get_netns_cookie (5.7), bpf_sk_storage_get (5.8), those of identity.bpf.h.
 */
#ifndef EBPFKIT_TC_GUARD_CONNECT_BPF_H
#define EBPFKIT_TC_GUARD_CONNECT_BPF_H

#include "tc_guard_report.bpf.h"

/* What a cgroup hook returns; REFUSE makes the call fail with EPERM. */
#define REFUSE 0
#define PROCEED 1

/* Who connected a socket, or sent from it to a guarded endpoint. It goes with the socket, so that
 * nobody can push it out by making many. Stays when a policy replaces another.
 * Key: the socket. Value: struct caller, 64 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct caller);
} callers SEC(".maps");

/* What opens an endpoint of this mask to the current task, as in opened(). `supplementary` says
 * whether its supplementary groups can be read.
 */
static __always_inline bool opened_to_caller(struct caller *caller, __u64 mask, bool supplementary,
					     __u8 *reason)
{
	__u64 rules = mask & ~GUARD_ENFORCED;

	/* For the packet layer, too, which may judge another user, and so always asked. */
	if (supplementary)
		caller->group_rules =
			rules_of_group(caller->who.gid) | rules_of_supplementary_groups();
	*reason = GUARD_USER;
	if (rules_of_user(caller->who.uid) & rules)
		return true;
	if (caller->group_rules & rules) {
		*reason = GUARD_GROUP;
		return true;
	}
	if (cgroup_level[0] && rules_of_current_cgroups() & rules) {
		*reason = GUARD_CGROUP;
		return true;
	}
	return false;
}

static __always_inline int judge_call(struct bpf_sock_addr *ctx, const union address *remote,
				      bool supplementary)
{
	const struct endpoint_target *target;
	struct caller *kept, caller = {};
	struct sighting seen = {};
	struct guard_key key = {};
	struct packet pkt = {};
	struct bpf_sock *sk;
	bool home;

	pkt.dst = *remote;
	pkt.dport = bpf_ntohs(ctx->user_port);
	pkt.protocol = ctx->protocol;
	target = endpoint_lookup(&pkt.dst, pkt.dport, pkt.protocol);
	if (!target)
		return PROCEED;
	identity_of_current(&caller.who);
	caller.generation = generation;
	/* Containers are judged as their packets come in, by their cgroup. */
	home = bpf_get_netns_cookie(ctx) == home_netns;
	if (home && !opened_to_caller(&caller, target->mask, supplementary, &key.reason) &&
	    target->mask & GUARD_ENFORCED) {
		key.endpoint = target->endpoint;
		key.generation = generation;
		key.verdict = GUARD_DENIED;
		key.uid = caller.who.uid;
		seen.who = &caller.who;
		seen.cgroup = caller.who.cgroup;
		seen.layer = GUARD_CONNECT;
		count(GUARD_DENIED);
		count(GUARD_CALLS);
		report(&pkt, &key, &seen);
		return REFUSE;
	}
	/* What is only audited is reported when it is sent. */
	sk = ctx->sk;
	if (!sk)
		return PROCEED;
	kept = bpf_sk_storage_get(&callers, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (kept)
		*kept = caller;
	return PROCEED;
}

static __always_inline int judge_call_v4(struct bpf_sock_addr *ctx, bool supplementary)
{
	union address remote;
	__be32 v4 = ctx->user_ip4;

	if (!endpoint_possible_v4(bpf_ntohl(v4)))
		return PROCEED;
	address_map_v4(&remote, v4);
	return judge_call(ctx, &remote, supplementary);
}

static __always_inline int judge_call_v6(struct bpf_sock_addr *ctx, bool supplementary)
{
	union address remote;

	remote.word[0] = ctx->user_ip6[0];
	remote.word[1] = ctx->user_ip6[1];
	remote.word[2] = ctx->user_ip6[2];
	remote.word[3] = ctx->user_ip6[3];
	/* An IPv4-mapped destination comes here, and leaves as IPv4. */
	if (!remote.word[0] && !remote.word[1] && remote.word[2] == bpf_htonl(0xffff)) {
		if (!endpoint_possible_v4(bpf_ntohl(remote.word[3])))
			return PROCEED;
	} else if (!endpoint_possible_v6(bpf_ntohl(remote.word[0]) >> 16,
					 bpf_ntohl(remote.word[3]) & 0xffff)) {
		return PROCEED;
	}
	return judge_call(ctx, &remote, supplementary);
}

/* Each twice: the second reads supplementary groups, which needs CAP_PERFMON. */
#define CALL(section, hook, version)                            \
	SEC(section)                                            \
	int hook(struct bpf_sock_addr *ctx)                     \
	{                                                       \
		return judge_call_##version(ctx, false);        \
	}                                                       \
	SEC(section)                                            \
	int hook##_groups(struct bpf_sock_addr *ctx)            \
	{                                                       \
		return judge_call_##version(ctx, true);         \
	}

CALL("cgroup/connect4", connect4, v4)
CALL("cgroup/connect6", connect6, v6)
CALL("cgroup/sendmsg4", sendmsg4, v4)
CALL("cgroup/sendmsg6", sendmsg6, v6)

#endif
