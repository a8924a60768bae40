/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Does a packet or a connect() concern an endpoint? src/endpoint_table.rs fills what is read here.
 *
 * First two bits of read-only data, without a helper: they say no for nearly everything. Then two
 * longest-prefix lookups: the address gives a group, the group and the port give the target. User
 * space has compiled nested prefixes and overlapping ports into this, so that a lookup costs the
 * same however many endpoints there are, and has no loop: without CAP_PERFMON the verifier follows
 * every branch one more time, as a CPU might guess it, and a loop over rules would be more than it
 * is willing to read.
 */
#ifndef EBPFKIT_ENDPOINTS_BPF_H
#define EBPFKIT_ENDPOINTS_BPF_H

#include "packet.bpf.h"

#define MAX_ENDPOINT_PREFIXES 4096
#define MAX_ENDPOINT_PORTS 65536

struct endpoint_key {
	/* Bits of the address that count; an IPv4 prefix has 96 more. */
	__u32 prefixlen;
	union address address;
};

/* Which group an address belongs to.
 * Key: struct endpoint_key, 20 bytes. Value: the group's number, 4 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_ENDPOINT_PREFIXES);
	__type(key, struct endpoint_key);
	__type(value, __u32);
} endpoints SEC(".maps");

enum endpoint_question {
	/* The port is known; the protocol is TCP or UDP, or 0 for those without ports. */
	ENDPOINT_OF_PORT,
	/* The port cannot be read: is there anything of this protocol? */
	ENDPOINT_OF_PROTOCOL,
	/* Nor can the protocol, which is 0. */
	ENDPOINT_OF_ANYTHING,
};

struct endpoint_port_key {
	/* Bits of what follows that count. */
	__u32 prefixlen;
	__be32 group;
	__u8 protocol;
	/* enum endpoint_question */
	__u8 question;
	__be16 port;
};

struct endpoint_target {
	/* The tool's own: those of all endpoints that are meant, or-ed. */
	__u64 mask;
	/* Index in user space's list of the most specific endpoint that is meant. */
	__u32 endpoint;
	__u32 pad;
};

/* What is at a port of a group.
 * Key: struct endpoint_port_key, 12 bytes. Value: struct endpoint_target, 16 bytes.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_ENDPOINT_PORTS);
	__type(key, struct endpoint_port_key);
	__type(value, struct endpoint_target);
} endpoint_ports SEC(".maps");

enum endpoint_bitmap {
	ENDPOINT_V4_FIRST,
	ENDPOINT_V4_LAST,
	ENDPOINT_V6_FIRST,
	ENDPOINT_V6_LAST,
	ENDPOINT_BITMAPS,
};

/* For the first and the last 16 bits of an address, whether any endpoint has them: bit n % 64 of
 * word n / 64, n in host byte order.
 */
const volatile __u64 endpoint_bits[ENDPOINT_BITMAPS][65536 / 64];

static __always_inline bool endpoint_bit(enum endpoint_bitmap bitmap, __u16 half)
{
	__u32 word = bitmap * (65536 / 64) + (half >> 6);

	/* One access that may be to any word, whichever bitmap: clang merges the branches of IPv4 and
	 * IPv6, and without CAP_PERFMON the verifier refuses an access that is a different one on
	 * either way.
	 */
	forget_bounds(word, half);
	word &= ENDPOINT_BITMAPS * (65536 / 64) - 1;
	return (&endpoint_bits[0][0])[word] >> (half & 63) & 1;
}

/* Whether the IPv4 address, host byte order, may be an endpoint's. */
static __always_inline bool endpoint_possible_v4(__u32 address)
{
	return endpoint_bit(ENDPOINT_V4_LAST, address & 0xffff) &&
	       endpoint_bit(ENDPOINT_V4_FIRST, address >> 16);
}

/* Whether an IPv6 address with these first and last 16 bits, host byte order, may be one. */
static __always_inline bool endpoint_possible_v6(__u16 first, __u16 last)
{
	return endpoint_bit(ENDPOINT_V6_LAST, last) && endpoint_bit(ENDPOINT_V6_FIRST, first);
}

static __always_inline struct endpoint_target *
endpoint_search(const union address *address, __u16 port, __u8 protocol, __u8 question)
{
	struct endpoint_key key = {
		.prefixlen = 128,
		.address = *address,
	};
	struct endpoint_port_key port_key = {
		.prefixlen = 64,
		.protocol = protocol,
		.question = question,
		.port = bpf_htons(port),
	};
	__u32 *group = bpf_map_lookup_elem(&endpoints, &key);

	if (!group)
		return NULL;
	port_key.group = bpf_htonl(*group);
	return bpf_map_lookup_elem(&endpoint_ports, &port_key);
}

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == PROTO_TCP || protocol == PROTO_UDP;
}

/* The target at this address, port (host byte order) and protocol, or NULL. */
static __always_inline struct endpoint_target *endpoint_lookup(const union address *address,
							       __u16 port, __u8 protocol)
{
	/* One search: of the results of two, one a constant NULL, the verifier follows what a CPU might guess,
	 * and without CAP_PERFMON refuses the access to it (until 6.16, where it puts a barrier there).
	 */
	if (!has_ports(protocol)) {
		port = 0;
		protocol = 0;
	}
	return endpoint_search(address, port, protocol, ENDPOINT_OF_PORT);
}

/* The target that a packet goes to, or NULL. What cannot be read concerns whom it may. */
static __always_inline struct endpoint_target *endpoint_of_packet(const struct packet *pkt)
{
	__u8 protocol = has_ports(pkt->protocol) ? pkt->protocol : 0;
	__u8 question = ENDPOINT_OF_PORT;

	if (pkt->transport_state != TRANSPORT_KNOWN)
		question = packet_protocol_is_known(pkt) ? ENDPOINT_OF_PROTOCOL :
							   ENDPOINT_OF_ANYTHING;
	return endpoint_search(&pkt->dst, pkt->dport, protocol, question);
}

#endif
