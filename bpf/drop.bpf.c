// SPDX-License-Identifier: GPL-2.0-only
/*
 * drop - which packets the kernel drops, why and where
 *
 * Attaches: skb:kfree_skb
 * Reads:    skb, return address of the free, reason (since v5.17), receiving socket (since v6.11)
 * Keeps:    drop_groups, 10240 keys x 104 bytes; drop_stacks, 4096 x 264 bytes; drop_totals, 769
 *           reasons x 16 bytes x CPUs
 * Emits:    struct nt_drop_event, 464 bytes: more than half of it is the stack, which is what
 *           tells one drop from another. Nothing in summary mode
 * Cost:     nothing per delivered packet; per drop the filter, then one record or one map update
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "nt_attach.h"
#include "nt_channel.h"
#include "nt_drop.h"
#include "nt_filter.h"
#include "nt_guard.h"
#include "nt_identity.h"
#include "nt_parse.h"

/* Atomic, like all that is added up here: before v6.1 an interrupt's drop could come in between. */
static __always_inline void nt_drop_count(__u32 step)
{
	__u64 *count = bpf_map_lookup_elem(&drop_steps, &step);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline __u32 nt_total_slot(__u32 reason)
{
	__u32 subsystem = reason >> 16, number = reason & 0xffff;

	if (!subsystem && number < NT_DROP_CORE)
		return number;
	if (subsystem - 1 < 8 && number < NT_DROP_SUBSYS)
		return NT_DROP_CORE + (subsystem - 1) * NT_DROP_SUBSYS + number;
	return NT_DROP_REASONS - 1;
}

static __always_inline void nt_drop_total(const struct nt_drop *d)
{
	__u32 slot = nt_total_slot(d->reason);
	struct nt_drop_total *total = bpf_map_lookup_elem(&drop_totals, &slot);

	if (total) {
		__sync_fetch_and_add(&total->packets, 1);
		__sync_fetch_and_add(&total->bytes, d->len);
	}
}

/* Without branches: one per range would double what the verifier has to follow. */
static __always_inline int nt_in_ranges(const struct nt_range *ranges, const int count,
					__u64 address)
{
	__u64 found = 0;
	int i;

#pragma clang loop unroll(full)
	for (i = 0; i < count; i++) {
		__u64 from = address - ranges[i].first;

		/* Not below the start, and below the end: two sign bits. */
		found |= ~from & (from - ranges[i].bytes);
	}
	return found >> 63;
}

/*
 * The reason and the socket are arguments of newer kernels only: Linux commit c504e5c2f964 "net:
 * skb: introduce kfree_skb_reason()" (v5.17) and c53795d48ee8 "net: add rx_sk to trace_kfree_skb"
 * (v6.11). The tests are constants at load time: what this kernel lacks is dead code, and the
 * verifier never sees the access.
 */
static __always_inline __u32 nt_drop_reason(__u64 *ctx)
{
	if (bpf_core_field_exists(struct trace_event_raw_kfree_skb, reason))
		return ((volatile __u64 *)ctx)[2];
	return 0;
}

static __always_inline struct sock *nt_drop_rx_sk(__u64 *ctx)
{
	if (bpf_core_field_exists(struct trace_event_raw_kfree_skb, rx_sk))
		return (struct sock *)((volatile __u64 *)ctx)[3];
	return 0;
}

/*
 * Lists are freed on behalf of somebody else: until v6.1 the address is inside the function that
 * walks the list, since v7.2 inside __tcf_kfree_skb_list() (found on 5.10, 6.1 and 7.2). The one
 * who dropped is the next frame.
 */
#define NT_DROP_NEAR 12
static __always_inline __u64 nt_drop_place(void *ctx, const struct nt_drop_cfg *cfg, __u64 location)
{
	__u64 near[NT_DROP_NEAR], place = 0;
	int i;

	if (!nt_in_ranges(cfg->helpers, NT_DROP_HELPERS, location) ||
	    bpf_get_stack(ctx, near, sizeof(near), 0) < 0)
		return location;
#pragma clang loop unroll(full)
	for (i = 0; i < NT_DROP_NEAR - 1; i++) {
		__u64 differs = near[i] ^ location;

		/* All bits set where the two are equal; again without branches. */
		place |= near[i + 1] & (((differs | -differs) >> 63) - 1);
	}
	return place ? place : location;
}

static __always_inline __u32 nt_inum(const struct net *net)
{
	__u32 inum = 0;

	if (net)
		bpf_core_read(&inum, sizeof(inum), &net->ns.inum);
	return inum;
}

/* In socket queues skb->sk shares its place with other things: small numbers, not addresses. */
static __always_inline __u32 nt_sock_netns(struct sock *sk)
{
	struct net *net = 0;

	if (!sk || bpf_core_read(&net, sizeof(net), &sk->__sk_common.skc_net.net))
		return 0;
	return nt_inum(net);
}

/* All inode numbers of namespaces are above: 0xEFFFFFF9 in 6.18, 0xF0000000 and more in others. */
#define NT_FIRST_INUM 0xE0000000U

/* What the kernel takes in the name of a device: anything but white space, and no end. */
static __always_inline int nt_may_start_name(__u8 c)
{
	return c && c != ' ' && (c < '\t' || c > '\r');
}

/*
 * skb->dev is the device until the packet is put into a socket's queue, where the same word holds
 * a tree node or a length. It is believed when it leads to a namespace with the number of one, and
 * to a name; user space compares the name. Never read directly: it may be any number.
 */
static __always_inline int nt_drop_device(struct sk_buff *skb, const int direct, struct nt_drop *d)
{
	struct net_device *dev = NT_GET(skb, dev);
	struct net *net = 0;
	__u32 ifindex = 0, inum;

	if (!dev || bpf_core_read(&ifindex, sizeof(ifindex), &dev->ifindex) ||
	    bpf_core_read(&net, sizeof(net), &dev->nd_net.net))
		return 0;
	inum = nt_inum(net);
	if (inum < NT_FIRST_INUM || !ifindex || ifindex >> 31 ||
	    bpf_core_read(d->name, sizeof(d->name), &dev->name) || !nt_may_start_name(d->name[0]) ||
	    d->name[15]) {
		d->name[0] = 0;
		return 0;
	}
	d->ifindex = ifindex;
	d->netns = inum;
	return 1;
}

#define NT_PACKET_OTHERHOST 3 /* include/uapi/linux/if_packet.h */

static __always_inline void nt_drop_where(__u64 *ctx, struct sk_buff *skb, const int direct,
					  struct nt_drop *d)
{
	struct sock *sk = nt_drop_rx_sk(ctx);

	if (!sk)
		bpf_core_read(&sk, sizeof(sk), &skb->sk);
	if (sk)
		d->facts |= NT_FACT_HAS_SOCKET;
	if (nt_drop_device(skb, direct, d))
		return;
	d->ifindex = NT_GET(skb, skb_iif);
	d->netns = nt_sock_netns(sk);
	if (d->netns < NT_FIRST_INUM)
		d->netns = 0;
	if (!d->ifindex)
		d->facts |= NT_FACT_NO_DEVICE;
}

static __always_inline void nt_drop_facts(struct sk_buff *skb, const int direct, struct nt_drop *d)
{
	const struct nt_pkt *pkt = &d->pkt;

	if (BPF_CORE_READ_BITFIELD_PROBED(skb, pkt_type) == NT_PACKET_OTHERHOST)
		d->facts |= NT_FACT_OTHER_HOST;
	if (!NT_GET(skb, protocol))
		d->facts |= NT_FACT_NO_PROTOCOL;
	if (pkt->flags & NT_PKT_ICMP) {
		__u32 type = pkt->icmp_type, six = pkt->tuple.family == 6;

		if (type == (six ? 128 : 8))
			d->facts |= NT_FACT_ECHO_REQUEST;
		if (type == (six ? 129 : 0))
			d->facts |= NT_FACT_ECHO_REPLY;
	}
	if (pkt->tcp_hdr_len && (pkt->tcp_flags & (NT_TCP_SYN | NT_TCP_ACK)) == NT_TCP_SYN)
		d->facts |= NT_FACT_SYN;
	if (pkt->tuple.family && pkt->ttl <= 1)
		d->facts |= NT_FACT_TTL_EXPIRED;
}

/* 0 = wanted; else counted where it ended. */
static __always_inline int nt_drop_refused(const struct nt_drop_cfg *cfg, const struct nt_pkt *pkt)
{
	enum nt_reject reject = nt_filter_match(&cfg->filter, pkt);

	if (reject == NT_REJECT_NONE)
		return 0;
	if (nt_filter_unsure(&cfg->filter, pkt, reject))
		nt_lost(NT_LOSS_UNPARSED);
	else
		nt_drop_count(NT_STEP_FILTER + reject);
	return 1;
}

/* The same number for the same packet, as far as it is the same on the wire. */
static __always_inline __u64 nt_drop_identity(const struct nt_pkt *pkt)
{
	__u64 own = nt_mix(nt_mix(NT_MIX_B, pkt->ip_id), pkt->seq);

	return nt_key_of(&pkt->tuple, nt_mix(own, pkt->payload));
}

static __always_inline void nt_drop_emit(void *ctx, const struct nt_drop_cfg *cfg,
					 struct sk_buff *skb, const int direct,
					 const struct nt_drop *d)
{
	struct nt_drop_event *e;
	__u64 id;
	long bytes = 0;

	if (!NT_GUARD_PASS(&cfg->guard, d->now, nt_drop_identity(&d->pkt)))
		return;
	e = NT_RESERVE(events);
	if (!e)
		return;
	id = bpf_get_current_pid_tgid();
	e->ts_ns = d->now;
	e->location = d->location;
	e->reason = d->reason;
	e->ifindex = d->ifindex;
	e->netns = d->netns;
	e->len_bytes = d->len;
	e->data_len_bytes = NT_GET(skb, data_len);
	e->truesize_bytes = NT_GET(skb, truesize);
	e->cpu = bpf_get_smp_processor_id();
	e->pid = id;
	e->tgid = id >> 32;
	e->facts = d->facts;
	e->pad = 0;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	__builtin_memcpy(e->device, d->name, sizeof(e->device));
	__builtin_memcpy(&e->pkt, &d->pkt, sizeof(e->pkt));
	if (cfg->stacks) {
		bytes = bpf_get_stack(ctx, e->stack, sizeof(e->stack), 0);
		if (bytes < 0) {
			nt_lost(NT_LOSS_STACK_FAILED);
			bytes = 0;
		}
	}
	e->stack_bytes = bytes;
	NT_SUBMIT(ctx, events, e);
}

/* Keeps the stack and returns its number; 0 where there is none. */
static __always_inline __u64 nt_drop_keep_stack(void *ctx, struct nt_drop_stack *stack)
{
	__u64 hash = 14695981039346656037ULL;
	long err;
	int i;

	__builtin_memset(stack, 0, sizeof(*stack));
	if (bpf_get_stack(ctx, stack, sizeof(*stack), 0) <= 0) {
		nt_lost(NT_LOSS_STACK_FAILED);
		return 0;
	}
#pragma clang loop unroll(full)
	for (i = 0; i < NT_DROP_FRAMES; i++)
		hash = (hash ^ stack->ip[i]) * 1099511628211ULL;
	if (!hash)
		hash = 1;
	if (bpf_map_lookup_elem(&drop_stacks, &hash))
		return hash;
	err = bpf_map_update_elem(&drop_stacks, &hash, stack, BPF_NOEXIST);
	if (err && !bpf_map_lookup_elem(&drop_stacks, &hash)) {
		nt_lost(NT_LOSS_STACK_FULL);
		return 0;
	}
	return hash;
}

static __always_inline void nt_drop_add(void *ctx, const struct nt_drop_cfg *cfg, struct nt_drop *d)
{
	const struct nt_pkt *pkt = &d->pkt;
	struct nt_drop_key *key = &d->key;
	const __u32 by = cfg->group_by;
	struct nt_drop_val *val;

	__builtin_memset(key, 0, sizeof(*key));
	key->facts = d->facts;
	if (by & NT_BY_REASON)
		key->reason = d->reason;
	if (by & NT_BY_LOCATION)
		key->location = d->location;
	if (by & NT_BY_DEVICE)
		key->ifindex = d->ifindex;
	if (by & (NT_BY_DEVICE | NT_BY_NETNS))
		key->netns = d->netns;
	if (by & NT_BY_FIVETUPLE) {
		key->tuple = pkt->tuple;
	} else if (by & NT_BY_PORT) {
		key->tuple.family = pkt->tuple.family;
		key->tuple.eth_proto = pkt->tuple.eth_proto;
		key->tuple.protocol = pkt->tuple.protocol;
		if (pkt->flags & NT_PKT_L4)
			key->tuple.dst_port = pkt->tuple.dst_port;
	}
	if (by & NT_BY_STACK)
		key->stack = nt_drop_keep_stack(ctx, &d->stack);
	val = bpf_map_lookup_elem(&drop_groups, key);
	if (!val) {
		struct nt_drop_val fresh = { .first_ns = d->now };

		bpf_map_update_elem(&drop_groups, key, &fresh, BPF_NOEXIST);
		val = bpf_map_lookup_elem(&drop_groups, key);
		if (!val) {
			nt_lost(NT_LOSS_GROUP_FULL);
			return;
		}
	}
	__sync_fetch_and_add(&val->packets, 1);
	__sync_fetch_and_add(&val->bytes, d->len);
	val->last_ns = d->now;
}

static __always_inline int nt_reason_refused(const struct nt_drop_cfg *cfg, __u32 reason)
{
	int listed;

	if (cfg->reasons == NT_REASONS_ANY)
		return 0;
	listed = bpf_map_lookup_elem(&drop_reasons, &reason) != 0;
	return listed != (cfg->reasons == NT_REASONS_ONLY);
}

/* Whether the place decides. Where a drop was takes more reads than its headers: else they do. */
static __always_inline int nt_drop_placed(const struct nt_drop_cfg *cfg)
{
	return cfg->netns || cfg->by_device;
}

static __always_inline int nt_drop_elsewhere(const struct nt_drop_cfg *cfg, const struct nt_drop *d)
{
	struct nt_drop_device device = { .netns = d->netns, .ifindex = d->ifindex };

	if (cfg->netns && cfg->netns != d->netns) {
		nt_drop_count(NT_STEP_NETNS);
		return 1;
	}
	if (cfg->by_device && !bpf_map_lookup_elem(&drop_devices, &device)) {
		nt_drop_count(NT_STEP_INTERFACE);
		return 1;
	}
	return 0;
}

static __always_inline void nt_drop_handle(__u64 *ctx, const int direct,
					   const struct nt_drop_cfg *cfg, struct nt_drop *d,
					   struct sk_buff *skb, __u64 location)
{
	d->location = nt_drop_place(ctx, cfg, location);
	if (cfg->by_location && !nt_in_ranges(cfg->locations, NT_DROP_LOCATIONS, d->location)) {
		nt_drop_count(NT_STEP_LOCATION);
		return;
	}
	d->facts = 0;
	d->ifindex = 0;
	__builtin_memset(d->name, 0, sizeof(d->name));
	if (nt_drop_placed(cfg)) {
		nt_drop_where(ctx, skb, direct, d);
		if (nt_drop_elsewhere(cfg, d))
			return;
	}
	if (nt_parse_skb(skb, NT_AT_ANY | (direct ? NT_DIRECT : 0), &d->pkt)) {
		nt_pkt_init(&d->pkt, 0);
		d->pkt.flags = NT_PKT_FAULT;
	}
	if (nt_drop_refused(cfg, &d->pkt) || nt_guard_counts(&cfg->guard, &d->pkt.tuple))
		return;
	if (!nt_drop_placed(cfg))
		nt_drop_where(ctx, skb, direct, d);
	d->len = NT_GET(skb, len);
	nt_drop_facts(skb, direct, d);
	nt_drop_count(NT_STEP_MATCHED);
	nt_drop_total(d);
	if (cfg->mode == NT_DROP_GROUPS)
		nt_drop_add(ctx, cfg, d);
	else
		nt_drop_emit(ctx, cfg, skb, direct, d);
}

NT_TRACE(free_drop, kfree_skb, struct sk_buff *, skb, void *, location)
{
	const struct nt_drop_cfg *cfg;
	__u32 zero = 0, level, *nested;
	struct nt_drop *d;
	__u64 now;

	cfg = bpf_map_lookup_elem(&nt_cfg, &zero);
	if (!cfg || !cfg->enabled || !skb)
		return 0;
	now = bpf_ktime_get_ns();
	if (nt_guard_asleep(&cfg->guard, now))
		return 0;
	nt_drop_count(NT_STEP_SEEN);
	if (nt_reason_refused(cfg, nt_drop_reason(ctx))) {
		nt_drop_count(NT_STEP_REASON);
		return 0;
	}
	nested = bpf_map_lookup_elem(&drop_level, &zero);
	if (!nested)
		return 0;
	level = *nested;
	d = bpf_map_lookup_elem(&drop_work, &level);
	if (!d) {
		nt_lost(NT_LOSS_MAP_FULL);
		return 0;
	}
	*nested = level + 1;
	d->now = now;
	d->reason = nt_drop_reason(ctx);
	nt_drop_handle(ctx, direct, cfg, d, skb, (__u64)location);
	*nested = level;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
