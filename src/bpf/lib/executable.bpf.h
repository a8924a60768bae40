/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which executable a process runs. One that lives for a moment is gone before user space can look, and
 * one that means no good runs another by then.
 *
 * Helpers: bpf_probe_read_kernel() and bpf_probe_read_kernel_str() (5.5; in cgroup hooks 5.8, with
 * CAP_PERFMON). A read fails where a page is not there, and the path stays empty.
 */
#ifndef EBPFKIT_EXECUTABLE_BPF_H
#define EBPFKIT_EXECUTABLE_BPF_H

#include "common.bpf.h"

/* Bytes of names on the path, and room for one more name. src/kernel/lineage.rs reads them. */
#define EXECUTABLE_PATH 256
#define EXECUTABLE_NAME 64
/* Names on the path, and mounts between them. */
#define EXECUTABLE_STEPS 20

/* What a process runs; 328 bytes. Aligned, so that it is copied in half as many instructions. */
struct executable {
	/* Bytes in `names`; EXECUTABLE_PATH or more if names are missing at the end, 0 if nothing can be
	 * said.
	 */
	__u32 length;
	/* From the file up to the root of the process's mount namespace, each with a zero byte behind it. */
	__u8 names[EXECUTABLE_PATH + EXECUTABLE_NAME];
	__u32 pad;
} __attribute__((aligned(8)));

/* Writes it where it lies, in a map or in the ring: too long for the stack.
 *
 * The length is in memory all the time, where the verifier does not follow it: all steps look alike to
 * it then, and it walks through each but once. In a register each of them has bounds of its own, and
 * ten times as many instructions are verified.
 */
static __always_inline void executable_of(struct task_struct *task, struct executable *executable)
{
	volatile __u32 *length = &executable->length;
	struct file *file = BPF_CORE_READ(task, mm, exe_file);
	struct dentry *dentry, *parent, *root;
	struct mount *mount, *above;
	struct vfsmount *vfs;
	__u32 at;
	long read;
	int i;

	*length = 0;
	if (!file)
		return;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	vfs = BPF_CORE_READ(file, f_path.mnt);
	mount = (void *)vfs - bpf_core_field_offset(struct mount, mnt);

	for (i = 0; i < EXECUTABLE_STEPS; i++) {
		root = BPF_CORE_READ(mount, mnt.mnt_root);
		if (dentry == root) {
			above = BPF_CORE_READ(mount, mnt_parent);
			if (above == mount || !above)
				return;
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = above;
			continue;
		}
		parent = BPF_CORE_READ(dentry, d_parent);
		if (parent == dentry || !parent)
			return;
		at = *length;
		if (at >= EXECUTABLE_PATH)
			return;
		/* Changes nothing; kernels before 5.11 or so forget the bound above. */
		barrier_var(at);
		at &= EXECUTABLE_PATH - 1;
		read = bpf_probe_read_kernel_str(&executable->names[at], EXECUTABLE_NAME,
						 BPF_CORE_READ(dentry, d_name.name));
		if (read <= 0 || read > EXECUTABLE_NAME)
			return;
		*length = at + read;
		dentry = parent;
	}
	/* Not at the root yet: the first names of the path are missing. */
	*length = EXECUTABLE_PATH;
}

#endif
