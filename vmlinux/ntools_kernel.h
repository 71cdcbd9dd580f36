/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ntools_kernel.h - the kernel types the BPF programs read, and no other
 *
 * Kept by hand. Every record is relocated at load time (preserve_access_index), so order, padding
 * and missing members do not matter; names and widths do. tests/object/test_header.py compares
 * both with the BTF of each supported kernel.
 *
 * A comment at the end of a line names the kernels that have the member (or, behind the opening
 * brace, the record): a range of versions, as "5.10-6.1" or "6.2-", or "module" and the name of the
 * module whose BTF it is in. The checker reads it.
 * A name ending in ___something is a flavour: the same kernel type as some kernels have it.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;

typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;

typedef __u16 __le16;
typedef __u32 __le32;
typedef __u64 __le64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;

typedef unsigned long size_t;
typedef long ssize_t;

typedef _Bool bool;
enum {
	false = 0,
	true = 1,
};

/* BPF interface to user space: stable numbers, only those in use. */

enum bpf_map_type {
	BPF_MAP_TYPE_UNSPEC = 0,
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERF_EVENT_ARRAY = 4,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LRU_PERCPU_HASH = 10,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_RINGBUF = 27,
};

/* Flags of a map. */
enum {
	BPF_F_NO_PREALLOC = 1U << 0,
	BPF_F_NO_COMMON_LRU = 1U << 1,
};

/* Flags of bpf_map_update_elem(). */
enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_EXIST = 2,
};

/* Flags of bpf_get_stack() and bpf_get_stackid(). */
enum {
	BPF_F_SKIP_FIELD_MASK = 0xffULL,
	BPF_F_USER_STACK = 1ULL << 8,
	BPF_F_FAST_STACK_CMP = 1ULL << 9,
	BPF_F_REUSE_STACKID = 1ULL << 10,
};

/* Flags of bpf_perf_event_output(). */
enum {
	BPF_F_INDEX_MASK = 0xffffffffULL,
	BPF_F_CURRENT_CPU = BPF_F_INDEX_MASK,
};

/* Flags of the ring buffer helpers, then the queries of bpf_ringbuf_query(). */
enum {
	BPF_RB_NO_WAKEUP = 1ULL << 0,
	BPF_RB_FORCE_WAKEUP = 1ULL << 1,
};

enum {
	BPF_RB_AVAIL_DATA = 0,
	BPF_RB_RING_SIZE = 1,
	BPF_RB_CONS_POS = 2,
	BPF_RB_PROD_POS = 3,
};

#ifndef BPF_NO_PRESERVE_ACCESS_INDEX
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
#endif

/* Registers, under the names bpf_tracing.h uses for each architecture. */

#ifdef __TARGET_ARCH_x86
struct pt_regs {
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long bp;
	unsigned long ax;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long ip;
	unsigned long sp;
};
#endif

#ifdef __TARGET_ARCH_arm64
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
#endif

/*
 * Only its presence is asked: kernels without it (before 5.17) give no reason. An enum must have a
 * member; the reasons themselves are named by user space, their numbers change.
 */
enum skb_drop_reason { /* 5.17- */
	NT_ANY_DROP_REASON,
};

/* Only its presence is asked: kernels without it get a perf buffer. */
struct bpf_ringbuf { /* 5.8- */
	u64 mask;
};

typedef struct {
	s64 counter;
} atomic64_t;

typedef struct {
	unsigned int val;
} kuid_t;

/* Namespaces and devices */

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	char name[16];
	struct netdev_queue *_tx;
	int ifindex;
	unsigned int mtu;
	possible_net_t nd_net;
};

/* Tasks */

struct thread_info {
	u32 cpu; /* 5.16- */
};

struct task_struct {
	struct thread_info thread_info;
	unsigned int __state; /* 5.14- */
	unsigned int flags;
	int prio;
	int pid;
	char comm[16];
};

struct task_struct___v5_13 {
	long state; /* -5.13 */
};

struct task_struct___v5_15 {
	unsigned int cpu; /* -5.15 */
};

/* Queueing disciplines */

struct Qdisc_ops {
	char id[16];
};

struct qdisc_skb_head {
	__u32 qlen;
};

struct netdev_queue {
	struct net_device *dev;
	struct Qdisc *qdisc;
};

struct Qdisc {
	unsigned int flags;
	const struct Qdisc_ops *ops;
	u32 handle;
	u32 parent;
	struct netdev_queue *dev_queue;
	struct qdisc_skb_head q;
};

/* Sockets */

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

struct sock {
	struct sock_common __sk_common;
	u16 sk_protocol; /* 5.6- */
	kuid_t sk_uid;
};

struct msghdr {
	void *msg_control;
};

/* Packets */

/* On 64-bit machines tail and end are offsets from head. */
typedef unsigned int sk_buff_data_t;

struct sk_buff {
	struct sk_buff *next;
	struct net_device *dev;
	struct sock *sk;
	char cb[48];
	unsigned int len;
	unsigned int data_len;
	__u16 queue_mapping;
	__u8 pkt_type : 3;
	int skb_iif;
	__u32 hash;
	__u32 mark;
	u32 vlan_all; /* 6.2- */
	__be16 vlan_proto;
	__u16 vlan_tci;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	__u16 mac_header;
	sk_buff_data_t tail;
	sk_buff_data_t end;
	unsigned char *head;
	unsigned char *data;
	unsigned int truesize;
};

struct sk_buff___v6_1 {
	__u8 vlan_present : 1; /* 5.0-6.1 */
};

struct skb_shared_info {
	unsigned short gso_size;
	unsigned short gso_segs;
	unsigned int gso_type;
};

/* Only asked which members there are: the arguments of the tracepoint kfree_skb. */
struct trace_event_raw_kfree_skb {
	enum skb_drop_reason reason; /* 5.17- */
	void *rx_sk; /* 6.11- */
};

/* The first words of skb->cb on the transmit side of TCP. */
struct tcp_skb_cb {
	__u32 seq;
	__u32 end_seq;
};

/* Open vSwitch: module types, absent from the BTF of 5.10 */

struct datapath;

struct vport { /* module openvswitch */
	struct net_device *dev;
	struct datapath *dp;
	u16 port_no;
};

struct dp_upcall_info { /* module openvswitch */
	u32 portid;
	u8 cmd;
};

#ifndef BPF_NO_PRESERVE_ACCESS_INDEX
#pragma clang attribute pop
#endif

#endif /* __VMLINUX_H__ */
