/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_filter - which packets the user asked for
 *
 * Part of the configuration struct of an engine. User space fills the criteria and their bits in
 * `used`; a filter of zeros takes everything.
 */
#ifndef NT_FILTER_H
#define NT_FILTER_H

#include <bpf/bpf_helpers.h>

#include "nt_types.h"

/* Criteria in use. */
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

/* The criterion that refused a packet, in the order of evaluation. */
enum nt_reject {
	NT_REJECT_NONE,
	NT_REJECT_VLAN,
	NT_REJECT_ETH_PROTO,
	NT_REJECT_FAMILY,
	NT_REJECT_MAC,
	NT_REJECT_SRC_IP,
	NT_REJECT_DST_IP,
	NT_REJECT_PROTOCOL,
	NT_REJECT_PORT,
	NT_REJECT_ICMP_TYPE,
	NT_REJECT_TCP_FLAGS,
	NT_REJECT_LENGTH,
	NT_REJECT_MAX,
};

/* Addresses are already masked; the mask has the prefix bits set. Ports in host order. */
struct nt_filter {
	__u8 src_ip[16];
	__u8 src_mask[16];
	__u8 dst_ip[16];
	__u8 dst_mask[16];
	__u8 src_mac[6];
	__u16 src_port;
	__u8 dst_mac[6];
	__u16 dst_port;
	__u32 used; /* enum nt_filter_use */
	__u32 min_len;
	__u16 eth_proto;
	__u16 vlan_id;
	__u8 family; /* 4 or 6 */
	__u8 protocol;
	__u8 protocol_alt; /* also wanted: "icmp" is two protocols; else the same again */
	__u8 icmp_type;
	__u8 tcp_flags;
	__u8 tcp_mask;
	__u8 reserved[6];
} __attribute__((aligned(8)));

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

/* IP version of the addresses, 4 for ARP, 0 without addresses. */
static __always_inline __u64 nt_address_family(const struct nt_pkt *p)
{
	if (!(p->flags & NT_PKT_L3))
		return 0;
	return p->tuple.family ? p->tuple.family : 4;
}

/*
 * Returns NT_REJECT_NONE if the packet is wanted, else the first criterion neither direction
 * fulfils. A criterion whose field is not known refuses: a port filter takes no packet without
 * ports. `f` and `p` are 8-byte aligned.
 */
static __always_inline enum nt_reject nt_filter_match(const struct nt_filter *f,
						      const struct nt_pkt *p)
{
	const __u32 used = f->used;
	int dirs = used & NT_F_BIDIR ? NT_DIR_AS_ASKED | NT_DIR_SWAPPED : NT_DIR_AS_ASKED;

	if (!used)
		return NT_REJECT_NONE;
	if ((used & NT_F_VLAN) && p->vlan_id != f->vlan_id)
		return NT_REJECT_VLAN;
	if ((used & NT_F_ETH_PROTO) && p->tuple.eth_proto != f->eth_proto)
		return NT_REJECT_ETH_PROTO;
	if ((used & NT_F_FAMILY) && p->tuple.family != f->family)
		return NT_REJECT_FAMILY;
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
	if ((used & NT_F_PROTOCOL) &&
	    (!p->tuple.family || (p->tuple.protocol != f->protocol &&
				  p->tuple.protocol != f->protocol_alt)))
		return NT_REJECT_PROTOCOL;
	if (used & (NT_F_SRC_PORT | NT_F_DST_PORT)) {
		if (!(p->flags & NT_PKT_L4))
			return NT_REJECT_PORT;
		if (used & NT_F_SRC_PORT)
			dirs &= nt_dirs(p->tuple.src_port ^ f->src_port,
					p->tuple.dst_port ^ f->src_port);
		if (used & NT_F_DST_PORT)
			dirs &= nt_dirs(p->tuple.dst_port ^ f->dst_port,
					p->tuple.src_port ^ f->dst_port);
		if (!dirs)
			return NT_REJECT_PORT;
	}
	if ((used & NT_F_ICMP_TYPE) &&
	    (!(p->flags & NT_PKT_ICMP) || p->icmp_type != f->icmp_type))
		return NT_REJECT_ICMP_TYPE;
	if ((used & NT_F_TCP_FLAGS) &&
	    (!p->tcp_hdr_len || (p->tcp_flags & f->tcp_mask) != f->tcp_flags))
		return NT_REJECT_TCP_FLAGS;
	if ((used & NT_F_MIN_LEN) && p->total_len < f->min_len)
		return NT_REJECT_LENGTH;
	return NT_REJECT_NONE;
}

#endif
