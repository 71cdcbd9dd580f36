/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_skb - what the parser needs of an skb, in few reads
 */
#ifndef NT_SKB_H
#define NT_SKB_H

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "nt_compat.h"

/* Where the headers are, and how to read them. Constants: one NT_AT_*, combined with the others. */
enum nt_where {
	NT_AT_DATA = 0, /* L3, or a VLAN tag, at skb->data; the network offset is not trusted */
	NT_AT_ETH = 1,	/* Ethernet at skb->data; the network offset is not trusted */
	NT_AT_NET = 2,	/* L3 at the network offset */
	NT_AT_ANY = 3,	/* free.*: network offset if it makes sense, else MAC header, else data */
	NT_AT_MASK = 3,
	NT_DIRECT = 1 << 2,  /* the verifier knows the type of skb: plain loads */
	NT_LEN_SKB = 1 << 3, /* the IP header has no length yet: l4.out .. l3.local_out */
	NT_NO_MAC = 1 << 4,  /* MAC addresses are not wanted */
};

#define NT_MAC_UNSET 0xffff

/* What the parser needs of an skb. */
struct nt_skb {
	const unsigned char *head;
	__u64 data;   /* offset of skb->data */
	__u64 linear; /* end of the linear part */
	__u64 end;    /* end of the packet */
	__u64 network;
	__u64 mac;
	__u64 protocol;
	struct nt_vlan_tag vlan;
	__u64 zero; /* nt_vague_zero() */
};

/*
 * Hides from the compiler where the packet is: it would keep every field in a register or a copy
 * of its own and follow each combination of headers with separate code.
 */
#define NT_OPAQUE(p) asm volatile("" : "+r"(p))

/*
 * A zero of which the verifier knows nothing. What it knows of one packet and not of another, it
 * follows through the rest of the program for each combination: fields that are 0 or not, offsets
 * with bounds that decide a later comparison. `any` is a number read from the kernel.
 */
static __always_inline __u64 nt_vague_zero(__u64 any)
{
	__u64 same = any;

	NT_OPAQUE(any);
	NT_OPAQUE(same);
	return any - same;
}

/*
 * Members of struct sk_buff that are neighbours in every kernel so far. A probe read costs 10 to
 * 25 ns whatever its size: they are read together where the kernel's BTF says so.
 */
struct nt_skb_base {
	__u64 head;
	__u64 data;
};

struct nt_skb_lengths {
	__u32 len;
	__u32 data_len;
};

struct nt_skb_offsets {
	__be16 protocol;
	__u16 transport;
	__u16 network;
	__u16 mac;
};

#define NT_NEIGHBOURS(skb, first, second, bytes)                                                   \
	(bpf_core_field_offset((skb)->second) == bpf_core_field_offset((skb)->first) + (bytes))

/*
 * As plain numbers, never loaded directly: newer verifiers (found on 6.18) make a pointer of such
 * a load, want to know every offset added to it exactly, and follow each combination of header
 * lengths on its own.
 */
static __always_inline void nt_skb_base(struct sk_buff *skb, struct nt_skb_base *base)
{
	if (NT_NEIGHBOURS(skb, head, data, 8)) {
		bpf_core_read(base, sizeof(*base), &skb->head);
	} else {
		bpf_core_read(&base->head, sizeof(base->head), &skb->head);
		bpf_core_read(&base->data, sizeof(base->data), &skb->data);
	}
}

static __always_inline void nt_skb_lengths(struct sk_buff *skb, const int direct,
					   struct nt_skb_lengths *lengths)
{
	if (!direct && NT_NEIGHBOURS(skb, len, data_len, 4)) {
		bpf_core_read(lengths, sizeof(*lengths), &skb->len);
	} else {
		lengths->len = NT_GET(skb, len);
		lengths->data_len = NT_GET(skb, data_len);
	}
}

static __always_inline void nt_skb_offsets(struct sk_buff *skb, const int direct,
					   struct nt_skb_offsets *offsets)
{
	if (!direct && NT_NEIGHBOURS(skb, protocol, network_header, 4) &&
	    NT_NEIGHBOURS(skb, protocol, mac_header, 6)) {
		bpf_core_read(offsets, sizeof(*offsets), &skb->protocol);
	} else {
		offsets->protocol = NT_GET(skb, protocol);
		offsets->network = NT_GET(skb, network_header);
		offsets->mac = NT_GET(skb, mac_header);
	}
}

/* Returns 0, or -1 when the skb could not be read. */
static __always_inline int nt_skb_load(struct sk_buff *skb, const int where, struct nt_skb *m)
{
	const int direct = where & NT_DIRECT;
	struct nt_skb_base base;
	struct nt_skb_lengths lengths;
	struct nt_skb_offsets offsets = { .mac = NT_MAC_UNSET };

	nt_skb_base(skb, &base);
	nt_skb_lengths(skb, direct, &lengths);
	/* Where the packet begins with Ethernet, nothing of these is believed. */
	if ((where & NT_AT_MASK) != NT_AT_ETH)
		nt_skb_offsets(skb, direct, &offsets);
	m->head = (const unsigned char *)base.head;
	m->zero = nt_vague_zero(base.head);
	m->data = base.data - base.head;
	m->end = m->data + lengths.len;
	m->linear = m->end - lengths.data_len;
	m->protocol = bpf_ntohs(offsets.protocol);
	m->network = offsets.network + m->zero;
	m->mac = offsets.mac + m->zero;
	nt_vlan_acc(skb, direct, &m->vlan);
	return m->head ? 0 : -1;
}

#endif
