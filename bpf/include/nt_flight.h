/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_flight - vocabulary and state of the flight engine: stages, roles, ends, maps
 */
#ifndef NT_FLIGHT_H
#define NT_FLIGHT_H

#include <bpf/bpf_helpers.h>

#include "nt_channel.h"
#include "nt_filter.h"
#include "nt_guard.h"
#include "nt_hist.h"
#include "nt_identity.h"
#include "nt_map.h"
#include "nt_types.h"

#ifndef NT_DETAIL
#define NT_DETAIL 0
#endif
/* Packets between two sides of the host instead of those of a VM: echoes, or flows. */
#define NT_PATH_ECHO 1
#define NT_PATH_FLOW 2
#ifndef NT_PATH
#define NT_PATH 0
#endif
/* Of flows: datagrams in fragments instead of sequence numbers. */
#ifndef NT_GROUPS
#define NT_GROUPS 0
#endif

#define NT_FLIGHTS (NT_DETAIL ? 16384 : 65536)
/* Stages kept of each packet; of a path, where it came in and was seen last says all. */
#define NT_HOPS (NT_DETAIL && !NT_PATH ? 24 : 0)

/* Sizes user space has to know too. */
enum nt_flight_size {
	NT_DEVICE_BITS = 1024,
	NT_ECHO_ANY = 0x10000,
};

enum nt_stage {
	NT_STAGE_NONE,
	NT_STAGE_DEV_RX,
	NT_STAGE_DEV_BKLG,
	NT_STAGE_DEV_QUEUE,
	NT_STAGE_DEV_XMIT,
	NT_STAGE_OVS_IN,
	NT_STAGE_OVS_LOOKUP,
	NT_STAGE_OVS_MISS,
	NT_STAGE_OVS_UPQ,
	NT_STAGE_OVS_BACK,
	NT_STAGE_OVS_EXEC,
	NT_STAGE_OVS_SEND,
	NT_STAGE_BR_FWD,
	NT_STAGE_BR_UP,
	NT_STAGE_VM_KICK,
	NT_STAGE_VM_XMIT,
	NT_STAGE_VM_TAKE,
	NT_STAGE_VM_COPIED,
	NT_STAGE_TOTAL, /* from the entry stage to the end */
};

/* Of a VM's packets, rx is what the host receives from the VM. */
enum nt_direction {
	NT_DIRECTION_RX,
	NT_DIRECTION_TX,
	NT_DIRECTION_MAX,
	/* Of a path. */
	NT_DIRECTION_FORWARD = NT_DIRECTION_RX,
	NT_DIRECTION_REPLY = NT_DIRECTION_TX,
};

/* What a device is to the VM interfaces; bits. */
enum nt_role {
	NT_ROLE_VNET = 1 << 0,	 /* a chosen VM interface */
	NT_ROLE_PORT = 1 << 1,	 /* packets to the VM come in here */
	NT_ROLE_HOST = 1 << 2,	 /* the host's own side of the switch: bridge, internal port */
	NT_ROLE_PASS = 1 << 3,	 /* not an end: another device of this host sends the packet on */
	NT_ROLE_UPLINK = 1 << 4, /* the wire side */
	NT_ROLE_SIDE_A = 1 << 5, /* where packets of the forward direction come in */
	NT_ROLE_SIDE_B = 1 << 6, /* where they leave */
	NT_ROLE_STACK = 1 << 7,	 /* the host's own side of the switch: what it sends comes in */
};

enum nt_flight_flag {
	NT_FLIGHT_MULTICAST = 1 << 0,	/* follow multicast to the VM too */
	NT_FLIGHT_UNTIL_TAP = 1 << 1,	/* to the VM: end at the tap, not in guest memory */
	NT_FLIGHT_ONLY_UPLINK = 1 << 2, /* from the VM: only an uplink is an end */
	NT_FLIGHT_EXPLAIN = 1 << 3,	/* count rejections */
	NT_FLIGHT_ECHO = 1 << 4,	/* requests forward, their replies back; nothing else */
};

/* How flights ended, as far as the kernel side knows; the sweeper adds the others. */
enum nt_end {
	NT_END_STARTED, /* not an end: their sum must equal it */
	NT_END_COMPLETED,
	NT_END_DROPPED,	   /* freed, and the buffer carries another packet */
	NT_END_STALE,	   /* the buffer carries another packet, the end was not seen */
	NT_END_MAX,
};

/* Why a packet at an entry stage was not followed; then the steps of enum nt_reject. */
enum nt_explain {
	NT_EXPLAIN_DEVICE,    /* not one of the devices */
	NT_EXPLAIN_DIRECTION, /* a direction that was not asked for */
	NT_EXPLAIN_FORWARDED, /* it came in elsewhere, where it was rejected */
	NT_EXPLAIN_MULTICAST,
	NT_EXPLAIN_MAC, /* not addressed to the VM */
	NT_EXPLAIN_PORT_VLAN,
	NT_EXPLAIN_ECHO,     /* no echo, or another identifier */
	NT_EXPLAIN_UNPAIRED,  /* an echo whose stage before was not seen */
	NT_EXPLAIN_DUPLICATE, /* an echo that was at this stage before */
	NT_EXPLAIN_FILTER, /* + enum nt_reject */
	NT_EXPLAIN_MAX = NT_EXPLAIN_FILTER + NT_REJECT_MAX,
};

struct nt_hop {
	__u64 ts_ns;
	__u32 ifindex;
	__u16 cpu;
	__u8 stage;
	__u8 hits;
};

struct nt_flight {
	__u64 start_ns;
	__u64 last_ns;
	__u64 skb; /* as last seen */
	__u64 free_ns;
	__u64 free_location;
	struct nt_tuple tuple;
	struct nt_print print;
	__u32 free_reason;
	__u32 vm_ifindex;
	__u32 entry_ifindex;
	__u32 last_ifindex; /* of the last stage that has a device */
	__u32 len_bytes;
	__u32 ip_id;
	__u32 seq; /* TCP sequence number, ICMP echo sequence */
	__u16 vlan_id;
	__u16 segs;
	__u8 direction;
	__u8 entry_stage;
	__u8 last_stage;
	__u8 end;	/* enum nt_end, 0 while under way */
	__u32 hop_count; /* also of hops that found no place */
#if NT_PATH == NT_PATH_ECHO
	__u64 request_ns;    /* of an echo reply: when its request came in */
	struct nt_tuple out; /* as it left: translated, maybe */
#endif
#if NT_PATH == NT_PATH_FLOW
	__u32 payload; /* bytes behind the TCP or UDP header */
	__u32 end_seq; /* of TCP: behind payload, SYN and FIN */
#endif
#if NT_DETAIL && !NT_PATH
	struct nt_hop hops[NT_HOPS];
#endif
};

struct nt_pair_key {
	__u8 direction;
	__u8 from;
	__u8 to;
	__u8 reserved;
	__u32 ifindex; /* device of `to`, 0 if it has none */
};

struct nt_device_key {
	__u32 netns;
	__u32 ifindex;
};

struct nt_device {
	__u32 role;
	__u16 vlan_id; /* only packets of this VLAN, NT_VLAN_NONE: any */
	__u16 reserved;
};

/* The address of a guest; with `loose` its first byte is not known. */
struct nt_mac_key {
	__u8 mac[6];
	__u16 loose;
};

/* An echo under way; key: what its reply looks like, at both ends of a translation. */
struct nt_echo_key {
	struct nt_tuple reply; /* without type and code */
	__u64 seq;
};

/* When its stages were reached, 0: not yet. */
struct nt_echo {
	__u64 request_ns; /* 0: it was only seen when it left */
	__u64 left_ns;
	__u64 replied_ns;
	__u64 head;	    /* of what came in last */
	__u32 rx_ifindex; /* where that was */
	__u32 reserved;
};

#define NT_WAY_LOST 4

/* One direction of a flow. A unit is one buffer, of several segments maybe. */
struct nt_way {
	__u64 units_in;
	__u64 segs_in;
	__u64 bytes_in; /* payload, as all bytes here */
	__u64 units_out;
	__u64 segs_out;
	__u64 bytes_out;
	__u64 split_out; /* of units_out: left in another buffer than it came in */
	__u64 syn;
	__u64 fin;
	__u64 rst;
	__u64 retrans_after;  /* came again after it had left */
	__u64 retrans_before; /* came again without having left */
	__u64 dup_ack;
	__u64 last_ns;
	__u32 top_in;	/* highest end_seq that came in */
	__u32 top_out;	/* that left */
	__u32 last_ack;
	__u32 known;	/* enum nt_way_known, or-ed */
	__u32 lost[NT_WAY_LOST]; /* end_seq of the last ones that were freed inside */
	__u32 lost_count;
	__u32 reserved;
};

enum nt_way_known {
	NT_WAY_IN = 1 << 0,  /* top_in */
	NT_WAY_OUT = 1 << 1, /* top_out */
	NT_WAY_ACK = 1 << 2, /* last_ack */
};

/* The fragments of a datagram. */
struct nt_group_key {
	__u8 src[16];
	__u8 dst[16];
	__u32 id;
	__u8 family;
	__u8 protocol;
	__u16 reserved;
};

struct nt_group {
	__u64 first_ns;
	__u64 last_ns;
	__u32 bytes_in;	 /* behind the IP headers, as all bytes here */
	__u32 bytes_out;
	__u32 total; /* of the whole datagram, 0: its last fragment was not seen */
	__u32 frags_in;
	__u32 frags_out;
	__u16 src_port;
	__u16 dst_port;
	__u32 direction;
	__u32 flags; /* enum nt_group_flag, or-ed */
	__u32 free_reason;
	__u64 free_ns; /* a fragment of it was freed as a drop */
	__u64 free_location;
};

enum nt_group_flag {
	NT_GROUP_PORTS = 1 << 0,   /* the first fragment came in */
	NT_GROUP_REFUSED = 1 << 1, /* by the filter */
};

/* By addresses and ports of the forward direction. */
struct nt_path_flow {
	struct nt_way way[NT_DIRECTION_MAX];
};

struct nt_flight_cfg {
	struct nt_filter filter;
	struct nt_guard guard;
	__u64 threshold_ns; /* emit packets whose total is at least this */
	__u32 enabled;
	__u32 entry_open; /* new packets are taken */
	__u32 directions; /* bit per direction */
	__u32 flags;
	__u64 echo_ns; /* longest time between the stages of an echo */
	__u32 epoch;
	__u32 echo_id; /* NT_ECHO_ANY: all */
	/* By interface index, modulo their count: a device whose bit is 0 is not in `devices`. */
	__u8 device_bits[NT_DEVICE_BITS / 8];
};

struct nt_manifest {
	struct nt_flight_cfg cfg;
	struct nt_flight flight;
	enum nt_stage stage;
	enum nt_direction direction;
	enum nt_role role;
	enum nt_flight_flag flag;
	enum nt_end end;
	enum nt_explain explain;
	enum nt_reject reject;
	enum nt_loss loss;
	enum nt_filter_use filter_use;
	enum nt_filter_table filter_table;
	enum nt_filter_prefix filter_prefix;
	enum nt_guard_flag guard_flag;
	enum nt_guard_size guard_size;
	enum nt_flight_size size;
#if NT_PATH == NT_PATH_FLOW
	enum nt_way_known way_known;
#endif
#if NT_GROUPS
	enum nt_group_flag group_flag;
#endif
#if NT_DETAIL
	struct nt_flight events;
#endif
};
const struct nt_manifest nt_manifest SEC(".ntools") = {};

NT_MAP(nt_cfg, ARRAY, 1, __u32, struct nt_flight_cfg);
NT_MAP(flights, HASH, NT_FLIGHTS, __u64, struct nt_flight);
/* Flights whose buffer went to another packet, until user space fetches them; key: start. */
NT_MAP(graves, HASH, 4096, __u64, struct nt_flight);
NT_MAP(ends, PERCPU_ARRAY, NT_DIRECTION_MAX *NT_END_MAX, __u32, __u64);
NT_MAP(rejects, PERCPU_ARRAY, NT_EXPLAIN_MAX, __u32, __u64);
NT_MAP(devices, HASH, 1024, struct nt_device_key, struct nt_device);
/* Too large for the stack. Entry stages run with softirqs off: one at a time per CPU. */
NT_MAP(blank, PERCPU_ARRAY, 1, __u32, struct nt_flight);
/*
 * Not on the stack either: there the verifier follows every value of every field, here none
 * (50,000 steps less). Slot 0 belongs to the entry stages, slot 1 to ovs.back.
 */
NT_MAP(parsed, PERCPU_ARRAY, 2, __u32, struct nt_pkt);
#if NT_PATH == NT_PATH_FLOW
NT_MAP(flows, HASH, 8192, struct nt_tuple, struct nt_path_flow);
NT_MAP(aliases, LRU_HASH, NT_FLIGHTS, __u64, __u64); /* nt_key_of() -> head */
#if NT_GROUPS
NT_MAP(groups, HASH, 16384, struct nt_group_key, struct nt_group);
NT_MAP(group_key, PERCPU_ARRAY, 1, __u32, struct nt_group_key); /* no room on the stack */
NT_MAP(blank_group, ARRAY, 1, __u32, struct nt_group);
#endif
NT_MAP(times, PERCPU_ARRAY, NT_DIRECTION_MAX, __u32, struct nt_hist);
NT_MAP(flow_key, PERCPU_ARRAY, 1, __u32, struct nt_tuple); /* no room on the stack */
NT_MAP(blank_flow, ARRAY, 1, __u32, struct nt_path_flow);
#elif NT_PATH == NT_PATH_ECHO
NT_MAP(echoes, HASH, 16384, struct nt_echo_key, struct nt_echo);
NT_MAP(echo_key, PERCPU_ARRAY, 1, __u32, struct nt_echo_key); /* no room on the stack */
#else
/* Flights in user space with an upcall whose buffer was freed and went to another packet. */
NT_MAP(parked, HASH, 4096, __u64, struct nt_flight);
NT_MAP(aliases, LRU_HASH, 16384, __u64, __u64);
NT_MAP(pairs, PERCPU_HASH, 256, struct nt_pair_key, struct nt_hist);
NT_MAP(blank_hist, ARRAY, 1, __u32, struct nt_hist);
NT_MAP(macs, HASH, 128, struct nt_mac_key, __u32);
NT_MAP(kicks, LRU_HASH, 4096, __u32, __u64);
#endif
#if NT_DETAIL
NT_CHANNEL(events, struct nt_flight, 8 << 20);
#endif

#endif
