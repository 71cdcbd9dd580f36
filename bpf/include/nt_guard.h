/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_guard - what keeps a run from costing more than it may, on the kernel's side
 *
 *	struct nt_foo_cfg {
 *		struct nt_guard guard;
 *		...
 *	now = bpf_ktime_get_ns();
 *	if (nt_guard_asleep(&cfg->guard, now))
 *		return 0;
 *	...
 *	if (nt_guard_counts(&cfg->guard, &pkt->tuple))	// behind the filter
 *		return 0;
 *	...
 *	if (!NT_GUARD_PASS(&cfg->guard, now, identity))	// in front of NT_RESERVE()
 *		return 0;
 *
 * User space writes a heartbeat every second. A program that sees an old one returns at once: a
 * command that hangs or is stopped costs a clock and a comparison. While it is alive, events go
 * through a bucket of tokens per CPU. What user space writes (rates) and what programs write
 * (gates) are maps of their own, so neither overwrites the other's. Asked for an event and
 * refused is counted by cause: wanted = sampled_out + off + governor_dropped + what went on to
 * the channel. These counters are atomic: an interrupt between load and store would lose one.
 */
#ifndef NT_GUARD_H
#define NT_GUARD_H

#include <bpf/bpf_helpers.h>

#include "nt_channel.h"
#include "nt_map.h"
#include "nt_types.h"

/* Sizes user space has to know too. */
enum nt_guard_size {
	NT_GUARD_FLOWS = 256,
	NT_GUARD_PATIENCE_S = 10, /* a heartbeat older than this is none */
};

enum nt_guard_flag {
	NT_GUARD_COUNT_ONLY = 1 << 0, /* admission: count what matches, do nothing with it */
	NT_GUARD_NO_EVENTS = 1 << 1,  /* degraded: only aggregates */
};

struct nt_guard {
	__u64 heartbeat_ns;
	__u32 sample_shift; /* events of one packet in 2^n; aggregates have all */
	__u32 flags;	    /* enum nt_guard_flag */
};

/* The budget of a CPU. A token is 10^12: nanoseconds times events per 1000 s. */
#define NT_TOKEN 1000000000000ULL
struct nt_rate {
	__u64 rate;	 /* events per 1000 s, 0 = no limit */
	__u64 burst;	 /* most tokens */
	__u64 window_ns; /* in which an empty bucket fills */
};

/* What became of would-be events on a CPU; never reset. */
struct nt_gate {
	__u64 matches;	   /* count-only: packets behind the filter */
	__u64 wanted;	   /* asked for an event */
	__u64 sampled_out;
	__u64 off;	   /* NT_GUARD_NO_EVENTS */
	__u64 demand;	   /* came to the bucket */
	__u64 tokens;
	__u64 last_ns;
	struct nt_rate rate; /* in force since last_ns */
};

NT_MAP(nt_rates, PERCPU_ARRAY, 1, __u32, struct nt_rate);
NT_MAP(nt_gates, PERCPU_ARRAY, 1, __u32, struct nt_gate);

/*
 * Flows of count-only by matches. The first ones keep their place: what has a large share comes
 * early, and an LRU map as small as this evicts the busiest as well.
 */
NT_MAP(nt_flows, HASH, NT_GUARD_FLOWS, struct nt_tuple, __u64);

/* Signed: user space may have written its heartbeat after the program took its time. */
static __always_inline int nt_guard_asleep(const struct nt_guard *guard, __u64 now)
{
	return (__s64)(now - guard->heartbeat_ns) > NT_GUARD_PATIENCE_S * 1000000000LL;
}

static __always_inline struct nt_gate *nt_gate(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&nt_gates, &zero);
}

static __always_inline void nt_guard_count(const struct nt_tuple *flow)
{
	struct nt_gate *gate = nt_gate();
	__u64 *matches, one = 1;

	if (gate)
		__sync_fetch_and_add(&gate->matches, 1);
	matches = bpf_map_lookup_elem(&nt_flows, flow);
	if (matches)
		__sync_fetch_and_add(matches, 1);
	else
		bpf_map_update_elem(&nt_flows, flow, &one, BPF_NOEXIST);
}

/* Only count what is no packet: then it is done. */
static __always_inline int nt_guard_counts_one(const struct nt_guard *guard)
{
	struct nt_gate *gate;

	if (!(guard->flags & NT_GUARD_COUNT_ONLY))
		return 0;
	gate = nt_gate();
	if (gate)
		__sync_fetch_and_add(&gate->matches, 1);
	return 1;
}

/* Only count: then a packet that passed the filter is done. */
static __always_inline int nt_guard_counts(const struct nt_guard *guard,
					   const struct nt_tuple *flow)
{
	if (!(guard->flags & NT_GUARD_COUNT_ONLY))
		return 0;
	nt_guard_count(flow);
	return 1;
}

static __always_inline __u64 nt_least(__u64 a, __u64 b)
{
	return a < b ? a : b;
}

/*
 * A token, if the bucket has one. Time that has passed earns at the rate that was in force, so
 * that a CPU which is given a larger share does not find it filled.
 */
static __always_inline int nt_gate_take(struct nt_gate *gate, __u64 now)
{
	__u32 zero = 0;
	const struct nt_rate *rate = bpf_map_lookup_elem(&nt_rates, &zero);
	__u64 passed = now - gate->last_ns, tokens;

	__sync_fetch_and_add(&gate->demand, 1);
	if (!rate || !rate->rate)
		return 1;
	if ((__s64)passed < 0) /* an interrupt was here meanwhile */
		passed = 0;
	tokens = gate->tokens + nt_least(passed, gate->rate.window_ns) * gate->rate.rate;
	tokens = gate->last_ns ? nt_least(tokens, gate->rate.burst) : rate->burst;
	tokens = nt_least(tokens, rate->burst);
	gate->rate = *rate;
	gate->last_ns += passed;
	if (tokens < NT_TOKEN) {
		gate->tokens = tokens;
		nt_lost(NT_LOSS_GOVERNOR_DROPPED);
		return 0;
	}
	gate->tokens = tokens - NT_TOKEN;
	return 1;
}

/*
 * Whether this event may go out. `identity` is 64 bits that are the same wherever this packet is
 * seen, and evaluated only while sampling.
 */
#define NT_GUARD_PASS(guard, now, identity)                                                        \
	({                                                                                         \
		struct nt_gate *nt_here = nt_gate();                                               \
		int nt_pass = 0;                                                                   \
		if (nt_here) {                                                                     \
			const __u32 nt_shift = (guard)->sample_shift;                              \
			__sync_fetch_and_add(&nt_here->wanted, 1);                                 \
			if ((guard)->flags & NT_GUARD_NO_EVENTS)                                   \
				__sync_fetch_and_add(&nt_here->off, 1);                            \
			else if (nt_shift && ((identity) >> ((64 - nt_shift) & 63)))               \
				__sync_fetch_and_add(&nt_here->sampled_out, 1);                    \
			else                                                                       \
				nt_pass = nt_gate_take(nt_here, now);                              \
		}                                                                                  \
		nt_pass;                                                                           \
	})

#endif
