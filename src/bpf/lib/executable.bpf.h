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
#define EXECUTABLE_BYTES (EXECUTABLE_PATH + EXECUTABLE_NAME)
/* Names on the path, and mounts between them. */
#define EXECUTABLE_STEPS 20

/* Writes the names from the file up to the root of the process's mount namespace, each with a zero byte
 * behind it, to EXECUTABLE_BYTES bytes. Returns how many bytes those are; EXECUTABLE_PATH or more if names
 * are missing at the end, 0 if nothing can be said.
 */
static __always_inline __u32 executable_of(struct task_struct *task, __u8 *names)
{
	struct file *file = BPF_CORE_READ(task, mm, exe_file);
	struct dentry *dentry, *parent, *root;
	struct mount *mount, *above;
	struct vfsmount *vfs;
	__u32 length = 0, at;
	long read;
	int i;

	if (!file)
		return 0;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	vfs = BPF_CORE_READ(file, f_path.mnt);
	mount = (void *)vfs - bpf_core_field_offset(struct mount, mnt);

	for (i = 0; i < EXECUTABLE_STEPS; i++) {
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
		if (length >= EXECUTABLE_PATH)
			break;
		/* Changes nothing; kernels before 5.11 or so forget the bound above. */
		at = length;
		barrier_var(at);
		at &= EXECUTABLE_PATH - 1;
		read = bpf_probe_read_kernel_str(&names[at], EXECUTABLE_NAME,
						 BPF_CORE_READ(dentry, d_name.name));
		if (read <= 0 || read > EXECUTABLE_NAME)
			break;
		length += read;
		dentry = parent;
	}
	/* Not at the root yet: the first names of the path are missing. */
	if (i == EXECUTABLE_STEPS)
		length = EXECUTABLE_PATH;
	return length;
}

#endif
