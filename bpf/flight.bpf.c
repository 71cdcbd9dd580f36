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
 * Followed are packets from and to the chosen VM interfaces, see nt_follow.h. Over an upcall, where
 * a packet changes its buffer, a second key of addresses and fingerprint carries it on.
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#include "nt_attach.h"
#include "nt_channel.h"
#include "nt_filter.h"
#include "nt_flight.h"
#include "nt_follow.h"
#include "nt_guard.h"
#include "nt_hist.h"
#include "nt_identity.h"
#include "nt_parse.h"

static __always_inline int nt_is_end(const struct nt_flight_cfg *cfg, const struct nt_flight *f,
				     struct net_device *dev, const __u8 stage, __u32 ifindex,
				     const int direct)
{
	const int from_vm = f->direction == NT_DIRECTION_RX;
	struct nt_device *device;
	__u32 role;

	if (!from_vm && !(cfg->flags & NT_FLIGHT_UNTIL_TAP))
		return stage == NT_STAGE_VM_COPIED;
	if (stage != NT_STAGE_DEV_RX && stage != NT_STAGE_DEV_BKLG && stage != NT_STAGE_DEV_XMIT)
		return 0;
	if (from_vm && ifindex == f->entry_ifindex)
		return 0;
	device = nt_device(cfg, dev, ifindex, direct);
	role = device ? device->role : 0;
	if (!from_vm)
		return stage == NT_STAGE_DEV_XMIT && (role & NT_ROLE_VNET);
	if (stage != NT_STAGE_DEV_XMIT)
		return (role & NT_ROLE_HOST) && !(cfg->flags & NT_FLIGHT_ONLY_UPLINK);
	if (role & NT_ROLE_PASS)
		return 0;
	return !(cfg->flags & NT_FLIGHT_ONLY_UPLINK) || (role & NT_ROLE_UPLINK);
}

static __always_inline void nt_arrived(const struct nt_flight_cfg *cfg, struct nt_flight *f,
				       __u64 head)
{
}

/* The summary tells of no packet. */
static __always_inline __attribute__((unused)) void nt_told(const struct nt_flight_cfg *cfg,
							     const struct nt_flight *f)
{
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
	if (dev->vlan_id != NT_VLAN_NONE && dev->vlan_id != pkt->vlan_id) {
		nt_explain(cfg, NT_EXPLAIN_PORT_VLAN);
		return;
	}
	reject = nt_filter_match(&cfg->filter, pkt);
	if (reject) {
		nt_explain(cfg, NT_EXPLAIN_FILTER + reject);
		return;
	}
	if (direction == NT_DIRECTION_TX) {
		vm = nt_addressee(cfg, pkt, ifindex);
		if (!vm)
			return;
	}
	if (nt_guard_counts(&cfg->guard, &pkt->tuple))
		return;
	f = nt_start(pkt, head, skb, stage, direction, ifindex, now, direct);
	if (!f)
		return;
	f->vm_ifindex = vm;
	if (!nt_keep(f, head))
		return;
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

/* Packets enter at dev.rx, or at dev.queue when the host itself sends them. */
static __always_inline void nt_meet(void *ctx, const struct nt_flight_cfg *cfg, __u64 head,
				    struct sk_buff *skb, struct net_device *dev, const __u8 stage,
				    __u32 ifindex, const int direct)
{
	struct nt_device *device = nt_device(cfg, dev, ifindex, direct);
	__u64 now;

	if (!device)
		nt_explain(cfg, NT_EXPLAIN_DEVICE);
	else if (nt_may_enter(cfg, device, skb, stage, direct) && nt_awake(cfg, &now))
		nt_enter(cfg, device, head, skb, stage, ifindex, now, direct);
}

/* Devices */

NT_TRACE(dev_rx, netif_receive_skb, struct sk_buff *, skb)
{
	if (!skb)
		return 0;
	return nt_reach_or_meet(ctx, skb, NT_GET(skb, dev), NT_STAGE_DEV_RX, direct);
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
	return nt_reach_or_meet(ctx, skb, NT_GET(skb, dev), NT_STAGE_DEV_QUEUE, direct);
}

NT_TRACE(dev_xmit, net_dev_start_xmit, struct sk_buff *, skb, struct net_device *, dev)
{
	if (!dev)
		return 0;
	return nt_reach(ctx, skb, dev, NT_STAGE_DEV_XMIT, direct);
}

NT_TRACE(free_drop, kfree_skb, struct sk_buff *, skb, void *, location)
{
	const struct nt_flight_cfg *cfg = nt_on();

	if (cfg && skb)
		nt_freed(ctx, cfg, skb, (__u64)location, direct);
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

	nt_reach(ctx, skb, 0, NT_STAGE_OVS_MISS, direct);
	if (!skb)
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
	const struct nt_flight_cfg *cfg = nt_on();
	__u64 now, head, alias, *old_head, old;
	struct nt_flight *f, *moved;
	struct nt_print print;
	struct nt_pkt *pkt;
	__u32 slot = 1;
	int waited = 0;

	if (!cfg || !skb || !nt_awake(cfg, &now))
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
		nt_advance(ctx, cfg, f, head, skb, 0, NT_STAGE_OVS_BACK, 0, now, direct);
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
		nt_advance(ctx, cfg, moved, head, skb, 0, NT_STAGE_OVS_BACK, 0, now, direct);
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
	const struct nt_flight_cfg *cfg = nt_on();
	__u32 task = bpf_get_current_pid_tgid();
	__u64 now;

	if (cfg && nt_awake(cfg, &now))
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
