/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_follow - one packet recognized at several stages
 *
 * A flight is one packet between its entry stage and its end. Its key is skb->head, confirmed by a
 * digest of header fields. Nothing here decides that a packet was dropped: a free event is
 * evidence, the verdict is "did not reach the next stage in time" and belongs to user space, which
 * sweeps. Which packets are followed and where they end is for the engine that includes this to
 * say, in the functions declared here.
 */
#ifndef NT_FOLLOW_H
#define NT_FOLLOW_H

/* What packets are sampled by: the same at all stages. */
#ifndef NT_CHOSEN_BY
#define NT_CHOSEN_BY(f) nt_key_of(&(f)->tuple, (f)->print.digest)
#endif

#include <bpf/bpf_helpers.h>

#include "nt_attach.h"
#include "nt_channel.h"
#include "nt_flight.h"
#include "nt_guard.h"
#include "nt_hist.h"
#include "nt_identity.h"

/* A packet nobody follows is at this stage, a constant: to be followed from now on, or not. */
static __always_inline void nt_meet(void *ctx, const struct nt_flight_cfg *cfg, __u64 head,
				    struct sk_buff *skb, struct net_device *dev, const __u8 stage,
				    __u32 ifindex, const int direct);

/* Whether a flight ends at this stage, a constant, on this device. */
static __always_inline int nt_is_end(const struct nt_flight_cfg *cfg, const struct nt_flight *f,
				     struct net_device *dev, const __u8 stage, __u32 ifindex,
				     const int direct);

/* It ended there; then user space may have been told of it. */
static __always_inline void nt_arrived(const struct nt_flight_cfg *cfg, struct nt_flight *f,
				       __u64 head);
static __always_inline void nt_told(const struct nt_flight_cfg *cfg, const struct nt_flight *f);

/* The configuration while the run is on; else 0. */
static __always_inline const struct nt_flight_cfg *nt_on(void)
{
	const struct nt_flight_cfg *cfg;
	__u32 zero = 0;

	cfg = bpf_map_lookup_elem(&nt_cfg, &zero);
	return cfg && cfg->enabled ? cfg : 0;
}

/*
 * The time; false if user space is not alive. Reading the clock costs more than all lookups that
 * tell a packet is not for us: do those first.
 */
static __always_inline int nt_awake(const struct nt_flight_cfg *cfg, __u64 *now)
{
	*now = bpf_ktime_get_ns();
	return !nt_guard_asleep(&cfg->guard, *now);
}

static __always_inline void nt_count(void *counters, __u32 index)
{
	__u64 *count = bpf_map_lookup_elem(counters, &index);

	/* Atomic: softirqs come between load and store of programs in process context. */
	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void nt_explain(const struct nt_flight_cfg *cfg, __u32 step)
{
	if (cfg->flags & NT_FLIGHT_EXPLAIN)
		nt_count(&rejects, step);
}

static __always_inline void nt_count_end(const struct nt_flight *f, __u32 end)
{
	nt_count(&ends, (f->direction & 1) * NT_END_MAX + end);
}

#if NT_PATH
/* User space makes all histograms of what it is told of each packet. */
static __always_inline void nt_pair(const struct nt_flight_cfg *cfg, const struct nt_flight *f,
				    __u8 from, __u8 to, __u32 ifindex, __u64 ns)
{
}

/* Buffers that change are the engine's business. */
static __always_inline int nt_park(struct nt_flight *f, __u64 key)
{
	return 0;
}
#else
static __always_inline void nt_pair(const struct nt_flight_cfg *cfg, const struct nt_flight *f,
				    __u8 from, __u8 to, __u32 ifindex, __u64 ns)
{
	struct nt_pair_key key = {
		.direction = f->direction, .from = from, .to = to, .ifindex = ifindex
	};
	struct nt_hist *hist = bpf_map_lookup_elem(&pairs, &key);

	if (!hist) {
		__u32 zero = 0;
		struct nt_hist *empty = bpf_map_lookup_elem(&blank_hist, &zero);

		/* Another CPU may have been first: what counts is that it is there now. */
		if (empty)
			bpf_map_update_elem(&pairs, &key, empty, BPF_NOEXIST);
		hist = bpf_map_lookup_elem(&pairs, &key);
	}
	if (hist)
		nt_hist_add(hist, ns, cfg->epoch);
	else
		nt_lost(NT_LOSS_HIST_FULL);
}

/* A flight that waits for its upcall goes on without a buffer. */
static __always_inline int nt_park(struct nt_flight *f, __u64 key)
{
	return f->last_stage == NT_STAGE_OVS_UPQ &&
	       !bpf_map_update_elem(&parked, &key, f, BPF_NOEXIST);
}
#endif

/* What is known of a device, 0 if it is none of ours: for most, one bit says so. */
static __always_inline struct nt_device *nt_device(const struct nt_flight_cfg *cfg,
						   struct net_device *dev, __u32 ifindex,
						   const int direct)
{
	struct nt_device_key key = { .ifindex = ifindex };
	struct net *net;

	if (!dev || !(cfg->device_bits[ifindex % NT_DEVICE_BITS / 8] >> ifindex % 8 & 1))
		return 0;
	net = NT_GET(dev, nd_net.net);
	if (!net)
		return 0;
	key.netns = NT_GET(net, ns.inum);
	return bpf_map_lookup_elem(&devices, &key);
}

#if NT_HOPS
static __always_inline void nt_hop(struct nt_flight *f, __u8 stage, __u32 ifindex, __u64 now)
{
	__u32 n = f->hop_count;

	if (n < NT_HOPS) {
		f->hops[n].ts_ns = now;
		f->hops[n].ifindex = ifindex;
		f->hops[n].cpu = bpf_get_smp_processor_id();
		f->hops[n].stage = stage;
		f->hops[n].hits = 1;
	}
	f->hop_count = n + 1;
}

#else
static __always_inline void nt_hop(struct nt_flight *f, __u8 stage, __u32 ifindex, __u64 now)
{
	f->hop_count += 1;
}

#endif

#if NT_DETAIL
static __always_inline void nt_emit(void *ctx, const struct nt_flight_cfg *cfg,
				    struct nt_flight *f)
{
	struct nt_flight *e;

	if (f->last_ns - f->start_ns < cfg->threshold_ns)
		return;
	if (!NT_GUARD_PASS(&cfg->guard, f->last_ns, NT_CHOSEN_BY(f)))
		return;
	e = NT_RESERVE(events);
	if (!e)
		return;
	nt_told(cfg, f);
	/* Loads and stores are faster, but have no room in all programs. */
	if (NT_PATH)
		bpf_probe_read_kernel(e, sizeof(*e), f);
	else
		__builtin_memcpy(e, f, sizeof(*e));
	NT_SUBMIT(ctx, events, e);
}
#else
static __always_inline void nt_emit(void *ctx, const struct nt_flight_cfg *cfg,
				    struct nt_flight *f)
{
}
#endif

/*
 * The buffer carries another packet. A flight that is not parked did not end where it could be
 * seen: keep it for the sweeper, free its key.
 */
static __always_inline void nt_evict(struct nt_flight *f, __u64 head)
{
	__u64 key = nt_key_of(&f->tuple, f->print.digest);

	if (nt_park(f, key)) {
		bpf_map_delete_elem(&flights, &head);
		return;
	}
	key = f->start_ns;
	f->end = f->free_ns > f->last_ns ? NT_END_DROPPED : NT_END_STALE;
	nt_count_end(f, f->end);
	/* No room: it is counted, only its description is lost. */
	if (bpf_map_update_elem(&graves, &key, f, BPF_ANY))
		nt_lost(NT_LOSS_GROUP_FULL);
	bpf_map_delete_elem(&flights, &head);
}

static __always_inline void nt_advance(void *ctx, const struct nt_flight_cfg *cfg,
				       struct nt_flight *f, __u64 head, struct sk_buff *skb,
				       struct net_device *dev, const __u8 stage, __u32 ifindex,
				       __u64 now, const int direct)
{
	nt_pair(cfg, f, f->last_stage, stage, ifindex, now - f->last_ns);
	nt_hop(f, stage, ifindex, now);
	f->last_ns = now;
	f->last_stage = stage;
	f->skb = (__u64)skb;
	if (ifindex)
		f->last_ifindex = ifindex;
	if (!nt_is_end(cfg, f, dev, stage, ifindex, direct))
		return;
	/* The whole way belongs to the device at its other end, seen from the VM. */
	nt_pair(cfg, f, f->entry_stage, NT_STAGE_TOTAL,
		f->direction == NT_DIRECTION_RX ? ifindex : f->entry_ifindex, now - f->start_ns);
	nt_count_end(f, NT_END_COMPLETED);
	f->end = NT_END_COMPLETED;
	nt_arrived(cfg, f, head);
	nt_emit(ctx, cfg, f);
	bpf_map_delete_elem(&flights, &head);
}

/* A new flight of a parsed packet in its buffer; 0 if there is no room. `vm` may be 0. */
static __always_inline struct nt_flight *nt_start(const struct nt_pkt *pkt, __u64 head,
						  struct sk_buff *skb, const __u8 stage,
						  __u8 direction, __u32 ifindex, __u64 now,
						  const int direct)
{
	__u32 zero = 0;
	struct nt_flight *f = bpf_map_lookup_elem(&blank, &zero);
	unsigned char *end;

	if (!f)
		return 0;
	f->start_ns = now;
	f->last_ns = now;
	f->skb = (__u64)skb;
	f->free_ns = 0;
	f->free_location = 0;
	f->free_reason = 0;
	f->tuple = pkt->tuple;
	nt_print_take((void *)head, pkt, &f->print);
	f->vm_ifindex = ifindex;
	f->entry_ifindex = ifindex;
	f->last_ifindex = ifindex;
	f->len_bytes = NT_GET(skb, len);
	f->ip_id = pkt->ip_id;
	f->seq = pkt->tcp_hdr_len ? pkt->seq : pkt->icmp_seq;
	f->vlan_id = pkt->vlan_id;
	f->segs = 0;
	end = (unsigned char *)head + NT_GET(skb, end);
	bpf_core_read(&f->segs, sizeof(f->segs), &((struct skb_shared_info *)end)->gso_segs);
	f->direction = direction;
	f->entry_stage = stage;
	f->last_stage = stage;
	f->end = 0;
	f->hop_count = 0;
	nt_hop(f, stage, ifindex, now);
	return f;
}

/* Follows it from now on; false if there is no room. */
static __always_inline int nt_keep(struct nt_flight *f, __u64 head)
{
	if (bpf_map_update_elem(&flights, &head, f, BPF_ANY)) {
		nt_lost(NT_LOSS_MAP_FULL);
		return 0;
	}
	nt_count_end(f, NT_END_STARTED);
	return 1;
}

/*
 * A flight has reached a stage, a constant; `dev` is its device or NULL. Returns 0 if the buffer
 * turns out to carry another packet, which nobody follows.
 */
static __always_inline int nt_follow(void *ctx, const struct nt_flight_cfg *cfg,
				     struct nt_flight *f, __u64 head, struct sk_buff *skb,
				     struct net_device *dev, const __u8 stage, __u32 ifindex,
				     const int direct)
{
	__u64 now;

	if (!nt_awake(cfg, &now))
		return 1;
	/* Back at its entry: nothing comes in twice, so the buffer is somebody else's. */
	if (f->print.digest == nt_print_read((void *)head, &f->print) &&
	    !(stage == f->entry_stage && ifindex == f->entry_ifindex)) {
		nt_advance(ctx, cfg, f, head, skb, dev, stage, ifindex, now, direct);
		return 1;
	}
	nt_evict(f, head);
	return 0;
}

/* A packet is at a stage. Always 0: the verifier takes nothing else from fentry. */
static __always_inline int nt_reach(void *ctx, struct sk_buff *skb, struct net_device *dev,
				    const __u8 stage, const int direct)
{
	const struct nt_flight_cfg *cfg = nt_on();
	struct nt_flight *f;
	__u64 head;

	if (!cfg || !skb)
		return 0;
	head = (__u64)NT_GET(skb, head);
	f = bpf_map_lookup_elem(&flights, &head);
	if (f)
		nt_follow(ctx, cfg, f, head, skb, dev, stage, dev ? NT_GET(dev, ifindex) : 0,
			  direct);
	return 0;
}

/* The same where packets may enter. A function of its own, for parsing takes much of the stack. */
static __always_inline int nt_reach_or_meet(void *ctx, struct sk_buff *skb, struct net_device *dev,
					    const __u8 stage, const int direct)
{
	const struct nt_flight_cfg *cfg = nt_on();
	struct nt_flight *f;
	__u32 ifindex;
	__u64 head;

	if (!cfg || !skb || !dev)
		return 0;
	head = (__u64)NT_GET(skb, head);
	f = bpf_map_lookup_elem(&flights, &head);
	ifindex = NT_GET(dev, ifindex);
	if (!f || !nt_follow(ctx, cfg, f, head, skb, dev, stage, ifindex, direct))
		nt_meet(ctx, cfg, head, skb, dev, stage, ifindex, direct);
	return 0;
}

/* The reason is an argument since v5.17; the others are not there to be read. */
static __always_inline __u32 nt_free_reason(const __u64 *ctx)
{
	return bpf_core_type_exists(enum skb_drop_reason) ? ctx[2] : 0;
}

/* Evidence: the buffer of a flight was freed as a drop. */
static __always_inline void nt_note_free(__u64 *ctx, struct nt_flight *f, __u64 location, __u64 now)
{
	f->free_ns = now;
	f->free_location = location;
	f->free_reason = nt_free_reason(ctx);
}

/* A buffer is freed as a drop; returns the flight in it, or a clone of it. */
static __always_inline struct nt_flight *nt_freed(__u64 *ctx, const struct nt_flight_cfg *cfg,
						  struct sk_buff *skb, __u64 location,
						  const int direct)
{
	struct nt_flight *f;
	__u64 now, head;

	head = (__u64)NT_GET(skb, head);
	f = bpf_map_lookup_elem(&flights, &head);
	/* Not another packet in its buffer. */
	if (!f || !nt_awake(cfg, &now) ||
	    f->print.digest != nt_print_read((void *)head, &f->print))
		return 0;
	nt_note_free(ctx, f, location, now);
	return f;
}

#endif
