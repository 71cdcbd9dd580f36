/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_wire - headers as they are in a packet
 *
 * Laid out here because kernel types would be relocated, and these never change.
 */
#ifndef NT_WIRE_H
#define NT_WIRE_H

/* Below it, what looks like an EtherType is the length of an 802.3 frame. */
#define NT_ETH_MIN_TYPE 0x600

struct nt_ethhdr {
	__u8 dst[6];
	__u8 src[6];
	__be16 proto;
};

struct nt_vlanhdr {
	__be16 tci;
	__be16 proto;
};

struct nt_arphdr {
	__be32 types;	/* of hardware and protocol addresses */
	__be16 lengths; /* of these */
	__be16 op;
	__u8 sha[6];
	__u8 spa[4];
	__u8 tha[6];
	__u8 tpa[4];
};

/* Ethernet and IPv4 addresses: nothing else is in use. */
#define NT_ARP_TYPES 0x00010800
#define NT_ARP_LENGTHS 0x0604

struct nt_iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 src;
	__be32 dst;
};

struct nt_ipv6hdr {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 next;
	__u8 hop_limit;
	__u64 src[2];
	__u64 dst[2];
};

/* The first 8 bytes of every extension header; frag_* as in the fragment header. */
struct nt_ipv6ext {
	__u8 next;
	__u8 len;
	__be16 frag_off;
	__be32 frag_id;
};

#define NT_NEXT_ROUTING 43
#define NT_NEXT_FRAGMENT 44
#define NT_NEXT_AUTH 51
#define NT_NEXT_DEST_OPTS 60
#define NT_NEXT_DATA 0x100
#define NT_EXT_SET                                                                                 \
	(1ULL | 1ULL << NT_NEXT_ROUTING | 1ULL << NT_NEXT_FRAGMENT | 1ULL << NT_NEXT_AUTH |        \
	 1ULL << NT_NEXT_DEST_OPTS)

struct nt_tcphdr {
	__be16 src_port;
	__be16 dst_port;
	__be32 seq;
	__be32 ack;
	__u8 off;
	__u8 flags;
	__be16 window;
	__be16 check;
	__be16 urgent;
};

/* Ports of UDP and its relatives; type and code of ICMP with the two words of an echo. */
struct nt_l4hdr {
	union {
		__be16 src_port;
		struct {
			__u8 type;
			__u8 code;
		};
	};
	__be16 dst_port;
	__be16 id;
	__be16 seq;
};

#endif
