/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What else is to be known of a process while it is there: its parents, executable and command
 * line. A short-lived process is gone before user space can look.
 *
 * Reads the kernel's and the task's memory: bpf_get_current_task(), bpf_probe_read_kernel(),
 * bpf_probe_read_kernel_str() and bpf_probe_read_user() in cgroup hooks need kernel 5.8 and
 * CAP_PERFMON. Such a read fails where a page is not there, and the field stays empty.
 */
#ifndef EBPFKIT_LINEAGE_BPF_H
#define EBPFKIT_LINEAGE_BPF_H

#include "executable.bpf.h"
#include "identity.bpf.h"

#define LINEAGE_PARENTS 4
/* Bytes of the command line. */
#define LINEAGE_ARGS 256

struct lineage_parent {
	/* 0 if there is none. */
	__u32 pid;
	__u8 comm[16];
};

/* A process that connects; 736 bytes. src/kernel/lineage.rs reads it. */
struct caller {
	struct identity who;
	/* From the nearest on. */
	struct lineage_parent parents[LINEAGE_PARENTS];
	struct executable exe;
	/* Bytes in args; LINEAGE_ARGS if some are missing. */
	__u32 args_length;
	/* Arguments, each with a zero byte behind it. */
	__u8 args[LINEAGE_ARGS];
	__u32 pad;
	/* Of the socket that it connects. */
	__u64 cookie;
	/* The cookie of the network namespace that it does so in. */
	__u64 netns;
};

static __always_inline void lineage_parents(struct task_struct *task, struct caller *caller)
{
	struct task_struct *leader;
	__u32 pid;
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < LINEAGE_PARENTS; i++) {
		task = BPF_CORE_READ(task, real_parent);
		leader = BPF_CORE_READ(task, group_leader);
		pid = BPF_CORE_READ(leader, tgid);
		if (!pid)
			return;
		caller->parents[i].pid = pid;
		bpf_probe_read_kernel_str(caller->parents[i].comm, sizeof(caller->parents[i].comm),
					  &leader->comm);
	}
}

static __always_inline void lineage_args(struct task_struct *task, struct caller *caller)
{
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	__u64 start = BPF_CORE_READ(mm, arg_start);
	__u64 length = BPF_CORE_READ(mm, arg_end) - start;

	if (length > LINEAGE_ARGS)
		length = LINEAGE_ARGS;
	barrier_var(length);
	if (!length || length > LINEAGE_ARGS)
		return;
	if (!bpf_probe_read_user(caller->args, length, (void *)start))
		caller->args_length = length;
}

/* Of the current task, into a record that is all zeros. */
static __always_inline void lineage_of_current(struct caller *caller)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	lineage_parents(task, caller);
	executable_of(task, &caller->exe);
	lineage_args(task, caller);
}

#endif
