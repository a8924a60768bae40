/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The functions that the current thread is in, in user space: for tracing programs whose context is, or
 * leads to, the thread's registers (uprobes, tracepoints, perf events; not cgroup hooks).
 */
#ifndef EBPFKIT_STACKS_BPF_H
#define EBPFKIT_STACKS_BPF_H

#include "common.bpf.h"

/* Frames that are recorded: the innermost. The kernel's own limit is 127 (kernel.perf_event_max_stack),
 * and may be lower.
 */
#define MAX_FRAMES 64

/* src/kernel/stacks/record.rs reads it. */
struct user_stack {
	/* Of `frames`. Zero: nothing could be read. */
	__u32 count;
	__u32 pad;
	/* Instruction pointers, the innermost first; each but the first is a return address. The
	 * kernel follows frame pointers: in code that keeps none it stops, or skips callers.
	 */
	__u64 frames[MAX_FRAMES];
};

/* Fills all of `stack`. bpf_get_stack: kernel 4.18, in raw tracepoints too. What of the stack is not
 * in memory is not waited for.
 */
static __always_inline void take_user_stack(void *ctx, struct user_stack *stack)
{
	long size = bpf_get_stack(ctx, stack->frames, sizeof(stack->frames), BPF_F_USER_STACK);

	stack->count = size > 0 ? size / sizeof(stack->frames[0]) : 0;
	stack->pad = 0;
}

#endif
