/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who is at work, and on which flow. Packets know no process: a hook that runs in the process's own
 * context leaves a record, under the socket's cookie or the flow's addresses.
 */
#ifndef EBPFKIT_IDENTITY_BPF_H
#define EBPFKIT_IDENTITY_BPF_H

#include "packet.bpf.h"

/* sys/socket.h */
#define AF_INET 2
#define AF_INET6 10

/* The current task. src/kernel/identity.rs reads it. */
struct identity {
	/* bpf_get_current_cgroup_id(): the cgroup2 directory's inode. */
	__u64 cgroup;
	/* Nanoseconds since boot, suspend included. */
	__u64 time;
	/* As user space calls them, in the initial namespaces. */
	__u32 pid;
	__u32 tid;
	__u32 uid;
	__u32 gid;
	/* Ends with a zero byte. */
	__u8 comm[16];
};

/* A TCP or UDP flow as its socket sees it. It does not say which network namespace: the netns
 * cookie is not to be had in sockops before 5.15, so that equal flows of two namespaces share an
 * entry, and the later one wins.
 */
struct flow {
	union address local;
	union address remote;
	/* Host byte order. */
	__u16 local_port;
	__u16 remote_port;
};

/* All but the thread's name, which takes CAP_PERFMON in cgroup hooks. */
static __always_inline void identity_without_comm(struct identity *identity)
{
	__u64 id = bpf_get_current_pid_tgid();

	__builtin_memset(identity, 0, sizeof(*identity));
	identity->pid = id >> 32;
	identity->tid = id;
	id = bpf_get_current_uid_gid();
	identity->uid = id;
	identity->gid = id >> 32;
	identity->cgroup = bpf_get_current_cgroup_id();
	identity->time = bpf_ktime_get_boot_ns();
}

/* For cgroup hooks (kernel 5.7: the pid and comm helpers there) and tracing programs. */
static __always_inline void identity_of_current(struct identity *identity)
{
	identity_without_comm(identity);
	bpf_get_current_comm(identity->comm, sizeof(identity->comm));
}

/* The flow of a sockops context that has its addresses and ports. Returns false for other families.
 */
static __always_inline bool flow_of_sockops(struct bpf_sock_ops *ops, struct flow *flow)
{
	switch (ops->family) {
	case AF_INET:
		address_map_v4(&flow->local, ops->local_ip4);
		address_map_v4(&flow->remote, ops->remote_ip4);
		break;
	case AF_INET6:
		/* An IPv4-mapped socket has its addresses here in that form. */
		flow->local.word[0] = ops->local_ip6[0];
		flow->local.word[1] = ops->local_ip6[1];
		flow->local.word[2] = ops->local_ip6[2];
		flow->local.word[3] = ops->local_ip6[3];
		flow->remote.word[0] = ops->remote_ip6[0];
		flow->remote.word[1] = ops->remote_ip6[1];
		flow->remote.word[2] = ops->remote_ip6[2];
		flow->remote.word[3] = ops->remote_ip6[3];
		break;
	default:
		return false;
	}
	flow->local_port = ops->local_port;
	/* In network byte order, as a 32-bit number. */
	flow->remote_port = bpf_ntohl(ops->remote_port);
	return true;
}

#endif
