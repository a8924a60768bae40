/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Does a packet or a connect() concern an endpoint? src/endpoint_table.rs fills what is read here.
 *
 * First two bits of read-only data, without a helper: they say no for nearly everything. Then a
 * longest-prefix lookup, whose value has all rules for that prefix, those of the prefixes that
 * cover it included.
 */
#ifndef EBPFKIT_ENDPOINTS_BPF_H
#define EBPFKIT_ENDPOINTS_BPF_H

#include "packet.bpf.h"

#define MAX_ENDPOINT_PREFIXES 4096
#define MAX_ENDPOINT_RULES 16

/* Ports and protocol at an address. */
struct endpoint_rule {
	/* Both included, host byte order. */
	__u16 first_port;
	__u16 last_port;
	/* IANA protocol number; 0 for any. */
	__u8 protocol;
	__u8 pad[3];
	/* Index in user space's list of endpoints. */
	__u32 endpoint;
	__u32 pad2;
	/* The tool's own. */
	__u64 mask;
};

struct endpoint_rules {
	/* How many of the rules are set: 0 to MAX_ENDPOINT_RULES. */
	__u32 count;
	__u32 pad;
	/* The first that fits counts: most specific prefix first. */
	struct endpoint_rule rule[MAX_ENDPOINT_RULES];
};

struct endpoint_key {
	/* Bits of the address that count; an IPv4 prefix has 96 more. */
	__u32 prefixlen;
	union address address;
};

/* prefix -> its rules */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_ENDPOINT_PREFIXES);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint_rules);
} endpoints SEC(".maps");

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
	return endpoint_bits[bitmap][half >> 6] >> (half & 63) & 1;
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

static __always_inline struct endpoint_rules *endpoint_rules(const union address *address)
{
	struct endpoint_key key = {
		.prefixlen = 128,
		.address = *address,
	};

	return bpf_map_lookup_elem(&endpoints, &key);
}

/* What a lookup found. By value: a pointer into the map would be another state for the verifier with
 * every rule that it may point to.
 */
struct endpoint_found {
	__u64 mask;
	__u32 endpoint;
	/* Whether there is one. */
	__u32 found;
};

/* The rule for this address, port (host byte order) and protocol. If the ports are not `readable`,
 * any rule for the address and the protocol; protocol 0 then stands for one that is not known.
 */
static __always_inline struct endpoint_found
endpoint_search(const union address *address, __u16 port, __u8 protocol, bool readable)
{
	struct endpoint_rules *rules = endpoint_rules(address);
	struct endpoint_found result = {};
	__u32 i;

	if (!rules)
		return result;
	for (i = 0; i < MAX_ENDPOINT_RULES; i++) {
		struct endpoint_rule *rule = &rules->rule[i];

		if (i >= rules->count)
			break;
		if (rule->protocol && rule->protocol != protocol && (readable || protocol))
			continue;
		if (readable && (port < rule->first_port || port > rule->last_port))
			continue;
		result.mask = rule->mask;
		result.endpoint = rule->endpoint;
		result.found = 1;
		break;
	}
	return result;
}

static __always_inline struct endpoint_found endpoint_lookup(const union address *address,
							     __u16 port, __u8 protocol)
{
	return endpoint_search(address, port, protocol, true);
}

/* The rule for the destination of a packet. What cannot be read concerns whom it may. */
static __always_inline struct endpoint_found endpoint_of_packet(const struct packet *pkt)
{
	bool readable = pkt->transport_state == TRANSPORT_KNOWN;
	__u8 protocol = pkt->protocol;

	if (!readable && !packet_protocol_is_known(pkt))
		protocol = 0;
	return endpoint_search(&pkt->dst, pkt->dport, protocol, readable);
}

#endif
