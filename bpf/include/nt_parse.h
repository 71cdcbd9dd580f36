/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_parse - headers of a packet, from an skb or from plain memory
 *
 *	struct nt_pkt pkt;
 *
 *	if (nt_parse_skb(skb, NT_AT_DATA | (direct ? NT_DIRECT : 0), &pkt)) {
 *		nt_lost(NT_LOSS_READ_FAILED);
 *		return 0;
 *	}
 *
 * VLAN in the skb and two tags in the data, ARP, IPv4 with options, IPv6 with up to 6 extension
 * headers, TCP, UDP, ICMP, SCTP; nt_tunnel.h goes on inside VXLAN, Geneve and GRE. Only the linear
 * part is read, each header in one piece. What could not be read is told by flags, never
 * guessed: without NT_PKT_L4 there are no ports.
 *
 * All functions are inlined, without loops and global data. Offsets count from skb->head and are
 * 64 bit because narrow arithmetic costs two shifts per step in this instruction set. The size of
 * every read is constant: a variable one makes the verifier follow each packet length separately.
 */
#ifndef NT_PARSE_H
#define NT_PARSE_H

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#include "nt_skb.h"
#include "nt_types.h"
#include "nt_wire.h"

#define NT_EXT_MAX 6

/* The rest of a packet: off moves from header to header, the ends shrink to the IP length. */
struct nt_span {
	const unsigned char *head;
	__u64 off;
	__u64 linear;
	__u64 end;
};

static __always_inline void nt_pkt_init(struct nt_pkt *p, __u64 zero)
{
	__u64 *words = (void *)p;
	__u32 i;

#pragma unroll
	for (i = 0; i < sizeof(*p) / sizeof(*words); i++)
		words[i] = zero;
	p->vlan_id = NT_VLAN_NONE;
	p->inner_vlan_id = NT_VLAN_NONE;
}

/*
 * The steps below return 0 to go on, or why not: flags of enum nt_pkt_flag for the packet, and
 * NT_STOP where nothing is wrong.
 */
#define NT_STOP (1 << 16)

/* Reads a whole header at s->off if it lies in the linear part. */
static __always_inline __u64 nt_header(const struct nt_span *s, void *hdr, const __u32 size)
{
	if (s->off + size > s->linear)
		return NT_PKT_TRUNCATED;
	return bpf_probe_read_kernel(hdr, size, s->head + s->off) ? NT_PKT_FAULT : 0;
}

/*
 * The first 8 bytes of the rest, or all there are if it is shorter; none if they are not linear.
 * The read has constant size and ends with the wanted bytes; those before them are shifted out.
 */
static __always_inline __u64 nt_payload(const struct nt_span *s, struct nt_pkt *p)
{
	__u64 want = s->end - s->off, word;

	p->payload_off = s->off;
	p->payload_len = want;
	if (want > sizeof(word))
		want = sizeof(word);
	if (!want || s->off + want > s->linear)
		return NT_STOP;
	if (bpf_probe_read_kernel(&word, sizeof(word), s->head + s->off + want - sizeof(word)))
		return NT_PKT_FAULT;
	p->payload = word >> (64 - 8 * want);
	return NT_PKT_PAYLOAD;
}

static __always_inline bool nt_is_vlan(__u64 proto)
{
	return proto == NT_ETH_VLAN || proto == NT_ETH_QINQ;
}

static __always_inline void nt_set_vlan(struct nt_pkt *p, __u64 proto, __u64 tci)
{
	if (!p->vlan_proto) {
		p->vlan_proto = proto;
		p->vlan_id = tci & 0xfff;
		p->vlan_pcp = tci >> 13;
	} else if (p->inner_vlan_id == NT_VLAN_NONE) {
		p->inner_vlan_id = tci & 0xfff;
		p->inner_vlan_pcp = tci >> 13;
	}
}

/* Up to two tags in the data. */
static __always_inline __u64 nt_vlans(struct nt_span *s, __u64 *proto, struct nt_pkt *p)
{
	struct nt_vlanhdr tag;
	__u64 why;
	int i;

#pragma unroll
	for (i = 0; i < 2; i++) {
		if (!nt_is_vlan(*proto))
			break;
		why = nt_header(s, &tag, sizeof(tag));
		if (why)
			return why;
		nt_set_vlan(p, *proto, bpf_ntohs(tag.tci));
		*proto = bpf_ntohs(tag.proto);
		s->off += sizeof(tag);
	}
	return 0;
}

static __always_inline __u64 nt_arp(const struct nt_span *s, struct nt_pkt *p)
{
	struct nt_arphdr arp;
	__u64 why = nt_header(s, &arp, sizeof(arp));

	if (why)
		return why;
	p->arp_op = bpf_ntohs(arp.op);
	p->total_len = sizeof(arp);
	if (arp.types != bpf_htonl(NT_ARP_TYPES) || arp.lengths != bpf_htons(NT_ARP_LENGTHS))
		return NT_PKT_BAD;
	__builtin_memcpy(p->arp_sha, arp.sha, sizeof(arp.sha));
	__builtin_memcpy(p->arp_tha, arp.tha, sizeof(arp.tha));
	__builtin_memcpy(p->tuple.src, arp.spa, sizeof(arp.spa));
	__builtin_memcpy(p->tuple.dst, arp.tpa, sizeof(arp.tpa));
	return NT_PKT_L3;
}

/*
 * Ends the packet where the IP header says, or where the skb ends if the header does not say: on
 * the way out before __ip_local_out(), and in packets above 64 KiB.
 */
static __always_inline void nt_ip_length(struct nt_span *s, __u64 told, const int where,
					 struct nt_pkt *p)
{
	__u64 there = s->end - s->off;

	if ((where & NT_LEN_SKB) || !told)
		told = there;
	else if (told > there)
		p->flags |= NT_PKT_BAD;
	p->total_len = told;
	s->end = s->off + told;
	if (s->linear > s->end)
		s->linear = s->end;
}

static __always_inline __u64 nt_ipv4(struct nt_span *s, const int where, struct nt_pkt *p)
{
	struct nt_iphdr ip;
	__u64 hdr_len, frag, why = nt_header(s, &ip, sizeof(ip));

	if (why)
		return why;
	hdr_len = (ip.version_ihl & 0xf) * 4;
	if (ip.version_ihl >> 4 != 4 || hdr_len < sizeof(ip))
		return NT_PKT_BAD;
	p->tuple.family = 4;
	p->tuple.protocol = ip.protocol;
	__builtin_memcpy(p->tuple.src, &ip.src, sizeof(ip.src));
	__builtin_memcpy(p->tuple.dst, &ip.dst, sizeof(ip.dst));
	p->ttl = ip.ttl;
	p->tos = ip.tos;
	p->ip_id = bpf_ntohs(ip.id);
	frag = bpf_ntohs(ip.frag_off);
	p->frag_off = (frag & 0x1fff) << 3;
	p->flags |= NT_PKT_L3;
	if (frag & 0x3fff)
		p->flags |= NT_PKT_FRAG;
	if (frag & 0x2000)
		p->flags |= NT_PKT_MF;
	nt_ip_length(s, bpf_ntohs(ip.total_len), where, p);
	s->off += hdr_len;
	return 0;
}

static __always_inline bool nt_is_ext(__u64 next)
{
	return next < 64 && (NT_EXT_SET >> next & 1);
}

/*
 * Skips the extension headers. Behind the header of a later fragment is data: *next then gets out
 * of the range of header numbers until it is stored.
 */
static __always_inline __u64 nt_ipv6_exts(struct nt_span *s, __u64 *next, struct nt_pkt *p)
{
	struct nt_ipv6ext ext;
	struct nt_span frag = { .head = s->head, .linear = s->linear };
	__u64 this, len, why;
	int i;

#pragma unroll
	for (i = 0; i < NT_EXT_MAX; i++) {
		if (!nt_is_ext(*next))
			break;
		why = nt_header(s, &ext, sizeof(ext));
		if (why)
			return why;
		this = *next;
		*next = ext.next;
		len = ext.len * 4;
		if (this != NT_NEXT_AUTH)
			len = ext.len * 8;
		if (this == NT_NEXT_FRAGMENT) {
			frag.off = s->off;
			len = 0;
			if (ext.frag_off & bpf_htons(0xfff8))
				*next |= NT_NEXT_DATA;
		}
		s->off += sizeof(ext) + len;
	}
	if (nt_is_ext(*next))
		return NT_PKT_DEEP;
	if (!frag.off)
		return 0;
	why = nt_header(&frag, &ext, sizeof(ext));
	if (why)
		return why;
	p->ip_id = bpf_ntohl(ext.frag_id);
	p->frag_off = bpf_ntohs(ext.frag_off) & 0xfff8;
	p->flags |= NT_PKT_FRAG;
	if (ext.frag_off & bpf_htons(1))
		p->flags |= NT_PKT_MF;
	return 0;
}

static __always_inline __u64 nt_ipv6(struct nt_span *s, const int where, struct nt_pkt *p)
{
	struct nt_ipv6hdr ip;
	__u64 next, told, why = nt_header(s, &ip, sizeof(ip));
	__u32 first;

	if (why)
		return why;
	first = bpf_ntohl(ip.version_class_flow);
	if (first >> 28 != 6)
		return NT_PKT_BAD;
	p->tuple.family = 6;
	__builtin_memcpy(p->tuple.src, ip.src, sizeof(ip.src));
	__builtin_memcpy(p->tuple.dst, ip.dst, sizeof(ip.dst));
	p->ttl = ip.hop_limit;
	p->tos = first >> 20;
	p->flags |= NT_PKT_L3;
	told = bpf_ntohs(ip.payload_len);
	if (told)
		told += sizeof(ip);
	nt_ip_length(s, told, where, p);
	s->off += sizeof(ip);
	next = ip.next;
	why = nt_ipv6_exts(s, &next, p);
	p->tuple.protocol = next;
	return why;
}

static __always_inline __u64 nt_tcp(struct nt_span *s, struct nt_pkt *p)
{
	struct nt_tcphdr tcp;
	__u64 hdr_len, why = nt_header(s, &tcp, sizeof(tcp));

	if (why)
		return why;
	hdr_len = (tcp.off >> 4) * 4;
	p->tuple.src_port = bpf_ntohs(tcp.src_port);
	p->tuple.dst_port = bpf_ntohs(tcp.dst_port);
	p->seq = bpf_ntohl(tcp.seq);
	p->ack = bpf_ntohl(tcp.ack);
	p->window = bpf_ntohs(tcp.window);
	p->tcp_flags = tcp.flags;
	p->tcp_hdr_len = hdr_len;
	s->off += hdr_len;
	if (hdr_len < sizeof(tcp) || s->off > s->end)
		return NT_PKT_L4 | NT_PKT_BAD;
	p->payload_off = s->off;
	p->payload_len = s->end - s->off;
	return NT_PKT_L4;
}

/* UDP, ICMP, and what has its ports at the same place. */
static __always_inline __u64 nt_short_l4(struct nt_span *s, bool icmp, struct nt_pkt *p)
{
	struct nt_l4hdr l4;
	__u64 type, why = nt_header(s, &l4, sizeof(l4));

	if (why)
		return why;
	s->off += sizeof(l4);
	p->tuple.src_port = bpf_ntohs(l4.src_port);
	if (!icmp) {
		p->flags |= NT_PKT_L4;
		p->tuple.dst_port = bpf_ntohs(l4.dst_port);
		return 0;
	}
	type = l4.type;
	p->flags |= NT_PKT_ICMP;
	p->icmp_type = type;
	p->icmp_code = l4.code;
	/* 8 and 0, or 128 and 129 */
	type = p->tuple.family == 4 ? type & ~8ULL : (type & ~1ULL) ^ 128;
	if (!type) {
		p->flags |= NT_PKT_ECHO;
		p->icmp_id = bpf_ntohs(l4.id);
		p->icmp_seq = bpf_ntohs(l4.seq);
		p->tuple.dst_port = p->icmp_id;
	}
	return 0;
}

static __always_inline __u64 nt_l4(struct nt_span *s, struct nt_pkt *p)
{
	const __u64 protocol = p->tuple.protocol;
	const bool icmp = protocol == (p->tuple.family == 4 ? NT_IP_ICMP : NT_IP_ICMPV6);
	/* Behind these ports is a checksum that may be filled in late, not payload. */
	const bool ports_only = protocol == NT_IP_SCTP || protocol == NT_IP_DCCP;
	__u64 why;

	p->l4_off = s->off;
	if (p->frag_off)
		return NT_STOP;
	if (s->off > s->end)
		return NT_PKT_BAD;
	if (protocol == NT_IP_TCP)
		return nt_tcp(s, p);
	if (!icmp && !ports_only && protocol != NT_IP_UDP && protocol != NT_IP_UDPLITE)
		return NT_STOP;
	why = nt_short_l4(s, icmp, p);
	return ports_only ? why | NT_STOP : why;
}

/* Network header and what follows. */
static __always_inline __u64 nt_l3(struct nt_span *s, __u64 proto, const int where,
				   struct nt_pkt *p)
{
	__u64 why = 0;

	if (s->off > s->end)
		return NT_PKT_BAD;
	p->l3_off = s->off;
	if (proto == NT_ETH_IPV4)
		why = nt_ipv4(s, where, p);
	else if (proto == NT_ETH_IPV6)
		why = nt_ipv6(s, where, p);
	else if (proto == NT_ETH_ARP || proto == NT_ETH_RARP)
		why = nt_arp(s, p);
	else
		p->total_len = s->end - s->off;
	if (!why && p->tuple.family)
		why = nt_l4(s, p);
	return why ? why : nt_payload(s, p);
}

/* From the EtherType on; the packet is initialised, outer tag and MAC addresses are in it. */
static __always_inline void nt_parse_rest(struct nt_span *s, __u64 proto, const int where,
					  struct nt_pkt *p)
{
	__u64 why = nt_vlans(s, &proto, p);

	p->tuple.eth_proto = proto;
	if (!why)
		why = nt_l3(s, proto, where, p);
	/* Nothing behind the linear part: the packet itself is too short. */
	if ((why & NT_PKT_TRUNCATED) && s->linear >= s->end)
		why = NT_PKT_BAD;
	p->flags |= why;
}

static __always_inline int nt_parsed(const struct nt_pkt *p)
{
	return p->flags & NT_PKT_FAULT ? -1 : 0;
}

/*
 * Parses plain memory. head + off is the first byte behind an EtherType `proto` (host order);
 * linear and end, counted from head, are the ends of what may be read and of the packet. To the
 * verifier head is best a number, not a pointer. Returns 0, or -1 when memory was not readable.
 */
static __always_inline int nt_parse_bytes(const void *head, __u64 off, __u64 linear, __u64 end,
					  __u64 proto, const int where, struct nt_pkt *p)
{
	const __u64 zero = nt_vague_zero((__u64)head);
	struct nt_span s = {
		.head = head, .off = off + zero, .linear = linear + zero, .end = end + zero
	};

	NT_OPAQUE(p);
	nt_pkt_init(p, zero);
	nt_parse_rest(&s, proto, where, p);
	return nt_parsed(p);
}

/* Reads the MAC header at s->off and moves behind it. */
static __always_inline __u64 nt_ethernet(struct nt_span *s, __u64 *proto, struct nt_pkt *p)
{
	struct nt_ethhdr eth;
	__u64 why = nt_header(s, &eth, sizeof(eth));

	if (why)
		return why;
	__builtin_memcpy(p->dmac, eth.dst, sizeof(eth.dst));
	__builtin_memcpy(p->smac, eth.src, sizeof(eth.src));
	p->flags |= NT_PKT_L2;
	*proto = bpf_ntohs(eth.proto);
	if (*proto < NT_ETH_MIN_TYPE)
		*proto = NT_ETH_LLC;
	s->off += sizeof(eth);
	return 0;
}

/* EtherType by the version nibble; 0 when it is of neither IP version or cannot be read. */
static __always_inline __u64 nt_guess(const struct nt_skb *m, __u64 off)
{
	__u8 first = 0;

	if (off >= m->linear || bpf_probe_read_kernel(&first, 1, m->head + off))
		return 0;
	first >>= 4;
	return first == 4 ? NT_ETH_IPV4 : first == 6 ? NT_ETH_IPV6 : 0;
}

/*
 * EtherType of what is at the network offset, 0 if the offset makes no sense. The protocol is 0
 * before __ip_local_out(); with a tag in the data it names the tag.
 */
static __always_inline __u64 nt_network_proto(const struct nt_skb *m)
{
	const bool ip = m->protocol == NT_ETH_IPV4 || m->protocol == NT_ETH_IPV6;
	__u64 guess;

	if (!m->network || m->network >= m->end)
		return 0;
	if (!ip && m->protocol && !nt_is_vlan(m->protocol))
		return m->protocol;
	guess = nt_guess(m, m->network);
	return ip && guess != m->protocol ? 0 : guess;
}

/* Parses an skb whose fields are already here. Returns 0, or -1 when memory was not readable. */
static __always_inline int nt_parse_at(const struct nt_skb *m, const int where, struct nt_pkt *p)
{
	const int at = where & NT_AT_MASK;
	struct nt_span s = { .head = m->head, .linear = m->linear, .end = m->end };
	bool mac = m->mac != NT_MAC_UNSET;
	/* The MAC header leads to L3: always, or because a tag lies between the two. */
	bool lead = at == NT_AT_ETH || (at != NT_AT_DATA && mac && nt_is_vlan(m->protocol));
	__u64 off = at == NT_AT_NET ? m->network : m->data;
	__u64 proto = m->protocol, found, why;

	NT_OPAQUE(p);
	nt_pkt_init(p, m->zero);
	if (m->vlan.proto) {
		nt_set_vlan(p, m->vlan.proto, m->vlan.tci);
		p->flags = NT_PKT_VLAN_ACC;
	}
	if (at == NT_AT_NET && !lead && (!proto || nt_is_vlan(proto))) {
		found = nt_guess(m, off);
		if (found)
			proto = found;
	}
	if (at == NT_AT_ANY && !lead) {
		found = nt_network_proto(m);
		if (found) {
			proto = found;
			off = m->network;
		} else {
			lead = mac;
		}
	}
	s.off = at == NT_AT_ETH ? m->data : m->mac;
	/* Right before L3, or a tag or two before: any other MAC header is an old one. */
	if (!lead && ((where & NT_NO_MAC) || off - s.off - sizeof(struct nt_ethhdr) > 8))
		mac = false;
	if (lead || mac) {
		why = nt_ethernet(&s, &found, p);
		p->flags |= why;
		if (why)
			return nt_parsed(p);
	}
	if (lead)
		proto = found;
	else
		s.off = off;
	nt_parse_rest(&s, proto, where, p);
	return nt_parsed(p);
}

/* Parses an skb; `where` is a constant. Returns 0, or -1 when memory could not be read. */
static __always_inline int nt_parse_skb(struct sk_buff *skb, const int where, struct nt_pkt *p)
{
	struct nt_skb m;

	if (nt_skb_load(skb, where, &m))
		return -1;
	return nt_parse_at(&m, where, p);
}

#endif
