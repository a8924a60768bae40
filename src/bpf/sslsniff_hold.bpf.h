/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Processes that wait (--hold): one that maps a file which user space has not looked into yet, to execute
 * from it, is stopped before its next instruction, until user space has done so and lets it go on.
 *
 * Which file that is the arguments of mmap say, as it returns: by then the kernel has written the record of
 * the mapping that user space reads. What an exec maps is there as the exec is told of. What is mapped
 * otherwise (mprotect, the program's interpreter) is none of this.
 *
 * Some parents (su, nsenter) stop themselves when their child stops: who the ancestors are is told, too, and
 * which were stopped before.
 *
 * Helpers: bpf_send_signal (5.3), bpf_get_current_task (4.8). Both programs are of the type that reads the kernel's
 * memory as C does (5.5).
 */
#ifndef EBPFKIT_SSLSNIFF_HOLD_BPF_H
#define EBPFKIT_SSLSNIFF_HOLD_BPF_H

#include "sslsniff_calls.bpf.h"

/* asm/unistd.h */
#if defined(__TARGET_ARCH_x86)
#define NR_MMAP 9
#define SYSCALL_NOW(regs) ((regs)->orig_ax)
#else
#define NR_MMAP 222
#define SYSCALL_NOW(regs) ((regs)->syscallno)
#endif

/* asm-generic/mman-common.h, asm-generic/signal.h, linux/err.h */
#define PROT_EXEC 4
#define MAP_ANONYMOUS 0x20
#define SIGSTOP 19
#define MAX_ERRNO 4095

/* linux/sched/signal.h */
#define SIGNAL_STOP_STOPPED 1

/* How long user space may say nothing, in nanoseconds: it says that it is there twice a second. */
#define LONGEST_SILENCE 1500000000

/* Files that are known at a time. */
#define MAX_SETTLED 16384

/* Whether other users' processes are stopped, which takes CAP_KILL to let them go on; if not, whose are. */
const volatile __u8 hold_all;
const volatile __u32 hold_uid;
/* The process that reads: it cannot wait for itself. */
const volatile __u32 hold_not;

/* Processes that were stopped: struct ssl_held each. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} held SEC(".maps");

/* Files that user space has looked into.
 * Key: struct ssl_file, 32 bytes. Value: nothing.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_SETTLED);
	__type(key, struct ssl_file);
	__type(value, __u8);
} settled SEC(".maps");

/* When user space last said that it is there to let processes go on, as of bpf_ktime_get_boot_ns(). Who has stopped
 * that stops nobody. Zero: nobody is stopped for now, as user space does not get on.
 * Key: 0, 4 bytes. Value: nanoseconds, 8 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} hold_alive SEC(".maps");

/* When an inode was changed last, by another name from 6.6 and from 6.11 on. */
struct inode___before_6_6 {
	struct timespec64 i_ctime;
} __attribute__((preserve_access_index));

struct inode___before_6_11 {
	struct timespec64 __i_ctime;
} __attribute__((preserve_access_index));

static __always_inline void name_file(struct inode *inode, struct ssl_file *file)
{
	struct inode___before_6_11 *before_6_11 = (void *)inode;
	struct inode___before_6_6 *before_6_6 = (void *)inode;

	file->inode = BPF_CORE_READ(inode, i_ino);
	file->device = BPF_CORE_READ(inode, i_sb, s_dev);
	file->generation = BPF_CORE_READ(inode, i_generation);
	if (bpf_core_field_exists(inode->i_ctime_sec)) {
		file->changed_s = BPF_CORE_READ(inode, i_ctime_sec);
		file->changed_ns = BPF_CORE_READ(inode, i_ctime_nsec);
	} else if (bpf_core_field_exists(before_6_11->__i_ctime)) {
		file->changed_s = BPF_CORE_READ(before_6_11, __i_ctime.tv_sec);
		file->changed_ns = BPF_CORE_READ(before_6_11, __i_ctime.tv_nsec);
	} else {
		file->changed_s = BPF_CORE_READ(before_6_6, i_ctime.tv_sec);
		file->changed_ns = BPF_CORE_READ(before_6_6, i_ctime.tv_nsec);
	}
}

/* Whether the current process can be let go on, and is nobody else's to stop: a debugger's. */
static __always_inline bool may_hold(struct task_struct *task, __u32 tgid)
{
	if (tgid == hold_not || BPF_CORE_READ(task, ptrace))
		return false;
	return hold_all || (BPF_CORE_READ(task, cred, uid.val) == hold_uid &&
			    BPF_CORE_READ(task, cred, suid.val) == hold_uid);
}

/* Whether user space is there to let go on whoever is stopped. */
static __always_inline bool is_alive(void)
{
	__u32 zero = 0;
	__u64 *alive = bpf_map_lookup_elem(&hold_alive, &zero);

	/* Signed: its clock may be read a little later. */
	return alive && *alive && (__s64)(bpf_ktime_get_boot_ns() - *alive) < LONGEST_SILENCE;
}

static __always_inline void name_ancestors(struct task_struct *task, struct ssl_held *record)
{
	record->stopped = 0;
	for (int i = 0; i < SSL_ANCESTORS; i++) {
		task = BPF_CORE_READ(task, real_parent);
		record->ancestors[i] = BPF_CORE_READ(task, tgid);
		if (BPF_CORE_READ(task, signal, flags) & SIGNAL_STOP_STOPPED)
			record->stopped |= 1U << i;
	}
}

/* Stops the current process if this is a file that nobody has looked into. */
static __always_inline void hold_for(struct task_struct *task, struct file *opened)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct ssl_file file = {};
	struct ssl_held *record;

	if (!opened || !watched(tgid) || !may_hold(task, tgid))
		return;
	name_file(BPF_CORE_READ(opened, f_inode), &file);
	if (bpf_map_lookup_elem(&settled, &file))
		return;
	record = is_alive() ? bpf_ringbuf_reserve(&held, sizeof(*record), 0) : NULL;
	/* Or so many wait already that one more would wait for long. */
	if (!record) {
		count(SSL_NOT_HELD, 1);
		return;
	}
	record->file = file;
	record->pid = tgid;
	name_ancestors(task, record);
	if (bpf_send_signal(SIGSTOP))
		bpf_ringbuf_discard(record, 0);
	else
		bpf_ringbuf_submit(record, 0);
}

/* Each system call of the machine comes by here. Args: its registers, what it returns. */
SEC("?tp_btf/sys_exit")
int file_mapped(unsigned long long *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx[0];
	__u64 ret = ctx[1];
	struct task_struct *task;
	struct fdtable *table;
	struct file *opened = NULL;
	struct file **files;
	__u32 fd;

	if (SYSCALL_NOW(regs) != NR_MMAP)
		return 0;
	if (!(PT_REGS_PARM3_CORE_SYSCALL(regs) & PROT_EXEC) ||
	    PT_REGS_PARM4_CORE_SYSCALL(regs) & MAP_ANONYMOUS || ret >= (__u64)-MAX_ERRNO)
		return 0;
	fd = PT_REGS_PARM5_CORE_SYSCALL(regs);
	task = (struct task_struct *)bpf_get_current_task();
	table = BPF_CORE_READ(task, files, fdt);
	if (fd >= BPF_CORE_READ(table, max_fds))
		return 0;
	files = BPF_CORE_READ(table, fd);
	/* A thread may have closed it meanwhile: then there is nothing to wait for, but what it has done itself. */
	if (bpf_probe_read_kernel(&opened, sizeof(opened), &files[fd]))
		return 0;
	hold_for(task, opened);
	return 0;
}

/* Args: the task_struct, its number before, the struct linux_binprm. */
SEC("?tp_btf/sched_process_exec")
int file_executed(unsigned long long *ctx)
{
	struct linux_binprm *binary = (struct linux_binprm *)ctx[2];

	hold_for((struct task_struct *)ctx[0], binary->file);
	return 0;
}

#endif
