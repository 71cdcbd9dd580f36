/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_types - what is known of one packet
 *
 * Part of keys and records, so user space reads the same structs from BTF: fixed layout, no bit
 * fields, no holes. Numbers are in host byte order, addresses as they are on the wire.
 */
#ifndef NT_TYPES_H
#define NT_TYPES_H

#define NT_VLAN_NONE 0xffff

/* EtherTypes the parser looks into; NT_ETH_LLC is the kernel's name for a length field. */
#define NT_ETH_LLC 0x0004
#define NT_ETH_IPV4 0x0800
#define NT_ETH_ARP 0x0806
#define NT_ETH_TEB 0x6558 /* Ethernet inside a tunnel */
#define NT_ETH_RARP 0x8035
#define NT_ETH_VLAN 0x8100
#define NT_ETH_IPV6 0x86dd
#define NT_ETH_QINQ 0x88a8

#define NT_IP_ICMP 1
#define NT_IP_TCP 6
#define NT_IP_UDP 17
#define NT_IP_DCCP 33
#define NT_IP_GRE 47
#define NT_IP_ICMPV6 58
#define NT_IP_SCTP 132
#define NT_IP_UDPLITE 136

#define NT_TCP_FIN 0x01
#define NT_TCP_SYN 0x02
#define NT_TCP_RST 0x04
#define NT_TCP_PSH 0x08
#define NT_TCP_ACK 0x10

/*
 * Who talks to whom. An IPv4 address is in the first 4 bytes, the rest is zero. ICMP and ICMPv6
 * have no ports: src_port is type << 8 | code, dst_port the identifier of an echo, else 0; both
 * are 0 where the header was not read. ARP has family 0, the sender's protocol address in src and
 * the target's in dst.
 */
struct nt_tuple {
	__u8 src[16];
	__u8 dst[16];
	__u16 src_port;
	__u16 dst_port;
	__u16 eth_proto; /* behind all VLAN tags */
	__u8 family;	 /* 4, 6 or 0 */
	__u8 protocol;	 /* behind all IPv6 extension headers */
} __attribute__((aligned(8)));

/* How much of struct nt_pkt is known, and what is unusual. */
enum nt_pkt_flag {
	NT_PKT_L2 = 1 << 0,	   /* smac, dmac */
	NT_PKT_L3 = 1 << 1,	   /* addresses (IP or ARP) */
	NT_PKT_L4 = 1 << 2,	   /* ports */
	NT_PKT_ICMP = 1 << 3,	   /* icmp_type, icmp_code */
	NT_PKT_ECHO = 1 << 4,	   /* icmp_id, icmp_seq: echo request or reply */
	NT_PKT_PAYLOAD = 1 << 5,   /* payload */
	NT_PKT_FRAG = 1 << 6,	   /* part of a fragmented datagram */
	NT_PKT_MF = 1 << 7,	   /* more fragments follow */
	NT_PKT_VLAN_ACC = 1 << 8,  /* the outer tag was in the skb, not in the data */
	NT_PKT_TUNNEL = 1 << 9,	   /* everything here describes the packet inside a tunnel */
	NT_PKT_TRUNCATED = 1 << 10, /* a header is behind the linear part: not read */
	NT_PKT_BAD = 1 << 11,	   /* a header contradicts itself or the length */
	NT_PKT_DEEP = 1 << 12,	   /* more than 6 IPv6 extension headers: gave up */
	NT_PKT_FAULT = 1 << 13,	   /* memory could not be read */
};

/* One parsed packet. A field that was not read is 0, a VLAN id NT_VLAN_NONE. */
struct nt_pkt {
	struct nt_tuple tuple;
	__u8 dmac[6];
	__u16 vlan_id; /* outer tag */
	__u8 smac[6];
	__u16 inner_vlan_id;
	__u16 vlan_proto; /* of the outer tag; 0 = no tag */
	__u16 flags;	  /* enum nt_pkt_flag */
	__u32 ip_id;	  /* IPv4 identification or IPv6 fragment identification */
	__u32 seq;
	__u32 ack;
	__u16 window;	/* as in the header, not scaled */
	__u16 frag_off; /* bytes */
	__u16 icmp_id;
	__u16 icmp_seq;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 tcp_flags;
	__u8 ttl; /* or hop limit */
	__u16 arp_op;
	__u8 tos;	  /* or traffic class */
	__u8 tcp_hdr_len; /* bytes */
	__u32 total_len;  /* bytes from the L3 header on, without link padding where IP tells */
	__u32 payload_len; /* bytes behind the TCP, UDP or ICMP header, in this packet */
	__u64 payload; /* up to 8 bytes behind the UDP, ICMP or Ethernet header, as in memory */
	__u32 tunnel_id; /* VNI or GRE key the packet was found under */
	__u16 l3_off;	 /* from skb->head */
	__u16 l4_off;
	__u16 payload_off;
	__u8 vlan_pcp;
	__u8 inner_vlan_pcp;
	__u8 arp_sha[6];
	__u8 arp_tha[6];
};

#endif
