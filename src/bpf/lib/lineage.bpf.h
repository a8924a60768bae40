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

#include "identity.bpf.h"

#define LINEAGE_PARENTS 4
/* Bytes of names on the path of an executable, and room for one more name. */
#define LINEAGE_EXE 256
#define LINEAGE_NAME 64
/* Names on the path, and mounts between them. */
#define LINEAGE_STEPS 20
/* Bytes of the command line. */
#define LINEAGE_ARGS 256

struct lineage_parent {
	/* 0 if there is none. */
	__u32 pid;
	__u8 comm[16];
};

/* A process that connects; 720 bytes. src/kernel/lineage.rs reads it. */
struct caller {
	struct identity who;
	/* From the nearest on. */
	struct lineage_parent parents[LINEAGE_PARENTS];
	/* Bytes in exe; LINEAGE_EXE or more if names are missing at the end. */
	__u32 exe_length;
	/* Bytes in args; LINEAGE_ARGS if some are missing. */
	__u32 args_length;
	/* Names from the file up to the root, each with a zero byte behind it. */
	__u8 exe[LINEAGE_EXE + LINEAGE_NAME];
	/* Arguments, each with a zero byte behind it. */
	__u8 args[LINEAGE_ARGS];
	/* Of the socket that it connects. */
	__u64 cookie;
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

static __always_inline void lineage_exe(struct task_struct *task, struct caller *caller)
{
	struct file *file = BPF_CORE_READ(task, mm, exe_file);
	struct dentry *dentry, *parent, *root;
	struct mount *mount, *above;
	struct vfsmount *vfs;
	__u32 length = 0, at;
	long read;
	int i;

	if (!file)
		return;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	vfs = BPF_CORE_READ(file, f_path.mnt);
	mount = (void *)vfs - bpf_core_field_offset(struct mount, mnt);

	for (i = 0; i < LINEAGE_STEPS; i++) {
		root = BPF_CORE_READ(mount, mnt.mnt_root);
		if (dentry == root) {
			above = BPF_CORE_READ(mount, mnt_parent);
			if (above == mount || !above)
				break;
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = above;
			continue;
		}
		parent = BPF_CORE_READ(dentry, d_parent);
		if (parent == dentry || !parent)
			break;
		if (length >= LINEAGE_EXE)
			break;
		/* Changes nothing; kernels before 5.11 or so forget the bound above. */
		at = length;
		barrier_var(at);
		at &= LINEAGE_EXE - 1;
		read = bpf_probe_read_kernel_str(&caller->exe[at], LINEAGE_NAME,
						 BPF_CORE_READ(dentry, d_name.name));
		if (read <= 0 || read > LINEAGE_NAME)
			break;
		length += read;
		dentry = parent;
	}
	/* Not at the root yet: the first names of the path are missing. */
	if (i == LINEAGE_STEPS)
		length = LINEAGE_EXE;
	caller->exe_length = length;
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
	lineage_exe(task, caller);
	lineage_args(task, caller);
}

#endif
