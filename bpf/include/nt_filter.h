/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_filter - which packets the user asked for
 *
 * Part of the configuration struct of an engine, filled by engine/filter.py; a filter of zeros
 * takes everything. One rule of single values is compared with constants. Lists of values, and up
 * to 64 rules of which one must fit, are looked up: each criterion gives the set of rules it
 * fulfils, a bit per rule, and what is left of all rules in the end decides. Exact, without loops,
 * and the cost does not grow with the number of rules.
 *
 * Keeps: nt_tables, 1 x 8 bytes; with lists 2 KiB per 256 neighbouring values of a criterion that
 *        differ, 1 MiB at the very most. nt_prefixes: nothing; with lists up to 200 bytes per entry
 */
#ifndef NT_FILTER_H
#define NT_FILTER_H

#include <bpf/bpf_helpers.h>

#include "nt_map.h"
#include "nt_types.h"

/* Criteria in use, by any rule. */
enum nt_filter_use {
	NT_F_VLAN = 1 << 0,	 /* vlan_id of the outer tag; NT_VLAN_NONE = untagged */
	NT_F_ETH_PROTO = 1 << 1,
	NT_F_FAMILY = 1 << 2,	 /* IP version; without it an address also matches ARP */
	NT_F_SRC_MAC = 1 << 3,
	NT_F_DST_MAC = 1 << 4,
	NT_F_SRC_IP = 1 << 5,	 /* needs family: that of the address */
	NT_F_DST_IP = 1 << 6,
	NT_F_PROTOCOL = 1 << 7,
	NT_F_SRC_PORT = 1 << 8,
	NT_F_DST_PORT = 1 << 9,
	NT_F_ICMP_TYPE = 1 << 10,
	NT_F_TCP_FLAGS = 1 << 11, /* (flags & tcp_mask) == tcp_flags */
	NT_F_MIN_LEN = 1 << 12,	  /* total_len */
	NT_F_BIDIR = 1 << 13,	  /* also packets with source and destination swapped */
};

/*
 * The criterion that refused a packet, in the order of evaluation: header by header, so that what
 * can be read decides before what cannot, and the cheaper first within a header.
 */
enum nt_reject {
	NT_REJECT_NONE,
	NT_REJECT_VLAN,
	NT_REJECT_ETH_PROTO,
	NT_REJECT_MAC,
	NT_REJECT_FAMILY,
	NT_REJECT_PROTOCOL,
	NT_REJECT_LENGTH,
	NT_REJECT_SRC_IP,
	NT_REJECT_DST_IP,
	NT_REJECT_PORT,
	NT_REJECT_ICMP_TYPE,
	NT_REJECT_TCP_FLAGS,
	NT_REJECT_MAX,
};

/* Criteria in nt_tables: values of 16 bits at most. */
enum nt_filter_table {
	NT_TABLE_VLAN,
	NT_TABLE_ETH_PROTO,
	NT_TABLE_PROTOCOL,
	NT_TABLE_LENGTH, /* longer packets count as 65535 bytes */
	NT_TABLE_SRC_PORT,
	NT_TABLE_DST_PORT,
	NT_TABLE_ICMP_TYPE, /* of ICMPv6: + 256 */
	NT_TABLE_TCP_FLAGS,
	NT_TABLE_MAX,
};

/* Criteria in nt_prefixes; of IPv6 addresses: + NT_PREFIX_IPV6. */
enum nt_filter_prefix {
	NT_PREFIX_SRC_IP,
	NT_PREFIX_DST_IP,
	NT_PREFIX_SRC_MAC,
	NT_PREFIX_DST_MAC,
	NT_PREFIX_IPV6,
};

/*
 * Addresses are already masked; the mask has the prefix bits set. Ports in host order. With sets
 * of rules (`rules` is not 0) only `used` and what follows `rules` count.
 */
struct nt_filter {
	__u8 src_ip[16];
	__u8 src_mask[16];
	__u8 dst_ip[16];
	__u8 dst_mask[16];
	__u8 src_mac[6];
	__u16 src_port; /* to src_port_last */
	__u8 dst_mac[6];
	__u16 dst_port;
	__u32 used; /* enum nt_filter_use */
	__u32 min_len;
	__u16 eth_proto;
	__u16 vlan_id;
	__u16 src_port_last;
	__u16 dst_port_last;
	__u16 icmp_type;  /* NT_ICMP_NO_TYPE: only ICMPv6 */
	__u16 icmp6_type;
	__u8 family; /* 4 or 6 */
	__u8 protocol;
	__u8 protocol_alt; /* also wanted: "icmp" is two protocols; else the same again */
	__u8 tcp_flags;
	__u8 tcp_mask;
	__u8 reserved[7];
	__u64 zero; /* not known to the verifier: it does not tell apart what this is added to */
	__u64 rules; /* all of them */
	__u64 bidir; /* those that also take packets with source and destination swapped */
	__u64 ipv4;  /* those a packet of this IP version fulfils */
	__u64 ipv6;
	/* Those that do not use a criterion: what a packet without that field fulfils. */
	__u64 any_family;
	__u64 any_protocol;
	__u64 any_port;
	__u64 any_icmp_type;
	__u64 any_tcp_flags;
	__u64 any_src_ip;
	__u64 any_dst_ip;
	__u64 any_src_mac;
	__u64 any_dst_mac;
} __attribute__((aligned(8)));

#define NT_ICMP_NO_TYPE 0xffff

/* `bits` counts the field too. Values have the bits of all prefixes that cover the key. */
struct nt_prefix_key {
	__u32 bits;
	__u32 field; /* enum nt_filter_prefix */
	__u8 data[16];
};

/*
 * Rules by value, in two steps, for all tables in one map: at (table << 8 | high byte) is the
 * place of a page, in the page at the low byte the rules. Equal pages are there once.
 */
NT_MAP(nt_tables, ARRAY, 1, __u32, __u64);

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct nt_prefix_key);
	__type(value, __u64);
} nt_prefixes SEC(".maps");

/* Directions a packet may still be of, as bits: as asked, and swapped. */
#define NT_DIR_AS_ASKED 1
#define NT_DIR_SWAPPED 2

/* The directions without a difference. */
static __always_inline int nt_dirs(__u64 as_asked, __u64 swapped)
{
	return (as_asked ? 0 : NT_DIR_AS_ASKED) | (swapped ? 0 : NT_DIR_SWAPPED);
}

/* What differs, 8 bytes at a time; the last 2 bytes are not of the MAC address. */
static __always_inline __u64 nt_ip_diff(const __u8 *ip, const __u8 *net, const __u8 *mask)
{
	const __u64 *a = __builtin_assume_aligned(ip, 8);
	const __u64 *n = __builtin_assume_aligned(net, 8);
	const __u64 *m = __builtin_assume_aligned(mask, 8);

	return ((a[0] & m[0]) ^ n[0]) | ((a[1] & m[1]) ^ n[1]);
}

static __always_inline __u64 nt_mac_diff(const __u8 *a, const __u8 *b)
{
	const __u64 *x = __builtin_assume_aligned(a, 8);
	const __u64 *y = __builtin_assume_aligned(b, 8);

	return (*x ^ *y) << 16;
}

/* 0 if the port is in the range. */
static __always_inline __u64 nt_port_diff(__u64 port, __u64 first, __u64 last)
{
	return port - first > last - first;
}

/* IP version of the addresses, 4 for ARP, 0 without addresses. */
static __always_inline __u64 nt_address_family(const struct nt_pkt *p)
{
	if (!(p->flags & NT_PKT_L3))
		return 0;
	return p->tuple.family ? p->tuple.family : 4;
}

/* One rule of single values. */
static __always_inline enum nt_reject nt_match_constants(const struct nt_filter *f,
							 const struct nt_pkt *p, int dirs)
{
	const __u32 used = f->used;

	if ((used & NT_F_VLAN) && p->vlan_id != f->vlan_id)
		return NT_REJECT_VLAN;
	if ((used & NT_F_ETH_PROTO) && p->tuple.eth_proto != f->eth_proto)
		return NT_REJECT_ETH_PROTO;
	if (used & (NT_F_SRC_MAC | NT_F_DST_MAC)) {
		if (!(p->flags & NT_PKT_L2))
			return NT_REJECT_MAC;
		if (used & NT_F_SRC_MAC)
			dirs &= nt_dirs(nt_mac_diff(p->smac, f->src_mac),
					nt_mac_diff(p->dmac, f->src_mac));
		if (used & NT_F_DST_MAC)
			dirs &= nt_dirs(nt_mac_diff(p->dmac, f->dst_mac),
					nt_mac_diff(p->smac, f->dst_mac));
		if (!dirs)
			return NT_REJECT_MAC;
	}
	if ((used & NT_F_FAMILY) && p->tuple.family != f->family)
		return NT_REJECT_FAMILY;
	if ((used & NT_F_PROTOCOL) &&
	    (!p->tuple.family || (p->tuple.protocol != f->protocol &&
				  p->tuple.protocol != f->protocol_alt)))
		return NT_REJECT_PROTOCOL;
	if ((used & NT_F_MIN_LEN) && p->total_len < f->min_len)
		return NT_REJECT_LENGTH;
	if (used & NT_F_SRC_IP) {
		dirs &= nt_dirs(nt_ip_diff(p->tuple.src, f->src_ip, f->src_mask),
				nt_ip_diff(p->tuple.dst, f->src_ip, f->src_mask));
		if (!dirs || nt_address_family(p) != f->family)
			return NT_REJECT_SRC_IP;
	}
	if (used & NT_F_DST_IP) {
		dirs &= nt_dirs(nt_ip_diff(p->tuple.dst, f->dst_ip, f->dst_mask),
				nt_ip_diff(p->tuple.src, f->dst_ip, f->dst_mask));
		if (!dirs || nt_address_family(p) != f->family)
			return NT_REJECT_DST_IP;
	}
	if (used & (NT_F_SRC_PORT | NT_F_DST_PORT)) {
		if (!(p->flags & NT_PKT_L4))
			return NT_REJECT_PORT;
		if (used & NT_F_SRC_PORT)
			dirs &= nt_dirs(nt_port_diff(p->tuple.src_port, f->src_port,
						     f->src_port_last),
					nt_port_diff(p->tuple.dst_port, f->src_port,
						     f->src_port_last));
		if (used & NT_F_DST_PORT)
			dirs &= nt_dirs(nt_port_diff(p->tuple.dst_port, f->dst_port,
						     f->dst_port_last),
					nt_port_diff(p->tuple.src_port, f->dst_port,
						     f->dst_port_last));
		if (!dirs)
			return NT_REJECT_PORT;
	}
	if ((used & NT_F_ICMP_TYPE) &&
	    (!(p->flags & NT_PKT_ICMP) ||
	     p->icmp_type != (p->tuple.family == 6 ? f->icmp6_type : f->icmp_type)))
		return NT_REJECT_ICMP_TYPE;
	if ((used & NT_F_TCP_FLAGS) &&
	    (!p->tcp_hdr_len || (p->tcp_flags & f->tcp_mask) != f->tcp_flags))
		return NT_REJECT_TCP_FLAGS;
	return NT_REJECT_NONE;
}

/* Rules a value fulfils. */
static __attribute__((noinline)) __u64 nt_in_table(__u32 table, __u32 value)
{
	__u32 at = table << 8 | value >> 8;
	__u64 *found = bpf_map_lookup_elem(&nt_tables, &at);

	if (!found)
		return 0;
	at = *found + (value & 0xff);
	found = bpf_map_lookup_elem(&nt_tables, &at);
	return found ? *found : 0;
}

/*
 * Rules an address fulfils: `any`, those without one, where no prefix covers it. All 16 bytes are
 * copied; those behind a shorter address do not count.
 */
static __attribute__((noinline)) __u64 nt_in_prefixes(__u32 bits, __u32 field, const __u64 *address,
						      __u64 any)
{
	struct nt_prefix_key key = { .bits = 32 + bits, .field = field };
	__u64 *found;

	__builtin_memcpy(key.data, address, sizeof(key.data));
	found = bpf_map_lookup_elem(&nt_prefixes, &key);
	return found ? *found : any;
}

/* The same for an address of IP or ARP. */
static __always_inline __u64 nt_in_ips(const struct nt_pkt *p, __u32 field, const __u64 *address,
				       __u64 any)
{
	if (!(p->flags & NT_PKT_L3))
		return any;
	if (p->tuple.family == 6)
		return nt_in_prefixes(128, field + NT_PREFIX_IPV6, address, any);
	return nt_in_prefixes(32, field, address, any);
}

static __always_inline __u64 nt_match_way(const struct nt_filter *f, const struct nt_pkt *p,
					  __u64 left, int swapped)
{
	const __u64 *src = (const void *)(swapped ? p->tuple.dst : p->tuple.src);
	const __u64 *dst = (const void *)(swapped ? p->tuple.src : p->tuple.dst);
	const __u32 used = f->used, flags = p->flags, family = p->tuple.family;

	if (used & NT_F_VLAN)
		left &= nt_in_table(NT_TABLE_VLAN, p->vlan_id);
	if (!left)
		return NT_REJECT_VLAN;
	if (used & NT_F_ETH_PROTO)
		left &= nt_in_table(NT_TABLE_ETH_PROTO, p->tuple.eth_proto);
	if (!left)
		return NT_REJECT_ETH_PROTO;
	if (used & (NT_F_SRC_MAC | NT_F_DST_MAC)) {
		const __u64 *smac = (const void *)(swapped ? p->dmac : p->smac);
		const __u64 *dmac = (const void *)(swapped ? p->smac : p->dmac);

		if (flags & NT_PKT_L2)
			left &= nt_in_prefixes(48, NT_PREFIX_SRC_MAC, smac, f->any_src_mac) &
				nt_in_prefixes(48, NT_PREFIX_DST_MAC, dmac, f->any_dst_mac);
		else
			left &= f->any_src_mac & f->any_dst_mac;
		if (!left)
			return NT_REJECT_MAC;
	}
	if (used & NT_F_FAMILY)
		left &= family == 4 ? f->ipv4 : family == 6 ? f->ipv6 : f->any_family;
	if (!left)
		return NT_REJECT_FAMILY;
	if (used & NT_F_PROTOCOL)
		left &= family ? nt_in_table(NT_TABLE_PROTOCOL, p->tuple.protocol) :
				 f->any_protocol;
	if (!left)
		return NT_REJECT_PROTOCOL;
	if (used & NT_F_MIN_LEN)
		left &= nt_in_table(NT_TABLE_LENGTH, p->total_len > 0xffff ? 0xffff : p->total_len);
	if (!left)
		return NT_REJECT_LENGTH;
	if (used & NT_F_SRC_IP)
		left &= nt_in_ips(p, NT_PREFIX_SRC_IP, src, f->any_src_ip);
	if (!left)
		return NT_REJECT_SRC_IP;
	if (used & NT_F_DST_IP)
		left &= nt_in_ips(p, NT_PREFIX_DST_IP, dst, f->any_dst_ip);
	if (!left)
		return NT_REJECT_DST_IP;
	if (used & (NT_F_SRC_PORT | NT_F_DST_PORT)) {
		const __u32 sport = swapped ? p->tuple.dst_port : p->tuple.src_port;
		const __u32 dport = swapped ? p->tuple.src_port : p->tuple.dst_port;

		if (flags & NT_PKT_L4)
			left &= nt_in_table(NT_TABLE_SRC_PORT, sport) &
				nt_in_table(NT_TABLE_DST_PORT, dport);
		else
			left &= f->any_port;
		if (!left)
			return NT_REJECT_PORT;
	}
	if (used & NT_F_ICMP_TYPE)
		left &= flags & NT_PKT_ICMP ?
				nt_in_table(NT_TABLE_ICMP_TYPE, (family == 6) << 8 | p->icmp_type) :
				f->any_icmp_type;
	if (!left)
		return NT_REJECT_ICMP_TYPE;
	if (used & NT_F_TCP_FLAGS)
		left &= p->tcp_hdr_len ? nt_in_table(NT_TABLE_TCP_FLAGS, p->tcp_flags) :
					 f->any_tcp_flags;
	return left ? NT_REJECT_NONE : NT_REJECT_TCP_FLAGS;
}

/*
 * Sets of rules, in one direction. 4.19 counts all instructions of a program together: this is a
 * function so that both directions share them.
 */
static __attribute__((noinline)) __u64 nt_match_sets(const struct nt_filter *f,
						     const struct nt_pkt *p, __u64 left,
						     int swapped)
{
	return nt_match_way(f, p, left, swapped) + f->zero;
}

/*
 * Returns NT_REJECT_NONE if the packet is wanted, else the first criterion after which no rule is
 * left in either direction. A criterion whose field is not known refuses: a port filter takes no
 * packet without ports. `f` and `p` are 8-byte aligned.
 */
static __always_inline enum nt_reject nt_filter_match(const struct nt_filter *f,
						      const struct nt_pkt *p)
{
	__u64 reject, other;

	if (!f->rules) {
		const int dirs = f->used & NT_F_BIDIR ? NT_DIR_AS_ASKED | NT_DIR_SWAPPED :
							NT_DIR_AS_ASKED;

		return f->used ? nt_match_constants(f, p, dirs) + f->zero : NT_REJECT_NONE;
	}
	reject = nt_match_sets(f, p, f->rules, 0);
	if (!reject || !f->bidir)
		return reject;
	other = nt_match_sets(f, p, f->bidir, 1);
	/* The last rule was refused where the direction that came further ended. */
	return !other || other > reject ? other : reject;
}

/* The same in one direction only, whatever was asked: as asked, or what answers it. */
static __always_inline enum nt_reject nt_filter_match_way(const struct nt_filter *f,
							  const struct nt_pkt *p, int swapped)
{
	if (f->rules)
		return nt_match_sets(f, p, f->rules, swapped);
	if (!f->used)
		return NT_REJECT_NONE;
	return nt_match_constants(f, p, swapped ? NT_DIR_SWAPPED : NT_DIR_AS_ASKED) + f->zero;
}

/*
 * A header that could not be read might have made the packet a wanted one: without an L3 header
 * nothing is known from the IP version on, without the last IPv6 extension header from the protocol
 * on, without L4 from the ports on.
 */
static __always_inline bool nt_filter_unsure(const struct nt_filter *f, const struct nt_pkt *p,
					     enum nt_reject reject)
{
	const __u32 flags = p->flags;
	enum nt_reject first = NT_REJECT_PORT;

	if (!(flags & (NT_PKT_TRUNCATED | NT_PKT_DEEP | NT_PKT_FAULT)) ||
	    (flags & (NT_PKT_L4 | NT_PKT_ICMP)))
		return false;
	if (!(flags & NT_PKT_L3))
		first = NT_REJECT_FAMILY;
	else if (!p->l4_off && (f->used & NT_F_PROTOCOL))
		first = NT_REJECT_PROTOCOL;
	return reject >= first;
}

#endif
