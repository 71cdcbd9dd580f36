/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_drop - vocabulary and state of the drop engine: sizes, steps, records, maps
 */
#ifndef NT_DROP_H
#define NT_DROP_H

#include <bpf/bpf_helpers.h>

#include "nt_channel.h"
#include "nt_filter.h"
#include "nt_guard.h"
#include "nt_map.h"
#include "nt_types.h"

/* Sizes user space has to know too. */
enum nt_drop_size {
	NT_DROP_FRAMES = 32,
	NT_DROP_HELPERS = 8,
	NT_DROP_LOCATIONS = 16,
	NT_DROP_CORE = 256,  /* slots for reasons of the core in drop_totals */
	NT_DROP_SUBSYS = 64, /* slots for those of each of 8 subsystems; then one for the rest */
	NT_DROP_REASONS = NT_DROP_CORE + 8 * NT_DROP_SUBSYS + 1,
};

enum nt_drop_mode {
	NT_DROP_EVENTS,
	NT_DROP_GROUPS,
};

/* What a row of the summary is told apart by. */
enum nt_drop_by {
	NT_BY_REASON = 1 << 0,
	NT_BY_LOCATION = 1 << 1,
	NT_BY_DEVICE = 1 << 2, /* with its namespace */
	NT_BY_NETNS = 1 << 3,
	NT_BY_FIVETUPLE = 1 << 4,
	NT_BY_PORT = 1 << 5, /* protocol and destination port */
	NT_BY_STACK = 1 << 6,
};

/* How the codes in drop_reasons are meant. */
enum nt_drop_reasons {
	NT_REASONS_ANY,
	NT_REASONS_ONLY,
	NT_REASONS_NOT,
};

/* What is known of a packet besides its headers; the names are those of model/reasons.py. */
enum nt_drop_fact {
	NT_FACT_OTHER_HOST = 1 << 0,
	NT_FACT_HAS_SOCKET = 1 << 1,
	NT_FACT_NO_PROTOCOL = 1 << 2,
	NT_FACT_NO_DEVICE = 1 << 3,
	NT_FACT_ECHO_REQUEST = 1 << 4,
	NT_FACT_ECHO_REPLY = 1 << 5,
	NT_FACT_SYN = 1 << 6,
	NT_FACT_TTL_EXPIRED = 1 << 7,
};

/*
 * Each drop ends at one of these or at a criterion of the packet filter, which is counted at
 * NT_STEP_FILTER + enum nt_reject, or was NT_LOSS_UNPARSED.
 */
enum nt_drop_step {
	NT_STEP_SEEN,
	NT_STEP_REASON,
	NT_STEP_LOCATION,
	NT_STEP_NETNS,
	NT_STEP_INTERFACE,
	NT_STEP_MATCHED,
	NT_STEP_FILTER,
	NT_STEP_MAX = NT_STEP_FILTER + NT_REJECT_MAX,
};

/* Code addresses. */
struct nt_range {
	__u64 first;
	__u64 bytes;
};

struct nt_drop_cfg {
	struct nt_filter filter;
	struct nt_guard guard;
	struct nt_range helpers[NT_DROP_HELPERS];	/* functions that free for others */
	struct nt_range locations[NT_DROP_LOCATIONS]; /* wanted places; only with by_location */
	__u32 enabled;
	__u32 mode;	   /* enum nt_drop_mode */
	__u32 group_by;	   /* enum nt_drop_by, or-ed */
	__u32 reasons;	   /* enum nt_drop_reasons */
	__u32 by_location; /* locations is in use */
	__u32 by_device;   /* drop_devices is in use */
	__u32 netns;	   /* inode number, 0 = all */
	__u32 stacks;	   /* events carry stacks */
};

struct nt_drop_event {
	__u64 ts_ns;
	__u64 location;
	__u32 reason;
	__u32 ifindex; /* 0 = none, or not to be trusted */
	__u32 netns;   /* inode number, 0 = not known */
	__u32 len_bytes;
	__u32 data_len_bytes;
	__u32 truesize_bytes;
	__u32 cpu;
	__u32 pid;
	__u32 tgid;
	__u32 facts;	   /* enum nt_drop_fact, or-ed */
	__u32 stack_bytes; /* valid part of stack */
	__u32 pad;
	char comm[16];
	char device[16]; /* empty where only the index is known */
	struct nt_pkt pkt;
	__u64 stack[NT_DROP_FRAMES];
};

struct nt_drop_key {
	struct nt_tuple tuple;
	__u64 location;
	__u64 stack;
	__u32 reason;
	__u32 ifindex;
	__u32 netns;
	__u32 facts;
};

struct nt_drop_val {
	__u64 packets;
	__u64 bytes;
	__u64 first_ns;
	__u64 last_ns;
};

struct nt_drop_stack {
	__u64 ip[NT_DROP_FRAMES];
};

struct nt_drop_total {
	__u64 packets;
	__u64 bytes;
};

struct nt_drop_device {
	__u32 netns;
	__u32 ifindex;
};

struct nt_manifest {
	struct nt_drop_cfg cfg;
	struct nt_drop_event events;
	enum nt_loss loss;
	enum nt_reject reject;
	enum nt_pkt_flag pkt_flag;
	enum nt_filter_use filter_use;
	enum nt_filter_table filter_table;
	enum nt_filter_prefix filter_prefix;
	enum nt_guard_flag guard_flag;
	enum nt_guard_size guard_size;
	enum nt_drop_mode mode;
	enum nt_drop_by by;
	enum nt_drop_reasons reasons;
	enum nt_drop_fact fact;
	enum nt_drop_step step;
	enum nt_drop_size size;
};
const struct nt_manifest nt_manifest SEC(".ntools") = {};

NT_MAP(nt_cfg, ARRAY, 1, __u32, struct nt_drop_cfg);

NT_CHANNEL(events, struct nt_drop_event, 4 << 20);

NT_MAP(drop_steps, PERCPU_ARRAY, NT_STEP_MAX, __u32, __u64);

/* By nt_total_slot(); cannot overflow, so the totals are exact whatever else is lost. */
NT_MAP(drop_totals, PERCPU_ARRAY, NT_DROP_REASONS, __u32, struct nt_drop_total);

NT_MAP(drop_reasons, HASH, 1024, __u32, __u8);

NT_MAP(drop_devices, HASH, 64, struct nt_drop_device, __u8);

NT_MAP(drop_groups, HASH, 10240, struct nt_drop_key, struct nt_drop_val);

/* By a hash of the frames; the first writer wins. A stack trace map would mix up stacks. */
NT_MAP(drop_stacks, HASH, 4096, __u64, struct nt_drop_stack);

/*
 * One packet on its way through the program. Not on the stack: the verifier would follow every
 * combination of what the parser left there, a million steps on 5.10.
 */
struct nt_drop {
	__u64 now;
	__u64 location;
	__u32 reason;
	__u32 ifindex;
	__u32 netns;
	__u32 facts;
	__u32 len;
	__u32 pad;
	char name[16];
	struct nt_pkt pkt;
	struct nt_drop_key key;
	struct nt_drop_stack stack;
};

/*
 * One per level of nesting: before Linux commit 05b24ff9b2cf "bpf: Prevent bpf program recursion
 * for raw tracepoint probes" (v6.1) an interrupt could drop a packet in the middle of this program.
 */
#define NT_DROP_LEVELS 4
NT_MAP(drop_work, PERCPU_ARRAY, NT_DROP_LEVELS, __u32, struct nt_drop);

NT_MAP(drop_level, PERCPU_ARRAY, 1, __u32, __u32);

#endif
