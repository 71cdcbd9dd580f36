/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_channel - records to user space, and a counter for each that was lost
 *
 *	NT_CHANNEL(events, struct nt_drop_event, 4 << 20);
 *	...
 *	struct nt_drop_event *e = NT_RESERVE(events);
 *	if (!e)
 *		return 0;	// counted as ring_full
 *	...
 *	NT_SUBMIT(ctx, events, e);
 *
 * A channel carries one struct of fixed size. It is a BPF ring buffer; where
 * the BTF that relocates the object has no struct bpf_ringbuf (before v5.8)
 * the loader creates the same map as a perf event array and the record is
 * built in a per-CPU scratch area. The branch is decided at load time and
 * costs nothing.
 */
#ifndef NT_CHANNEL_H
#define NT_CHANNEL_H

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "nt_map.h"

/* Why something the tool should have counted or shown is missing. */
enum nt_loss {
	NT_LOSS_RING_FULL,	/* no room in the channel */
	NT_LOSS_MAP_FULL,	/* packet not followed: no room for its state */
	NT_LOSS_ALIAS_FULL,	/* no room for the second key of a followed packet */
	NT_LOSS_HIST_FULL,	/* a stage pair without a histogram */
	NT_LOSS_GROUP_FULL,	/* an aggregate row without room; totals stay exact */
	NT_LOSS_STACK_FULL,	/* no room for a stack; the event is kept */
	NT_LOSS_STACK_FAILED,	/* the kernel could not walk the stack; the event is kept */
	NT_LOSS_READ_FAILED,	/* kernel memory could not be read */
	NT_LOSS_GOVERNOR_DROPPED, /* above --max-events; still in the totals */
	NT_LOSS_UNPARSED,	/* a filter needed headers that could not be read */
	NT_LOSS_MAC_FULL,	/* a guest address that could not be learnt */
	NT_LOSS_MAX,
};

NT_MAP(nt_loss, PERCPU_ARRAY, NT_LOSS_MAX, __u32, __u64);

static __always_inline void nt_lost(__u32 cause)
{
	__u64 *count = bpf_map_lookup_elem(&nt_loss, &cause);

	/* Atomic, for accounts have to balance: an interrupt may lose something too. */
	if (count)
		__sync_fetch_and_add(count, 1);
}

#define NT_CHANNEL(name, record, bytes)                                                            \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_RINGBUF);                                                \
		__uint(max_entries, bytes);                                                        \
	} name SEC(".maps");                                                                       \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                           \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__type(value, record);                                                             \
	} name##_scratch SEC(".maps");                                                             \
	static __always_inline record *name##_reserve(void)                                        \
	{                                                                                          \
		record *place;                                                                     \
		__u32 zero = 0;                                                                    \
		if (bpf_core_type_exists(struct bpf_ringbuf))                                      \
			place = bpf_ringbuf_reserve(&name, sizeof(record), 0);                     \
		else                                                                               \
			place = bpf_map_lookup_elem(&name##_scratch, &zero);                       \
		if (!place)                                                                        \
			nt_lost(NT_LOSS_RING_FULL);                                                \
		return place;                                                                      \
	}                                                                                          \
	static __always_inline void name##_submit(void *ctx, record *place)                        \
	{                                                                                          \
		if (bpf_core_type_exists(struct bpf_ringbuf))                                      \
			bpf_ringbuf_submit(place, 0);                                              \
		else if (bpf_perf_event_output(ctx, &name, BPF_F_CURRENT_CPU, place,               \
					       sizeof(record)))                                    \
			nt_lost(NT_LOSS_RING_FULL);                                                \
	}

#define NT_RESERVE(name) name##_reserve()
#define NT_SUBMIT(ctx, name, place) name##_submit(ctx, place)

#endif
