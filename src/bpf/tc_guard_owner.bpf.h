/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose a packet is: what its socket tells of who made and who connected it, and whether it is the sender's at all.
 *
 * Helpers: bpf_get_socket_uid (4.12), bpf_sk_fullsock (5.1), bpf_sk_storage_get (5.2 in TC, of any socket 5.10), and one
 * of bpf_get_netns_cookie (6.15 in TC) and, with CAP_PERFMON, bpf_probe_read_kernel (5.8 in TC).
 */
#ifndef EBPFKIT_TC_GUARD_OWNER_BPF_H
#define EBPFKIT_TC_GUARD_OWNER_BPF_H

#include "tc_guard_connect.bpf.h"

/* sys/socket.h */
#define AF_UNSPEC 0
#define SOCK_RAW 3

/* How a socket's network namespace is found. Programs of their own, as the verifier would find each helper behind a switch
 * as well when it follows what a CPU might guess.
 */
enum netns_by {
	/* Not at all. */
	NETNS_UNKNOWN,
	/* In the socket itself. */
	NETNS_BY_INODE,
	/* By the helper for it. */
	NETNS_BY_COOKIE,
};

/* Where a program runs, and what it may ask. Constants in each program. */
struct place {
	/* Packets arrive from a container, else they leave. */
	bool ingress;
	enum netns_by netns;
};

struct owner {
	/* Who connected the socket, or nobody. Not NULL for none: of a constant that is asked about later the
	 * verifier follows what a CPU might guess, and without CAP_PERFMON refuses what is behind it (until
	 * 6.16, where it puts a barrier there).
	 */
	const struct identity *who;
	const struct kept_executable *executable;
	/* Those that the groups of whoever connected it are subjects of. */
	__u64 group_rules;
	__u32 uid;
	/* How often that was written. */
	__u32 ended;
	/* enum guard_reason */
	__u8 reason;
	/* Whether there is a socket with enough of it to be asked. */
	bool socket;
	/* Whether it is a raw one: the kernel answers from such a socket of its own, with uid 0. */
	bool raw;
};

/* Whether the socket is the machine's own, and not a container's. */
static __always_inline bool is_home(struct __sk_buff *skb, struct bpf_sock *sk, struct place place)
{
	if (place.netns == NETNS_BY_COOKIE)
		return bpf_get_netns_cookie(skb) == home_netns;
	if (place.netns == NETNS_BY_INODE) {
		/* In memory, where what the verifier knows to be a socket is a number. */
		struct bpf_sock *volatile at = sk;
		struct sock *socket;

		if (!bpf_probe_read_kernel(&socket, sizeof(socket), (const void *)&at))
			return BPF_CORE_READ(socket, __sk_common.skc_net.net, ns.inum) ==
			       home_inode;
	}
	return false;
}

/* The socket that sent the packet, as far as it says who it is: bpf_get_socket_uid() answers 65534
 * for a packet without one, which is also a user's id.
 */
static __always_inline void owner_of(struct __sk_buff *skb, struct place place, struct owner *owner)
{
	const struct kept_executable *executable = (const struct kept_executable *)&no_executable;
	const struct identity *who = (const struct identity *)&nobody;
	struct bpf_sock *sk = skb->sk;
	struct known_caller *known;
	__u32 family, type;
	bool came_in, home;
	__u64 *group_rules;

	barrier_var(who);
	barrier_var(executable);
	owner->who = who;
	owner->executable = executable;
	owner->reason = GUARD_NO_SOCKET;
	if (!sk)
		return;
	owner->reason = GUARD_PARTIAL_SOCKET;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return;
	/* Read once: clang would else compute with the socket's address, which the verifier does not allow. */
	family = sk->family;
	type = sk->type;
	barrier_var(family);
	barrier_var(type);
	/* A tap's socket, of whoever opened it, often root, and not of the virtual machine that sends: of no
	 * family, and the packet came in (drivers/net/tun.c) or, of a macvtap, leaves at once, from a raw socket
	 * (drivers/net/tap.c).
	 */
	if (family == AF_UNSPEC && (skb->ingress_ifindex || type == SOCK_RAW)) {
		owner->reason = GUARD_NO_SOCKET;
		return;
	}
	came_in = place.ingress || skb->ingress_ifindex;
	home = came_in && place.netns == NETNS_UNKNOWN ? true : is_home(skb, sk, place);
	/* A packet that came in with a socket of the machine's own went to a container before, which has sent it back and
	 * may have written another one over it: veth and macvlan leave the socket. Who can do so need not be root outside of
	 * its own network namespace. Where nobody knows whose socket it is it may be this.
	 */
	if (came_in && home) {
		owner->reason = GUARD_NO_SOCKET;
		return;
	}
	owner->socket = true;
	owner->raw = type == SOCK_RAW;
	known = bpf_sk_storage_get(&callers, sk, NULL, 0);
	if (known) {
		owner->ended = READ_NOW(known->kept.ended);
		owner->who = &known->who;
		owner->executable = &known->kept;
	}
	if (any_groups) {
		group_rules = bpf_sk_storage_get(&memberships, sk, NULL, 0);
		if (group_rules)
			owner->group_rules = *group_rules;
	}
	owner->reason = GUARD_FOREIGN_SOCKET;
	/* "Root" of a rootless container has uid 0 in its sockets' eyes: what a container's macvlan sends through the
	 * machine's interface has its socket, too.
	 */
	if (place.netns != NETNS_UNKNOWN && !home)
		return;
	owner->reason = GUARD_USER;
	owner->uid = bpf_get_socket_uid(skb);
}

/* A reset ends a connection and says nothing else; the kernel sends it from a socket of its own,
 * or from none. An acknowledgement or the end of a stream without payload comes without an owner
 * when the socket is gone or waits in TIME_WAIT, or from the kernel's own socket (before 6.12 or so).
 */
static __always_inline bool carries_nothing(const struct packet *pkt, const struct owner *owner)
{
	if (pkt->transport_state != TRANSPORT_KNOWN || pkt->protocol != PROTO_TCP ||
	    pkt->payload_len || pkt->tcp_flags & TCP_FLAG_SYN)
		return false;
	return pkt->tcp_flags & TCP_FLAG_RST || !owner->socket || owner->raw;
}

#endif
