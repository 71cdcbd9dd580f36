/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_qdisc - vocabulary and state of the qdisc engine: rows, packets under way, counters
 */
#ifndef NT_QDISC_H
#define NT_QDISC_H

#include <bpf/bpf_helpers.h>

#include "nt_channel.h"
#include "nt_filter.h"
#include "nt_guard.h"
#include "nt_hist.h"
#include "nt_map.h"
#include "nt_types.h"

enum nt_qdisc_size {
	NT_QDISC_BULK = 64,    /* packets looked at in one bulk */
	NT_QDISC_LENGTHS = 20, /* slots of lengths: 0, then powers of two */
};

enum nt_qdisc_flag {
	NT_QDISC_DETAILS = 1 << 0,
	NT_QDISC_ORDER = 1 << 1,
	NT_QDISC_EXPLAIN = 1 << 2,
	NT_QDISC_BY_DEVICE = 1 << 3, /* chosen_devices is in use */
	NT_QDISC_BY_QUEUE = 1 << 4,
};

/* Why a packet is not followed; a criterion of the filter at NT_EXPLAIN_FILTER + enum nt_reject. */
enum nt_explain {
	NT_EXPLAIN_NETNS,
	NT_EXPLAIN_INTERFACE,
	NT_EXPLAIN_QUEUE,
	NT_EXPLAIN_FILTER,
	NT_EXPLAIN_MAX = NT_EXPLAIN_FILTER + NT_REJECT_MAX,
};

/* Where a packet is: waiting in the queue, or taken from it and not yet with the driver. */
enum nt_qdisc_state {
	NT_QDISC_WAITS,
	NT_QDISC_TAKEN,
};

/*
 * What is counted of a queue. A packet that waits ends as one of DEQUEUED to STALE, one that was
 * taken (DEQUEUED, a CHILD that was in the queue, or REFUSED by the driver) as one of SENT to
 * TAKEN_STALE. What is still there is in the map.
 */
enum nt_qdisc_count {
	NT_COUNT_QUEUED,
	NT_COUNT_DEQUEUED,
	NT_COUNT_BYPASSED, /* given to the driver without having been in the queue */
	NT_COUNT_DROPPED,
	NT_COUNT_SPLIT,	   /* consumed, and its segments go on in its place */
	NT_COUNT_CONSUMED, /* freed as used, but neither sent nor split */
	NT_COUNT_STALE,	   /* its skb is another packet now: the end was not seen */
	NT_COUNT_TAKEN,
	NT_COUNT_SENT,
	NT_COUNT_TAKEN_DROPPED,
	NT_COUNT_TAKEN_SPLIT,
	NT_COUNT_TAKEN_CONSUMED,
	NT_COUNT_TAKEN_STALE,
	NT_COUNT_REQUEUED, /* taken again: the driver's queue had been stopped, or it refused */
	NT_COUNT_REFUSED,  /* the driver said busy */
	NT_COUNT_SEGMENTS, /* of what was split */
	NT_COUNT_CHILDREN, /* segments that were seen on */
	NT_COUNT_REORDERED,
	NT_COUNT_BULKS,	     /* dequeues with a packet we follow */
	NT_COUNT_BULK_SUM,   /* packets in them */
	NT_COUNT_BYTES,	     /* of what was queued */
	NT_COUNT_QLEN_KNOWN, /* packets whose queue told its length */
	NT_COUNT_QLEN_SUM,
	NT_COUNT_MAX,
};

enum nt_qdisc_time {
	NT_TIME_WAIT,	/* dev.queue to qd.out */
	NT_TIME_DRIVER, /* qd.out to dev.xmit */
	NT_TIME_RETRY,	/* refused by the driver, until it was asked again */
};

struct nt_qdisc_key {
	__u32 netns;
	__u32 ifindex;
	__u32 queue;
	__u32 handle; /* of the root qdisc of this transmit queue */
};

struct nt_qdisc_row {
	char kind[16];
	__u32 parent;
	__u32 flags;
	__u32 qlen_max;
	__u32 bulk_max;
	__u64 counts[NT_COUNT_MAX];
	__u32 qlens[NT_QDISC_LENGTHS];
	__u32 bulks[NT_QDISC_LENGTHS];
};

#define NT_QLEN_UNKNOWN 0xffffffff

/* One packet between dev.queue and dev.xmit, and, at its end, the event. */
struct nt_queued {
	__u64 last_ns;
	struct nt_tuple tuple;
	struct nt_qdisc_key row;
	__u64 dev; /* the device itself: compared only */
	__u64 number; /* with the tuple, the same number for the same packet */
	__u64 start_ns; /* 0: not seen to enter */
	__u64 taken_ns; /* 0: not seen to be taken */
	__u64 location; /* where it was freed */
	__u32 reason;
	__u32 len_bytes;
	__u32 qlen; /* at its arrival */
	__u32 ip_id;
	__u32 seq;
	__u32 segs;
	__u32 cpu;
	__u32 requeues;
	__u32 position; /* in its bulk, from 0 */
	__u32 bulk;
	__u16 vlan_id;
	__u8 state; /* enum nt_qdisc_state */
	__u8 end;   /* enum nt_qdisc_count */
	__u8 child; /* a segment of a packet that was split */
	__u8 refused;
	__u8 late; /* a later one of its flow was before it */
	__u8 pad;
};

struct nt_qdisc_time_key {
	struct nt_qdisc_key row;
	__u64 time; /* enum nt_qdisc_time */
};

struct nt_qdisc_drop_key {
	struct nt_qdisc_key row;
	__u64 location;
	__u32 reason;
	__u32 state;
};

struct nt_qdisc_order_key {
	struct nt_qdisc_key row;
	__u64 flow;
};

struct nt_qdisc_device {
	__u32 netns;
	__u32 ifindex;
};

struct nt_qdisc_cfg {
	struct nt_filter filter;
	struct nt_guard guard;
	__u64 threshold_ns; /* shortest wait that is shown */
	__u32 enabled;
	__u32 entry_open;
	__u32 flags; /* enum nt_qdisc_flag */
	__u32 netns; /* inode number, 0 = all */
	__u32 queue;
	__u32 epoch;
};

struct nt_manifest {
	struct nt_qdisc_cfg cfg;
	struct nt_queued events;
	enum nt_loss loss;
	enum nt_reject reject;
	enum nt_pkt_flag pkt_flag;
	enum nt_filter_use filter_use;
	enum nt_filter_table filter_table;
	enum nt_filter_prefix filter_prefix;
	enum nt_guard_flag guard_flag;
	enum nt_guard_size guard_size;
	enum nt_qdisc_flag flag;
	enum nt_explain explain;
	enum nt_qdisc_state state;
	enum nt_qdisc_count count;
	enum nt_qdisc_time time;
	enum nt_qdisc_size size;
};
const struct nt_manifest nt_manifest SEC(".ntools") = {};

NT_MAP(nt_cfg, ARRAY, 1, __u32, struct nt_qdisc_cfg);

NT_CHANNEL(events, struct nt_queued, 4 << 20);

NT_MAP(queued, HASH, 16384, __u64, struct nt_queued);

NT_MAP(queues, HASH, 1024, struct nt_qdisc_key, struct nt_qdisc_row);

NT_MAP(queue_times, PERCPU_HASH, 512, struct nt_qdisc_time_key, struct nt_hist);

NT_MAP(queue_drops, HASH, 1024, struct nt_qdisc_drop_key, __u64);

NT_MAP(orders, HASH, 8192, struct nt_qdisc_order_key, __u64);

NT_MAP(chosen_devices, HASH, 64, struct nt_qdisc_device, __u8);

NT_MAP(rejects, PERCPU_ARRAY, NT_EXPLAIN_MAX, __u32, __u64);

NT_MAP(passed, PERCPU_ARRAY, 1, __u32, __u64);

/* Segments of packets that were split: expected, and seen. */
enum nt_qdisc_split {
	NT_SPLIT_EXPECTED,
	NT_SPLIT_SEEN,
	NT_SPLIT_MAX,
};
NT_MAP(splits, ARRAY, NT_SPLIT_MAX, __u32, __u64);

/* Too large for the stack. Both are used with softirqs off, and hard interrupts send nothing. */
NT_MAP(parsed, PERCPU_ARRAY, 1, __u32, struct nt_pkt);
NT_MAP(fresh, PERCPU_ARRAY, 1, __u32, struct nt_queued);

NT_MAP(blank_queue, ARRAY, 1, __u32, struct nt_qdisc_row);
NT_MAP(blank_time, ARRAY, 1, __u32, struct nt_hist);

#endif
