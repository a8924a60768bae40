// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc-guard: lets only sockets of chosen users, groups and cgroups send to guarded endpoints. These
 * are the programs that judge; the gates (guard_gate.bpf.c) jump to them.
 *
 * The packet that concerns nobody leaves after a few instructions and without a helper call. A
 * packet to a guarded endpoint is judged by the socket it came from; a packet without one has no
 * identity and is refused, unless it carries nothing out or was judged as it came in.
 *
 * Beyond those of the headers: bpf_skb_cgroup_id (4.18), bpf_sk_storage_get (5.2 in TC, of any socket 5.10).
 */
#include "tc_guard_report.bpf.h"
#include "tc_guard_connect.bpf.h"
#include "tc_guard_owner.bpf.h"
#include "lib/answer.bpf.h"

/* LOOPBACK_IFINDEX of net/net_namespace.h */
#define LOOPBACK 1

/* Turns the packet into the answer that its sender gets instead. */
static __noinline int deny(struct __sk_buff *skb, const struct packet *pkt, bool ethernet,
			   __u64 redirect)
{
	if (silent)
		return TC_ACT_SHOT;
	if (!answer_is_possible(pkt))
		goto unanswered;
	if (pkt->protocol == PROTO_TCP) {
		if (answer_reset(skb, pkt, ethernet))
			goto unanswered;
		count(GUARD_RESETS);
	} else {
		if (answer_prohibited(skb, pkt, ethernet))
			goto unanswered;
		count(GUARD_PROHIBITED);
	}
	/* It is on its way to its sender already, by the route that it has: without one, as what is redirected,
	 * nothing may come in from 127.0.0.0/8 (ip_route_input_slow()).
	 */
	if (skb->ifindex == LOOPBACK && redirect)
		return TC_ACT_UNSPEC;
	return bpf_redirect(skb->ifindex, redirect);
unanswered:
	count(GUARD_UNANSWERED);
	return TC_ACT_SHOT;
}

/* The rules by which the packet's owner may reach an endpoint of this mask, or 0. Writes what the verdict
 * is made from: GUARD_USER, GUARD_GROUP or GUARD_CGROUP or, if nothing opens it, the owner's own reason.
 * Of GUARD_CGROUP also which cgroup.
 */
static __noinline __u64 opened(struct __sk_buff *skb, const struct owner *owner, __u64 mask,
			       __u8 *reason, __u64 *cgroup)
{
	__u64 rules;

	mask &= ~GUARD_ENFORCED;
	*reason = owner->reason;
	if (owner->reason == GUARD_USER) {
		rules = rules_of_user(owner->uid) & mask;
		if (rules)
			return rules;
		rules = owner->group_rules & mask;
		if (rules) {
			*reason = GUARD_GROUP;
			return rules;
		}
	}
	if (owner->socket && cgroup_level[0]) {
		rules = rules_of_cgroups(skb, mask, cgroup);
		if (rules) {
			*reason = GUARD_CGROUP;
			return rules;
		}
	}
	return 0;
}

static __always_inline bool same_destination(const struct exact_key *one,
					     const struct exact_key *other)
{
	return one->address.word[3] == other->address.word[3] && one->port == other->port &&
	       one->protocol == other->protocol && one->address.word[0] == other->address.word[0] &&
	       one->address.word[1] == other->address.word[1] &&
	       one->address.word[2] == other->address.word[2];
}

/* Whether the packet's socket was allowed the same endpoint before: a connection is judged once, and then
 * looked up. One that has sent to several endpoints takes one lookup more for all but the first.
 */
static __always_inline bool granted_before(struct __sk_buff *skb, const struct exact_key *key)
{
	const struct endpoint_target *target;
	const struct grant *grant;
	struct bpf_sock *sk;

	if (!has_ports(key->protocol))
		return false;
	sk = skb->sk;
	if (!sk)
		return false;
	grant = bpf_sk_storage_get(&grants, sk, NULL, 0);
	if (!grant)
		return false;
	if (same_destination(&grant->first, key))
		return true;
	target = bpf_map_lookup_elem(&exact_endpoints, key);
	/* Never with GUARD_ENFORCED. */
	return target && grant->rules & target->mask;
}

/* Only packets of the usual form; for whatever is not one, judge() has an answer. Not inline, one for each
 * place of the header and each version: of branches side by side clang makes one access with an offset
 * that differs, which the verifier refuses without CAP_PERFMON.
 */
#define ALLOWED_BEFORE(place, network)                                                    \
	static __noinline bool allowed_before_v4_##place(struct __sk_buff *skb)           \
	{                                                                                 \
		void *end = (void *)(long)skb->data_end;                                  \
		struct iphdr *ip = (void *)(long)skb->data + network;                     \
		__be16 *ports = (void *)(ip + 1);                                         \
		struct exact_key key = {};                                                \
                                                                                          \
		if ((void *)(ports + 2) > end || *(__u8 *)ip != 0x45 ||                   \
		    ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET)) \
			return false;                                                     \
		address_map_v4(&key.address, ip->daddr);                                  \
		key.protocol = ip->protocol;                                              \
		key.port = ports[1];                                                      \
		return granted_before(skb, &key);                                         \
	}                                                                                 \
	static __noinline bool allowed_before_v6_##place(struct __sk_buff *skb)           \
	{                                                                                 \
		void *end = (void *)(long)skb->data_end;                                  \
		struct ipv6hdr *ip = (void *)(long)skb->data + network;                   \
		__be16 *ports = (void *)(ip + 1);                                         \
		struct exact_key key = {};                                                \
                                                                                          \
		if ((void *)(ports + 2) > end || ip->version != 6)                        \
			return false;                                                     \
		key.address.word[0] = *(volatile __be32 *)&ip->daddr.in6_u.u6_addr32[0];  \
		key.address.word[1] = *(volatile __be32 *)&ip->daddr.in6_u.u6_addr32[1];  \
		key.address.word[2] = *(volatile __be32 *)&ip->daddr.in6_u.u6_addr32[2];  \
		key.address.word[3] = *(volatile __be32 *)&ip->daddr.in6_u.u6_addr32[3];  \
		key.protocol = ip->nexthdr;                                               \
		key.port = ports[1];                                                      \
		return granted_before(skb, &key);                                         \
	}

ALLOWED_BEFORE(eth, ETH_HLEN)
ALLOWED_BEFORE(ip, 0)

/* Lets the packet go at once if it may. `network` is a constant. Which of the two looks at it is taken from
 * skb->protocol, at no cost: a sender of raw frames may lie in it, and is then judged in full, as each
 * looks at the header's own version.
 */
static __always_inline bool allowed_before(struct __sk_buff *skb, __u32 network)
{
	bool v6 = skb->protocol == bpf_htons(ETH_P_IPV6);

	/* Each packet of these is to be told of, or counted. */
	if (report_allowed || limit_interval_ns)
		return false;
	if (network == ETH_HLEN)
		return v6 ? allowed_before_v6_eth(skb) : allowed_before_v4_eth(skb);
	if (network == 0)
		return v6 ? allowed_before_v6_ip(skb) : allowed_before_v4_ip(skb);
	return false;
}

/* Remembers rules by which a socket's owner may, for the packets that follow. Whatever that was made
 * from stays as long as the socket and the policy do. Another CPU may do the same: what is lost by that
 * is found again by the next packet.
 */
static __always_inline void remember(struct __sk_buff *skb, const struct packet *pkt, __u64 rules)
{
	struct bpf_sock *sk = skb->sk;
	struct grant *grant, fresh = {};

	if (!sk)
		return;
	if (pkt->transport_state == TRANSPORT_KNOWN) {
		fresh.first.address = pkt->dst;
		fresh.first.port = bpf_htons(pkt->dport);
		fresh.first.protocol = pkt->protocol;
	}
	grant = bpf_sk_storage_get(&grants, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
	if (grant)
		grant->rules |= rules;
}

/* A packet whose destination may be guarded. Its network header is at `network`: at 0, or behind an Ethernet
 * header and tags.
 */
static __always_inline int judge(struct __sk_buff *skb, __u32 network, struct place place)
{
	const struct endpoint_target *target;
	struct sighting seen = {};
	struct guard_key key = {};
	struct owner owner = {};
	struct packet pkt;
	__u64 mask, rules, cgroup = 0;
	bool counted;

	if (packet_parse(skb, network, &pkt))
		return TC_ACT_UNSPEC;
	target = endpoint_of_packet(&pkt);
	if (!target)
		return TC_ACT_UNSPEC;
	mask = target->mask;
	key.endpoint = target->endpoint;
	key.generation = generation;

	owner_of(skb, place, &owner);
	if (carries_nothing(&pkt, &owner)) {
		count(GUARD_PASSED);
		return TC_ACT_UNSPEC;
	}
	/* A socket is lost on the way through the machine, the mark of the side where it came in is not;
	 * what comes from another network namespace has no say in it there.
	 */
	if (!place.ingress && owner.reason == GUARD_NO_SOCKET && skb->tc_index == judged)
		return TC_ACT_UNSPEC;

	/* It left by another guarded interface before, a bridge or a VLAN's, say. */
	counted = !place.ingress && skb->tc_index == (judged ^ GUARD_COUNTED);
	key.verdict = mask & GUARD_ENFORCED ? GUARD_DENIED : GUARD_WOULD_DENY;
	key.uid = owner.uid;
	if (owner.reason == GUARD_FOREIGN_SOCKET)
		key.cgroup = bpf_skb_cgroup_id(skb);
	rules = opened(skb, &owner, mask, &key.reason, &cgroup);
	if (rules) {
		if (limit_interval_ns && !counted &&
		    over_limit(key.cgroup ? cgroup : 0, key.uid, key.endpoint,
			       skb->gso_segs ?: 1)) {
			key.reason = GUARD_OVER_LIMIT;
			count(GUARD_LIMITED);
		} else {
			key.verdict = GUARD_ALLOWED;
			if (!place.ingress)
				remember(skb, &pkt, rules);
		}
	}
	counted = counted && key.verdict != GUARD_DENIED;
	if (!counted)
		count(key.verdict);
	if (!counted && (key.verdict != GUARD_ALLOWED || report_allowed)) {
		seen.who = owner.who;
		seen.executable = owner.executable;
		seen.ended = owner.ended;
		/* Zero where there is no socket. */
		seen.cgroup = bpf_skb_cgroup_id(skb);
		seen.ifindex = skb->ifindex;
		seen.layer = place.ingress ? GUARD_TC_INGRESS : GUARD_TC_EGRESS;
		report(&pkt, &key, &seen);
	}
	if (key.verdict == GUARD_DENIED) {
		/* A sender that is too fast is slowed down by loss, as on any wire. */
		if (key.reason == GUARD_OVER_LIMIT)
			return TC_ACT_SHOT;
		/* To the other side of the interface that it was at. */
		return deny(skb, &pkt, network, place.ingress ? 0 : BPF_F_INGRESS);
	}
	skb->tc_index = place.ingress ? judged : judged ^ GUARD_COUNTED;
	return TC_ACT_UNSPEC;
}

/* Global functions, which the verifier walks through once for each program and not once for each place that a
 * header may be at: a third of its work.
 */
int judge_egress(struct __sk_buff *skb, __u32 network)
{
	return judge(skb, network, (struct place){});
}

int judge_ingress(struct __sk_buff *skb, __u32 network)
{
	return judge(skb, network, (struct place){ .ingress = true });
}

int judge_egress_by_inode(struct __sk_buff *skb, __u32 network)
{
	return judge(skb, network, (struct place){ .netns = NETNS_BY_INODE });
}

int judge_ingress_by_inode(struct __sk_buff *skb, __u32 network)
{
	return judge(skb, network, (struct place){ .ingress = true, .netns = NETNS_BY_INODE });
}

int judge_egress_by_cookie(struct __sk_buff *skb, __u32 network)
{
	return judge(skb, network, (struct place){ .netns = NETNS_BY_COOKIE });
}

int judge_ingress_by_cookie(struct __sk_buff *skb, __u32 network)
{
	return judge(skb, network, (struct place){ .ingress = true, .netns = NETNS_BY_COOKIE });
}

/* A frame with a third VLAN tag: receivers take off any number of them, and it may be for an endpoint. */
static __noinline int refuse_tags(struct __sk_buff *skb, bool ingress)
{
	const struct kept_executable *executable = (const struct kept_executable *)&no_executable;
	const struct identity *who = (const struct identity *)&nobody;
	struct sighting seen = {};
	struct guard_key key = {};
	struct packet pkt = {};

	/* Else clang copies all of it from read-only data, where no pointer can be. */
	barrier_var(who);
	barrier_var(executable);
	seen.who = who;
	seen.executable = executable;
	key.endpoint = GUARD_NO_ENDPOINT;
	key.generation = generation;
	key.verdict = enforcing ? GUARD_DENIED : GUARD_WOULD_DENY;
	key.reason = GUARD_UNREADABLE;
	seen.cgroup = bpf_skb_cgroup_id(skb);
	seen.ifindex = skb->ifindex;
	seen.layer = ingress ? GUARD_TC_INGRESS : GUARD_TC_EGRESS;
	pkt.transport_state = TRANSPORT_OPAQUE;
	count(key.verdict);
	report(&pkt, &key, &seen);
	return enforcing ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* Where headers have their destination (RFC 791, 3.1; RFC 8200, 3). */
#define IPV4_DESTINATION 16
#define IPV6_DESTINATION 24

/* Whether the packet whose network header is at `at` may be for a guarded endpoint; one whose
 * header is not in reach of a direct look may. Places are constants and no fields: clang 14 adds a field's place in a
 * register, as it may be another in another kernel, which without CAP_PERFMON is refused.
 */
static __always_inline bool concerns(void *at, void *end)
{
	void *destination = at + IPV6_DESTINATION;
	__u8 version;

	if (at + sizeof(struct iphdr) > end)
		return true;
	version = *(__u8 *)at >> 4;
	if (version == 4)
		return endpoint_possible_v4(bpf_ntohl(*(__be32 *)(at + IPV4_DESTINATION)));
	if (version != 6)
		return false;
	if (at + sizeof(struct ipv6hdr) > end)
		return true;
	return endpoint_possible_v6(bpf_ntohs(*(__be16 *)destination),
				    bpf_ntohs(*(__be16 *)(destination + 14)));
}

/* A packet that may concern a guarded endpoint. */
static __always_inline int guard_packet(struct __sk_buff *skb, __u32 network, struct place place)
{
	if (!place.ingress && !skb->ingress_ifindex && allowed_before(skb, network)) {
		if (skb->tc_index != (judged ^ GUARD_COUNTED)) {
			count(GUARD_ALLOWED);
			skb->tc_index = judged ^ GUARD_COUNTED;
		}
		return TC_ACT_UNSPEC;
	}
	if (place.netns == NETNS_BY_COOKIE)
		return place.ingress ? judge_ingress_by_cookie(skb, network) :
				       judge_egress_by_cookie(skb, network);
	if (place.netns == NETNS_BY_INODE)
		return place.ingress ? judge_ingress_by_inode(skb, network) :
				       judge_egress_by_inode(skb, network);
	return place.ingress ? judge_ingress(skb, network) : judge_egress(skb, network);
}

static __always_inline int guard_network(struct __sk_buff *skb, __u32 network, struct place place)
{
	void *end = (void *)(long)skb->data_end;
	void *data = (void *)(long)skb->data;

	if (!concerns(data + network, end))
		return TC_ACT_UNSPEC;
	return guard_packet(skb, network, place);
}

/* The type of a frame, or of what is behind a tag, that may be a network header. */
static __always_inline bool is_network(__be16 type)
{
	return type == bpf_htons(ETH_P_IP) || type == bpf_htons(ETH_P_IPV6);
}

/* Linux takes off the first two kinds; the third is what switches had before there was the second. */
static __always_inline bool is_tag(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD) ||
	       type == bpf_htons(ETH_P_QINQ1);
}

static __always_inline int guard_tagged(struct __sk_buff *skb, struct place place)
{
	/* The types behind a tag and behind a second one (IEEE 802.1ad). */
	__be16 inner[2][2] = {};

	if (bpf_skb_load_bytes(skb, ETH_HLEN, inner[0], 4))
		return TC_ACT_UNSPEC;
	if (is_network(inner[0][1]))
		return guard_network(skb, ETH_HLEN + 4, place);
	if (bpf_skb_load_bytes(skb, ETH_HLEN + 4, inner[1], 4))
		return TC_ACT_UNSPEC;
	if (is_network(inner[1][1]))
		return guard_network(skb, ETH_HLEN + 8, place);
	if (is_tag(inner[0][1]) && is_tag(inner[1][1]))
		return refuse_tags(skb, place.ingress);
	return TC_ACT_UNSPEC;
}

/* A mark that a packet brought along says nothing; judge() sets it anew. */
static __always_inline void forget_mark(struct __sk_buff *skb)
{
	if (skb->tc_index == judged)
		skb->tc_index = 0;
}

/* Interfaces whose packets begin with an Ethernet header. The type is read from the frame: skb->protocol is
 * what the sender of a raw frame says it is.
 *
 * What is done for a packet that may concern an endpoint is not inline, so that one that concerns nobody
 * costs no register to save and no stack.
 */
#define GUARD_FRAMES(hook, ...)                                                             \
	static __noinline int hook##_packet(struct __sk_buff *skb)                          \
	{                                                                                   \
		return guard_packet(skb, ETH_HLEN, (struct place){ __VA_ARGS__ });          \
	}                                                                                   \
	static __noinline int hook##_tagged(struct __sk_buff *skb)                          \
	{                                                                                   \
		return guard_tagged(skb, (struct place){ __VA_ARGS__ });                    \
	}                                                                                   \
	SEC("tc")                                                                           \
	int hook(struct __sk_buff *skb)                                                     \
	{                                                                                   \
		struct place place = { __VA_ARGS__ };                                       \
		void *end = (void *)(long)skb->data_end;                                    \
		struct ethhdr *eth = (void *)(long)skb->data;                               \
                                                                                            \
		if (place.ingress)                                                          \
			forget_mark(skb);                                                   \
		if ((void *)(eth + 1) > end)                                                \
			return TC_ACT_UNSPEC;                                               \
		if (is_network(eth->h_proto))                                               \
			return concerns(eth + 1, end) ? hook##_packet(skb) : TC_ACT_UNSPEC; \
		return is_tag(eth->h_proto) ? hook##_tagged(skb) : TC_ACT_UNSPEC;           \
	}

/* Interfaces whose packets begin with the network header: tun, WireGuard, ppp, most tunnels. */
#define GUARD_PACKETS(hook, ...)                                                 \
	static __noinline int hook##_packet(struct __sk_buff *skb)               \
	{                                                                        \
		return guard_packet(skb, 0, (struct place){ __VA_ARGS__ });      \
	}                                                                        \
	SEC("tc")                                                                \
	int hook(struct __sk_buff *skb)                                          \
	{                                                                        \
		void *end = (void *)(long)skb->data_end;                         \
		void *data = (void *)(long)skb->data;                            \
                                                                                 \
		return concerns(data, end) ? hook##_packet(skb) : TC_ACT_UNSPEC; \
	}

GUARD_FRAMES(egress_eth)
GUARD_PACKETS(egress_ip)
/* The machine's ends of its containers' veth pairs. */
GUARD_FRAMES(ingress_eth, .ingress = true)

GUARD_FRAMES(egress_eth_by_inode, .netns = NETNS_BY_INODE)
GUARD_PACKETS(egress_ip_by_inode, .netns = NETNS_BY_INODE)
GUARD_FRAMES(ingress_eth_by_inode, .ingress = true, .netns = NETNS_BY_INODE)

GUARD_FRAMES(egress_eth_by_cookie, .netns = NETNS_BY_COOKIE)
GUARD_PACKETS(egress_ip_by_cookie, .netns = NETNS_BY_COOKIE)
GUARD_FRAMES(ingress_eth_by_cookie, .ingress = true, .netns = NETNS_BY_COOKIE)
