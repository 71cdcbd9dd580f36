/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_identity - is it the same packet again?
 *
 * A buffer (skb->head) is reused within microseconds, so it identifies a packet only together
 * with bytes that no hop changes. While a packet stays in one buffer its headers stay where they
 * are: a VLAN tag pushed into the data moves the MAC addresses, not what follows. So the parser
 * runs once, where the packet enters; from then on the same 24 bytes are read again, 8 at the
 * network header and 16 further on, and masked to what no hop may change. Not compared:
 * addresses, ports, TTL, TOS, checksums, ICMP identifier, and the TCP flags that segmentation
 * and merging change (PSH, FIN, CWR).
 */
#ifndef NT_IDENTITY_H
#define NT_IDENTITY_H

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "nt_types.h"

/* Two odd constants with evenly spread bits (golden ratio, and a prime of xxHash). */
#define NT_MIX_A 0x9e3779b97f4a7c15ULL
#define NT_MIX_B 0xc2b2ae3d27d4eb4fULL

static __always_inline __u64 nt_mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * NT_MIX_A;
	return hash ^ (hash >> 29);
}

struct nt_print {
	__u64 mask[3];
	__u32 digest;
	__u16 l3_off; /* from skb->head */
	__u16 off;
};

/* Masks are written as they read on the wire, first byte first. */
#define NT_WIRE(word) bpf_cpu_to_be64(word##ULL)

/* Reads the bytes and digests them; 0 when they cannot be read. */
static __always_inline __u32 nt_print_read(const void *head, const struct nt_print *print)
{
	__u64 word[5], hash;
	__u32 digest;

	/* TCP and UDP behind an IPv4 header without options: a read costs the same for all of it. */
	if (print->off == print->l3_off + 24) {
		if (bpf_probe_read_kernel(word, 40, head + print->l3_off))
			return 0;
	} else if (bpf_probe_read_kernel(&word[0], 8, head + print->l3_off) ||
		   bpf_probe_read_kernel(&word[3], 16, head + print->off)) {
		return 0;
	}
	hash = nt_mix(NT_MIX_B, word[0] & print->mask[0]);
	hash = nt_mix(hash, word[3] & print->mask[1]);
	hash = nt_mix(hash, word[4] & print->mask[2]);
	digest = hash >> 32;
	return digest ? digest : 1;
}

/* The first `bytes` of a word, as a mask. */
static __always_inline __u64 nt_print_first(__u64 bytes)
{
	return bytes >= 8 ? ~0ULL : bpf_cpu_to_be64(~(~0ULL >> (8 * bytes)));
}

/* Takes the fingerprint of a parsed packet. */
static __always_inline void nt_print_take(const void *head, const struct nt_pkt *p,
					  struct nt_print *print)
{
	__u64 keep;

	/* IPv4: version, length, id, fragment. IPv6: version, length, next header. */
	print->mask[0] = p->tuple.family == 4 ? NT_WIRE(0xff00ffffffffffff) :
			 p->tuple.family == 6 ? NT_WIRE(0xf0000000ffffff00) :
						~0ULL;
	print->mask[1] = 0;
	print->mask[2] = 0;
	print->l3_off = p->l3_off;
	print->off = p->l3_off;
	if (p->tcp_hdr_len) {
		/* Not the length, for segmentation changes it. */
		print->mask[0] &= p->tuple.family == 4 ? ~NT_WIRE(0x0000ffff00000000) :
							 ~NT_WIRE(0x00000000ffff0000);
		/* sequence, acknowledgement | header length, SYN RST ACK, window */
		print->off = p->l4_off + 4;
		print->mask[1] = ~0ULL;
		print->mask[2] = NT_WIRE(0xf016ffff00000000);
	} else if (p->frag_off) {
		/* IPv6: the fragment header is in front of what would be L4 */
		if (p->tuple.family == 6) {
			print->off = p->l4_off - 8;
			print->mask[1] = ~0ULL;
		}
	} else if (p->flags & NT_PKT_ICMP) {
		/* type, code, sequence of an echo | payload */
		print->off = p->l4_off;
		print->mask[1] = NT_WIRE(0xffff00000000ffff);
		if (p->flags & NT_PKT_PAYLOAD)
			print->mask[2] = nt_print_first(p->payload_len);
	} else if (p->flags & NT_PKT_L4) {
		/* length of UDP, payload */
		print->off = p->l4_off + 4;
		print->mask[1] = NT_WIRE(0xffff000000000000);
		if (p->flags & NT_PKT_PAYLOAD) {
			keep = p->payload_len < 8 ? p->payload_len : 8;
			print->mask[1] |= nt_print_first(4 + keep) & NT_WIRE(0x00000000ffffffff);
			print->mask[2] = keep > 4 ? nt_print_first(keep - 4) : 0;
		}
	} else if (p->arp_op) {
		/* sender and target addresses */
		print->off = p->l3_off + 12;
		print->mask[1] = ~0ULL;
		print->mask[2] = ~0ULL;
	} else if (!p->tuple.family && p->payload_len >= 16) {
		print->mask[1] = ~0ULL;
		print->mask[2] = ~0ULL;
	}
	print->digest = nt_print_read(head, print);
}

/*
 * Reads addresses, ports and the identifier of an echo again, where the fingerprint says that they
 * are: NAT rewrites them in place. Returns 0, or -1 when memory could not be read.
 */
static __always_inline int nt_tuple_again(const void *head, const struct nt_print *print,
					  struct nt_tuple *t)
{
	const __u8 protocol = t->protocol;
	__u8 v4[8];
	__be16 id;
	__be16 ports[2];

	if (t->family == 4) {
		if (bpf_probe_read_kernel(v4, sizeof(v4), head + print->l3_off + 12))
			return -1;
		__builtin_memcpy(t->src, v4, 4);
		__builtin_memcpy(t->dst, v4 + 4, 4);
	} else if (t->family == 6) {
		if (bpf_probe_read_kernel(t->src, 32, head + print->l3_off + 8))
			return -1;
	}
	if (protocol == NT_IP_ICMP || protocol == NT_IP_ICMPV6) {
		if (bpf_probe_read_kernel(&id, sizeof(id), head + print->off + 4))
			return -1;
		t->dst_port = bpf_ntohs(id);
	} else if (t->src_port || t->dst_port) {
		if (bpf_probe_read_kernel(ports, sizeof(ports), head + print->off - 4))
			return -1;
		t->src_port = bpf_ntohs(ports[0]);
		t->dst_port = bpf_ntohs(ports[1]);
	}
	return 0;
}

/*
 * Key of a packet that changes its buffer but not its addresses, as over an upcall: its flow and
 * its fingerprint. Never 0.
 */
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

#endif
