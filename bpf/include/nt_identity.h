/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_identity - is it the same packet again?
 *
 * A buffer (skb->head) is reused within microseconds, so it identifies a packet only together
 * with a digest of header fields that no hop changes. Not in the digest: addresses, ports, TTL,
 * TOS, checksums, VLAN tags, and what segmentation or merging changes (PSH, FIN, CWR).
 */
#ifndef NT_IDENTITY_H
#define NT_IDENTITY_H

#include <bpf/bpf_helpers.h>

#include "nt_types.h"

/* Two odd constants with evenly spread bits (golden ratio, and a prime of xxHash). */
#define NT_MIX_A 0x9e3779b97f4a7c15ULL
#define NT_MIX_B 0xc2b2ae3d27d4eb4fULL

static __always_inline __u64 nt_mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * NT_MIX_A;
	return hash ^ (hash >> 29);
}

/* What tells packets of one flow apart, and a length for those where it helps. */
struct nt_invariant {
	__u64 hash;
	__u64 len;
};

/*
 * The length is kept apart: GSO gives its first child the sequence number and id of the parent,
 * but not its length.
 */
static __always_inline struct nt_invariant nt_invariant(const struct nt_pkt *p)
{
	struct nt_invariant out = {};
	__u64 a, b;

	if (p->tcp_hdr_len) {
		a = (__u64)p->seq << 32 | p->ack;
		b = (__u64)p->tcp_hdr_len << 32 | (__u64)p->window << 8 |
		    (p->tcp_flags & (NT_TCP_SYN | NT_TCP_RST | NT_TCP_ACK));
	} else if (p->frag_off) {
		a = (__u64)p->ip_id << 32 | p->frag_off;
		b = 0;
	} else if (p->flags & NT_PKT_ECHO) {
		a = (__u64)p->icmp_type << 24 | (__u64)p->icmp_code << 16 | p->icmp_seq;
		b = p->payload;
	} else if (p->tuple.family) {
		a = (__u64)p->tuple.protocol << 48 | (__u64)p->icmp_type << 40 |
		    (__u64)p->icmp_code << 32 | p->ip_id;
		b = p->payload;
		out.len = p->total_len;
	} else if (p->arp_op) {
		a = p->arp_op;
		b = *(const __u32 *)__builtin_assume_aligned(p->tuple.dst, 8);
	} else {
		a = p->tuple.eth_proto;
		b = p->payload;
	}
	out.hash = nt_mix(nt_mix(NT_MIX_B, a), b);
	return out;
}

/* Digest of the fields no hop changes; never 0. */
static __always_inline __u32 nt_digest(const struct nt_pkt *p)
{
	struct nt_invariant it = nt_invariant(p);
	__u32 digest = nt_mix(it.hash, it.len) >> 32;

	return digest ? digest : 1;
}

/* Key of a flow and something that tells its packets apart; never 0. */
static __always_inline __u64 nt_key_of(const struct nt_tuple *t, __u64 packet)
{
	const __u64 *w = __builtin_assume_aligned(t, 8);
	__u64 hash = NT_MIX_B;
	int i;

#pragma unroll
	for (i = 0; i < 5; i++)
		hash = nt_mix(hash, w[i]);
	hash = nt_mix(hash, packet);
	return hash ? hash : 1;
}

/*
 * Key of a packet that changes its buffer but not its addresses: upcall and re-injection, GSO
 * parent and first child, socket and IP layer. Never 0.
 */
static __always_inline __u64 nt_key(const struct nt_pkt *p)
{
	return nt_key_of(&p->tuple, nt_invariant(p).hash);
}

#endif
