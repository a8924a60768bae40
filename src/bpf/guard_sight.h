/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What guard_sight.bpf.c tells user space. */
#ifndef EBPFKIT_GUARD_SIGHT_H
#define EBPFKIT_GUARD_SIGHT_H

/* Banks of a gate's slot; of its variables as many bytes as user space may want. */
#define SIGHT_BANKS 2
#define SIGHT_STATE 64

/* A program of the machine. */
struct seen_program {
	__u32 id;
	/* Whether it has variables, and a slot for programs; and which banks of the slot have one. */
	__u8 has_state;
	__u8 has_slot;
	__u8 behind[SIGHT_BANKS];
	__u8 name[16];
	__u8 state[SIGHT_STATE];
};

#endif
