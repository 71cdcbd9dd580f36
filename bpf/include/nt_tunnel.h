/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_tunnel - the packet inside a tunnel
 *
 *	struct nt_skb m;
 *
 *	if (!nt_skb_load(skb, where, &m) && !nt_parse_at(&m, where, &pkt))
 *		nt_parse_inner(&m, &pkt);
 *
 * One level of VXLAN (UDP 4789, 8472), Geneve (UDP 6081) or GRE. The second parser costs about
 * 1000 instructions: only for programs that are asked to look into tunnels.
 */
#ifndef NT_TUNNEL_H
#define NT_TUNNEL_H

#include "nt_parse.h"

#define NT_PORT_GENEVE 6081
#define NT_PORT_VXLAN 4789
#define NT_PORT_VXLAN_OLD 8472

/* The first 8 bytes of VXLAN, Geneve and GRE; names are those of GRE. */
struct nt_tunhdr {
	__u8 flags;
	__u8 version;
	__be16 proto;
	__be32 word;
};

#define NT_GRE_CHECKSUM 0x80
#define NT_GRE_ROUTING 0x40
#define NT_GRE_KEY 0x20
#define NT_GRE_SEQUENCE 0x10
#define NT_GRE_VERSION 0x07
#define NT_GENEVE_OPTIONS 0x3f
#define NT_VXLAN_VNI 0x08

/*
 * Finds what is inside the VXLAN (UDP 4789, 8472), Geneve (6081) or GRE tunnel whose outer
 * headers are in *p: s->off is there, *proto its EtherType.
 */
static __always_inline __u64 nt_tunnel(struct nt_span *s, const struct nt_pkt *p, __u64 *proto,
				       __u32 *id)
{
	const __u64 port = p->tuple.dst_port;
	const bool gre = p->tuple.protocol == NT_IP_GRE;
	struct nt_tunhdr hdr;
	__u64 why;

	s->off += gre ? p->l4_off : p->payload_off;
	if (p->frag_off || !s->off)
		return NT_STOP;
	if (!gre && p->tuple.protocol != NT_IP_UDP)
		return NT_STOP;
	if (!gre && port != NT_PORT_VXLAN && port != NT_PORT_VXLAN_OLD && port != NT_PORT_GENEVE)
		return NT_STOP;
	why = nt_header(s, &hdr, sizeof(hdr));
	if (why)
		return why;
	*proto = bpf_ntohs(hdr.proto);
	if (gre) {
		if ((hdr.version & NT_GRE_VERSION) || (hdr.flags & NT_GRE_ROUTING))
			return NT_STOP;
		/* A word each, in this order, if present: checksum, key, sequence number. */
		s->off += 4;
		if (hdr.flags & NT_GRE_CHECKSUM)
			s->off += 4;
		if (hdr.flags & NT_GRE_KEY) {
			why = nt_header(s, &hdr.word, sizeof(hdr.word));
			if (why)
				return why;
			*id = bpf_ntohl(hdr.word);
			s->off += 4;
		}
		if (hdr.flags & NT_GRE_SEQUENCE)
			s->off += 4;
	} else {
		*id = bpf_ntohl(hdr.word) >> 8;
		s->off += sizeof(hdr);
		if (port == NT_PORT_GENEVE)
			s->off += (hdr.flags & NT_GENEVE_OPTIONS) * 4;
		else if (hdr.flags & NT_VXLAN_VNI)
			*proto = NT_ETH_TEB;
		else
			return NT_STOP;
	}
	return *proto == NT_ETH_TEB || *proto == NT_ETH_IPV4 || *proto == NT_ETH_IPV6 ? 0 : NT_STOP;
}

/*
 * Replaces *p, just parsed from this skb, by the packet inside its tunnel. Returns 1 if there is
 * one, 0 if not (then *p is as before; a tunnel header that is not linear adds
 * NT_PKT_TRUNCATED), -1 when memory could not be read.
 */
static __always_inline int nt_parse_inner(const struct nt_skb *m, struct nt_pkt *p)
{
	struct nt_span s = {
		.head = m->head, .off = m->zero, .linear = m->linear, .end = m->end
	};
	__u64 proto = 0, why;
	__u32 id = 0;

	NT_OPAQUE(p);
	why = nt_tunnel(&s, p, &proto, &id);
	if (why) {
		p->flags |= why;
		return nt_parsed(p);
	}
	nt_pkt_init(p, m->zero);
	p->tunnel_id = id;
	p->flags = NT_PKT_TUNNEL;
	if (proto == NT_ETH_TEB)
		why = nt_ethernet(&s, &proto, p);
	p->flags |= why;
	if (!why)
		nt_parse_rest(&s, proto, 0, p);
	return nt_parsed(p) ? -1 : 1;
}

#endif
