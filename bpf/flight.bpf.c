// SPDX-License-Identifier: GPL-2.0-only
/*
 * flight - the same packet at several stages: where it spends its time, where it stops
 *
 * Attaches: devices (tracepoints), Open vSwitch, bridge, tap and vhost (functions)
 * Reads:    skb, packet headers, device and its namespace
 * Keeps:    flights, 65536 x 176 bytes (detail 16384 x 560); pairs, per CPU, 256 x 528 bytes
 * Emits:    struct nt_flight at the end of a packet, only in the detail build
 * Cost:     a packet that is not followed: one lookup; a followed one: headers, two lookups
 *
 * A flight is one packet of the chosen VM interfaces between its entry stage and its end. Its key
 * is skb->head, confirmed by a digest of header fields; over an upcall a second key carries it to
 * the new buffer. Nothing here decides that a packet was dropped: a free event is evidence, the
 * verdict is "did not reach the next stage in time" and belongs to user space, which sweeps.
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#include "nt_attach.h"
#include "nt_channel.h"
#include "nt_filter.h"
#include "nt_flight.h"
#include "nt_guard.h"
#include "nt_hist.h"
#include "nt_identity.h"
#include "nt_parse.h"

/* The configuration while the run is on and its user space alive, and the time; else 0. */
static __always_inline struct nt_flight_cfg *nt_awake(__u64 *now)
{
	__u32 zero = 0;
	struct nt_flight_cfg *cfg = bpf_map_lookup_elem(&nt_cfg, &zero);

	if (!cfg || !cfg->enabled)
		return 0;
	*now = bpf_ktime_get_ns();
	return nt_guard_asleep(&cfg->guard, *now) ? 0 : cfg;
}

static __always_inline void nt_count(void *counters, __u32 index)
{
	__u64 *count = bpf_map_lookup_elem(counters, &index);

	if (count)
		*count += 1;
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

static __always_inline __u64 nt_device_key(struct net_device *dev, struct nt_device_key *key,
					   const int direct)
{
	struct net *net = NT_GET(dev, nd_net.net);

	key->ifindex = NT_GET(dev, ifindex);
	key->netns = 0;
	if (net)
		key->netns = NT_GET(net, ns.inum);
	return key->netns;
}

#if NT_DETAIL
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

static __always_inline void nt_emit(void *ctx, const struct nt_flight_cfg *cfg,
				    struct nt_flight *f)
{
	struct nt_flight *e;

	if (f->last_ns - f->start_ns < cfg->threshold_ns)
		return;
	if (!NT_GUARD_PASS(&cfg->guard, f->last_ns, nt_key_of(&f->tuple, f->print.digest)))
		return;
	e = NT_RESERVE(events);
	if (!e)
		return;
	__builtin_memcpy(e, f, sizeof(*e));
	NT_SUBMIT(ctx, events, e);
}
#else
static __always_inline void nt_hop(struct nt_flight *f, __u8 stage, __u32 ifindex, __u64 now)
{
	f->hop_count += 1;
}

static __always_inline void nt_emit(void *ctx, const struct nt_flight_cfg *cfg,
				    struct nt_flight *f)
{
}
#endif

/*
 * The buffer carries another packet. A flight that waits for its upcall goes on without a buffer;
 * any other did not end where it could be seen: keep it for the sweeper, free its key.
 */
static __always_inline void nt_evict(struct nt_flight *f, __u64 head)
{
	__u64 key = nt_key_of(&f->tuple, f->print.digest);

	if (f->last_stage == NT_STAGE_OVS_UPQ &&
	    !bpf_map_update_elem(&parked, &key, f, BPF_NOEXIST)) {
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

/* Is this stage, on a device of this role, the end of the flight? */
static __always_inline int nt_is_end(const struct nt_flight_cfg *cfg, const struct nt_flight *f,
				     __u8 stage, __u32 role, __u32 ifindex)
{
	if (f->direction == NT_DIRECTION_RX) {
		if (ifindex == f->entry_ifindex)
			return 0;
		if (stage == NT_STAGE_DEV_RX || stage == NT_STAGE_DEV_BKLG)
			return (role & NT_ROLE_HOST) && !(cfg->flags & NT_FLIGHT_ONLY_UPLINK);
		if (stage != NT_STAGE_DEV_XMIT || (role & NT_ROLE_PASS))
			return 0;
		return !(cfg->flags & NT_FLIGHT_ONLY_UPLINK) || (role & NT_ROLE_UPLINK);
	}
	if (cfg->flags & NT_FLIGHT_UNTIL_TAP)
		return stage == NT_STAGE_DEV_XMIT && (role & NT_ROLE_VNET);
	return stage == NT_STAGE_VM_COPIED;
}

static __always_inline void nt_advance(void *ctx, const struct nt_flight_cfg *cfg,
				       struct nt_flight *f, __u64 head, struct sk_buff *skb,
				       __u8 stage, __u32 role, __u32 ifindex, __u64 now)
{
	nt_pair(cfg, f, f->last_stage, stage, ifindex, now - f->last_ns);
	nt_hop(f, stage, ifindex, now);
	f->last_ns = now;
	f->last_stage = stage;
	f->skb = (__u64)skb;
	if (ifindex)
		f->last_ifindex = ifindex;
	if (!nt_is_end(cfg, f, stage, role, ifindex))
		return;
	/* The whole way belongs to the device at its other end, seen from the VM. */
	nt_pair(cfg, f, f->entry_stage, NT_STAGE_TOTAL,
		f->direction == NT_DIRECTION_RX ? ifindex : f->entry_ifindex, now - f->start_ns);
	nt_count_end(f, NT_END_COMPLETED);
	f->end = NT_END_COMPLETED;
	nt_emit(ctx, cfg, f);
	bpf_map_delete_elem(&flights, &head);
}

static __always_inline void nt_learn(const struct nt_pkt *p, __u32 vm_ifindex)
{
	struct nt_mac_key key = {};

	if (!(p->flags & NT_PKT_L2) || (p->smac[0] & 1))
		return;
	__builtin_memcpy(key.mac, p->smac, sizeof(key.mac));
	if (bpf_map_lookup_elem(&macs, &key))
		return;
	if (bpf_map_update_elem(&macs, &key, &vm_ifindex, BPF_ANY))
		nt_lost(NT_LOSS_MAC_FULL);
}

/* The VM interface a frame is addressed to; 0 if none. */
static __always_inline __u32 nt_addressee(const struct nt_flight_cfg *cfg, const struct nt_pkt *p,
					  __u32 any)
{
	struct nt_mac_key key = {};
	__u32 *vm;

	if (!(p->flags & NT_PKT_L2)) {
		nt_explain(cfg, NT_EXPLAIN_MAC);
		return 0;
	}
	if (p->dmac[0] & 1) {
		if (cfg->flags & NT_FLIGHT_MULTICAST)
			return any;
		nt_explain(cfg, NT_EXPLAIN_MULTICAST);
		return 0;
	}
	__builtin_memcpy(key.mac, p->dmac, sizeof(key.mac));
	vm = bpf_map_lookup_elem(&macs, &key);
	if (!vm) {
		/* libvirt gives the tap the guest's address with another first byte. */
		key.mac[0] = 0;
		key.loose = 1;
		vm = bpf_map_lookup_elem(&macs, &key);
	}
	if (!vm)
		nt_explain(cfg, NT_EXPLAIN_MAC);
	return vm ? *vm : 0;
}

/* A packet nobody follows yet, at an entry stage: should we? */
static __always_inline void nt_enter(const struct nt_flight_cfg *cfg, const struct nt_device *dev,
				     __u64 head, struct sk_buff *skb, const __u8 stage,
				     __u32 ifindex, __u64 now, const int direct)
{
	__u32 zero = 0, vm = ifindex, reject;
	__u8 direction = NT_DIRECTION_TX;
	const int where = stage == NT_STAGE_DEV_RX ? NT_AT_DATA : NT_AT_ETH;
	struct nt_pkt *pkt = bpf_map_lookup_elem(&parsed, &zero);
	unsigned char *end;
	struct nt_flight *f;

	if (!pkt)
		return;
	if (nt_parse_skb(skb, where | (direct ? NT_DIRECT : 0), pkt)) {
		nt_lost(NT_LOSS_READ_FAILED);
		return;
	}
	if (stage == NT_STAGE_DEV_RX && (dev->role & NT_ROLE_VNET)) {
		direction = NT_DIRECTION_RX;
		nt_learn(pkt, ifindex);
	}
	if (!(cfg->directions & (1 << direction))) {
		nt_explain(cfg, NT_EXPLAIN_DIRECTION);
		return;
	}
	if (direction == NT_DIRECTION_TX) {
		vm = nt_addressee(cfg, pkt, ifindex);
		if (!vm)
			return;
	}
	if (dev->vlan_id != NT_VLAN_NONE && dev->vlan_id != pkt->vlan_id) {
		nt_explain(cfg, NT_EXPLAIN_PORT_VLAN);
		return;
	}
	reject = nt_filter_match(&cfg->filter, pkt);
	if (reject) {
		nt_explain(cfg, NT_EXPLAIN_FILTER + reject);
		return;
	}
	if (nt_guard_counts(&cfg->guard, &pkt->tuple))
		return;
	f = bpf_map_lookup_elem(&blank, &zero);
	if (!f)
		return;
	f->start_ns = now;
	f->last_ns = now;
	f->skb = (__u64)skb;
	f->free_ns = 0;
	f->free_location = 0;
	f->free_reason = 0;
	f->tuple = pkt->tuple;
	nt_print_take((void *)head, pkt, &f->print);
	f->vm_ifindex = vm;
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
	if (bpf_map_update_elem(&flights, &head, f, BPF_ANY)) {
		nt_lost(NT_LOSS_MAP_FULL);
		return;
	}
	nt_count_end(f, NT_END_STARTED);
	if (direction == NT_DIRECTION_RX) {
		__u32 task = bpf_get_current_pid_tgid();
		__u64 *kick = bpf_map_lookup_elem(&kicks, &task);

		if (kick) {
			nt_pair(cfg, f, NT_STAGE_VM_KICK, stage, ifindex, now - *kick);
			bpf_map_delete_elem(&kicks, &task);
		}
	}
}

/* May a packet nobody follows enter here? */
static __always_inline int nt_may_enter(const struct nt_flight_cfg *cfg,
					const struct nt_device *device, struct sk_buff *skb,
					const __u8 stage, const int direct)
{
	const __u32 roles = stage == NT_STAGE_DEV_RX ? NT_ROLE_VNET | NT_ROLE_PORT :
						       NT_ROLE_VNET | NT_ROLE_HOST;

	if (!cfg->entry_open)
		return 0;
	if (!(device->role & roles)) {
		nt_explain(cfg, NT_EXPLAIN_DEVICE);
		return 0;
	}
	/* Received by a device before: it had its chance there. */
	if (stage == NT_STAGE_DEV_QUEUE && NT_GET(skb, skb_iif)) {
		nt_explain(cfg, NT_EXPLAIN_FORWARDED);
		return 0;
	}
	return 1;
}

/*
 * A stage was reached. `stage` is a constant; `dev` is the device of the stage or NULL. Followed
 * packets go on: then it returns 1. Others may enter at dev.rx, or at dev.queue when the host
 * itself sends them.
 */
static __always_inline int nt_follow(void *ctx, struct sk_buff *skb, struct net_device *dev,
				     const __u8 stage, const int direct)
{
	const int can_enter = stage == NT_STAGE_DEV_RX || stage == NT_STAGE_DEV_QUEUE;
	struct nt_flight_cfg *cfg;
	struct nt_device_key key = {};
	struct nt_device *device = 0;
	__u64 now, head;
	struct nt_flight *f;

	cfg = nt_awake(&now);
	if (!cfg || !skb)
		return 0;
	head = (__u64)NT_GET(skb, head);
	f = bpf_map_lookup_elem(&flights, &head);
	if (!f && !can_enter)
		return 0;
	if (dev && nt_device_key(dev, &key, direct))
		device = bpf_map_lookup_elem(&devices, &key);
	if (f) {
		/* Back at its entry: nothing comes in twice, so the buffer is somebody else's. */
		if (f->print.digest == nt_print_read((void *)head, &f->print) &&
		    !(stage == f->entry_stage && key.ifindex == f->entry_ifindex)) {
			nt_advance(ctx, cfg, f, head, skb, stage, device ? device->role : 0,
				   key.ifindex, now);
			return 1;
		}
		nt_evict(f, head);
	}
	if (!can_enter)
		return 0;
	if (!device)
		nt_explain(cfg, NT_EXPLAIN_DEVICE);
	else if (nt_may_enter(cfg, device, skb, stage, direct))
		nt_enter(cfg, device, head, skb, stage, key.ifindex, now, direct);
	return 0;
}

/* What a program returns: the verifier takes nothing but 0 from fentry. */
static __always_inline int nt_reach(void *ctx, struct sk_buff *skb, struct net_device *dev,
				    const __u8 stage, const int direct)
{
	nt_follow(ctx, skb, dev, stage, direct);
	return 0;
}

/* Devices */

NT_TRACE(dev_rx, netif_receive_skb, struct sk_buff *, skb)
{
	if (!skb)
		return 0;
	return nt_reach(ctx, skb, NT_GET(skb, dev), NT_STAGE_DEV_RX, direct);
}

NT_TRACE(dev_bklg, netif_rx, struct sk_buff *, skb)
{
	if (!skb)
		return 0;
	return nt_reach(ctx, skb, NT_GET(skb, dev), NT_STAGE_DEV_BKLG, direct);
}

NT_TRACE(dev_queue, net_dev_queue, struct sk_buff *, skb)
{
	if (!skb)
		return 0;
	return nt_reach(ctx, skb, NT_GET(skb, dev), NT_STAGE_DEV_QUEUE, direct);
}

NT_TRACE(dev_xmit, net_dev_start_xmit, struct sk_buff *, skb, struct net_device *, dev)
{
	if (!dev)
		return 0;
	return nt_reach(ctx, skb, dev, NT_STAGE_DEV_XMIT, direct);
}

/* Evidence. The reason is an argument since v5.17; the others are not there to be read. */
NT_TRACE(free_drop, kfree_skb, struct sk_buff *, skb, void *, location)
{
	struct nt_flight *f;
	__u64 now, head;

	if (!nt_awake(&now) || !skb)
		return 0;
	head = (__u64)NT_GET(skb, head);
	f = bpf_map_lookup_elem(&flights, &head);
	/* It, or a clone of it; not another packet in its buffer. */
	if (!f || f->print.digest != nt_print_read((void *)head, &f->print))
		return 0;
	f->free_ns = now;
	f->free_location = (__u64)location;
	if (bpf_core_type_exists(enum skb_drop_reason))
		f->free_reason = ((__u64 *)ctx)[2];
	return 0;
}

/* Open vSwitch */

NT_ENTRY(ovs_in, ovs_vport_receive, void *, vport, struct sk_buff *, skb)
{
	return nt_reach(ctx, skb, 0, NT_STAGE_OVS_IN, direct);
}

NT_ENTRY(ovs_lookup, ovs_dp_process_packet, struct sk_buff *, skb)
{
	return nt_reach(ctx, skb, 0, NT_STAGE_OVS_LOOKUP, direct);
}

/* The buffer changes here: leave the second key for ovs.back. */
NT_ENTRY(ovs_miss, ovs_dp_upcall, void *, dp, struct sk_buff *, skb)
{
	struct nt_flight *f;
	__u64 head, alias;

	if (!nt_follow(ctx, skb, 0, NT_STAGE_OVS_MISS, direct))
		return 0;
	head = (__u64)NT_GET(skb, head);
	f = bpf_map_lookup_elem(&flights, &head);
	if (!f || f->last_stage != NT_STAGE_OVS_MISS)
		return 0;
	alias = nt_key_of(&f->tuple, f->print.digest);
	if (bpf_map_update_elem(&aliases, &alias, &head, BPF_ANY))
		nt_lost(NT_LOSS_ALIAS_FULL);
	return 0;
}

NT_ENTRY(ovs_upq, queue_userspace_packet, void *, dp, struct sk_buff *, skb)
{
	return nt_reach(ctx, skb, 0, NT_STAGE_OVS_UPQ, direct);
}

/* A new skb from user space: find the flight by the second key and move it to this buffer. */
NT_ENTRY(ovs_back, ovs_flow_key_extract_userspace, void *, net, void *, attr, struct sk_buff *, skb)
{
	struct nt_flight_cfg *cfg;
	__u64 now, head, alias, *old_head, old;
	struct nt_flight *f, *moved;
	struct nt_print print;
	struct nt_pkt *pkt;
	__u32 slot = 1;
	int waited = 0;

	cfg = nt_awake(&now);
	if (!cfg || !skb)
		return 0;
	pkt = bpf_map_lookup_elem(&parsed, &slot);
	if (!pkt)
		return 0;
	if (nt_parse_skb(skb, NT_AT_ETH | NT_NO_MAC | (direct ? NT_DIRECT : 0), pkt)) {
		nt_lost(NT_LOSS_READ_FAILED);
		return 0;
	}
	head = (__u64)NT_GET(skb, head);
	nt_print_take((void *)head, pkt, &print);
	alias = nt_key_of(&pkt->tuple, print.digest);
	old_head = bpf_map_lookup_elem(&aliases, &alias);
	if (!old_head)
		return 0;
	old = *old_head;
	bpf_map_delete_elem(&aliases, &alias);
	f = bpf_map_lookup_elem(&flights, &old);
	if (!f || f->print.digest != print.digest ||
	    (f->last_stage != NT_STAGE_OVS_UPQ && f->last_stage != NT_STAGE_OVS_MISS)) {
		f = bpf_map_lookup_elem(&parked, &alias);
		waited = 1;
	}
	if (!f)
		return 0;
	if (!waited && head == old) {
		f->print = print;
		nt_advance(ctx, cfg, f, head, skb, NT_STAGE_OVS_BACK, 0, 0, now);
		return 0;
	}
	moved = bpf_map_lookup_elem(&flights, &head);
	if (moved)
		nt_evict(moved, head);
	if (bpf_map_update_elem(&flights, &head, f, BPF_ANY)) {
		nt_lost(NT_LOSS_ALIAS_FULL);
		return 0;
	}
	if (waited)
		bpf_map_delete_elem(&parked, &alias);
	else
		bpf_map_delete_elem(&flights, &old);
	moved = bpf_map_lookup_elem(&flights, &head);
	if (moved) {
		moved->print = print;
		nt_advance(ctx, cfg, moved, head, skb, NT_STAGE_OVS_BACK, 0, 0, now);
	}
	return 0;
}

NT_ENTRY(ovs_exec, ovs_execute_actions, void *, dp, struct sk_buff *, skb)
{
	return nt_reach(ctx, skb, 0, NT_STAGE_OVS_EXEC, direct);
}

NT_ENTRY(ovs_send, ovs_vport_send, void *, vport, struct sk_buff *, skb)
{
	return nt_reach(ctx, skb, 0, NT_STAGE_OVS_SEND, direct);
}

/* Linux bridge */

NT_ENTRY(br_fwd, __br_forward, void *, port, struct sk_buff *, skb)
{
	return nt_reach(ctx, skb, 0, NT_STAGE_BR_FWD, direct);
}

NT_ENTRY(br_up, br_pass_frame_up, struct sk_buff *, skb)
{
	return nt_reach(ctx, skb, 0, NT_STAGE_BR_UP, direct);
}

/* Tap and vhost */

NT_ENTRY(vm_kick, handle_tx, void *, vhost_net)
{
	__u32 task = bpf_get_current_pid_tgid();
	__u64 now;

	if (nt_awake(&now))
		bpf_map_update_elem(&kicks, &task, &now, BPF_ANY);
	return 0;
}

NT_ENTRY(vm_xmit, tun_net_xmit, struct sk_buff *, skb, struct net_device *, dev)
{
	return nt_reach(ctx, skb, dev, NT_STAGE_VM_XMIT, direct);
}

/* The packet comes as void *: the verifier does not know its type. Bit 0 marks an XDP frame. */
NT_ENTRY(vm_take, tun_do_read, void *, tun, void *, tfile, void *, to, int, noblock, void *, ptr)
{
	if (!ptr || ((__u64)ptr & 1))
		return 0;
	return nt_reach(ctx, ptr, 0, NT_STAGE_VM_TAKE, 0);
}

NT_TRACE(vm_copied, skb_copy_datagram_iovec, struct sk_buff *, skb)
{
	if (!skb)
		return 0;
	return nt_reach(ctx, skb, NT_GET(skb, dev), NT_STAGE_VM_COPIED, direct);
}

char LICENSE[] SEC("license") = "GPL";
