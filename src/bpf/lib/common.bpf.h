/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every program here wants: constants that are macros in the kernel's headers and therefore
 * not in vmlinux.h, and a few short names.
 */
#ifndef EBPFKIT_COMMON_BPF_H
#define EBPFKIT_COMMON_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

/* linux/if_ether.h */
#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8
#define ETH_P_QINQ1 0x9100

/* linux/if_vlan.h */
#define VLAN_HLEN 4

/* A value that the compiler may not reason about: keeps a bounds check next to the access that the
 * verifier has to see it for.
 */
#ifndef barrier_var
#define barrier_var(var) asm volatile("" : "+r"(var))
#endif

/* Makes the verifier forget the bounds of an integer variable, so that paths which differ in nothing
 * else are verified once: every branch before would else multiply the states after. `unknown` is
 * any number that the verifier knows nothing of; the value stays what it is.
 */
#define forget_bounds(var, unknown)                                                \
	({                                                                         \
		__u64 _value = (var), _unknown = (unknown);                        \
		asm volatile("%0 ^= %1\n%0 ^= %1" : "+r"(_value) : "r"(_unknown)); \
		(var) = _value;                                                    \
	})

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#endif
