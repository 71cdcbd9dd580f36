/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nt_path - packets that come in at one side of the host and leave at the other
 *
 * Forward comes in at side A and leaves at side B, the reply direction comes in at B and leaves at
 * A. A device of the wire is entered at dev.rx and left at dev.xmit; at one whose other end is the
 * host's own stack it is the other way round. Include it once, in front of what says which packets
 * of the path are followed: nt_meet_path(), and what happens to those that leave: nt_arrived().
 */
#ifndef NT_PATH_H
#define NT_PATH_H

#include "nt_attach.h"
#include "nt_flight.h"
#include "nt_follow.h"
#include "nt_parse.h"

/* A parsed packet of the path that nobody follows. `in`: it comes in, else it leaves. */
static __always_inline void nt_meet_path(void *ctx, const struct nt_flight_cfg *cfg, __u64 head,
					 struct sk_buff *skb, struct net_device *dev,
					 const struct nt_pkt *pkt, const __u8 stage, __u32 ifindex,
					 int in, int forward, __u64 now, const int direct);

/* The buffer of this flight is freed as a drop; 0: one in which nothing is followed. */
static __always_inline void nt_freed_path(__u64 *ctx, const struct nt_flight_cfg *cfg,
					  struct nt_flight *f, struct sk_buff *skb,
					  __u64 location, const int direct);

/* Whether what is at this stage comes in, as seen from between the two sides. */
static __always_inline int nt_comes_in(const __u8 stage, __u32 role)
{
	return (stage == NT_STAGE_DEV_XMIT) == !!(role & NT_ROLE_STACK);
}

static __always_inline int nt_parse_here(struct sk_buff *skb, const __u8 stage, const int direct,
					 struct nt_pkt *pkt)
{
	const int where = stage == NT_STAGE_DEV_XMIT ? NT_AT_ETH : NT_AT_DATA;

	if (!nt_parse_skb(skb, where | (direct ? NT_DIRECT : 0), pkt))
		return 1;
	nt_lost(NT_LOSS_READ_FAILED);
	return 0;
}

static __always_inline int nt_is_end(const struct nt_flight_cfg *cfg, const struct nt_flight *f,
				     struct net_device *dev, const __u8 stage, __u32 ifindex,
				     const int direct)
{
	const __u32 side = f->direction == NT_DIRECTION_FORWARD ? NT_ROLE_SIDE_B : NT_ROLE_SIDE_A;
	struct nt_device *device;

	if (stage == NT_STAGE_DEV_QUEUE)
		return 0;
	device = nt_device(cfg, dev, ifindex, direct);
	return device && (device->role & side) && !nt_comes_in(stage, device->role);
}

static __always_inline void nt_meet(void *ctx, const struct nt_flight_cfg *cfg, __u64 head,
				    struct sk_buff *skb, struct net_device *dev, const __u8 stage,
				    __u32 ifindex, const int direct)
{
	struct nt_device *device = nt_device(cfg, dev, ifindex, direct);
	struct nt_pkt *pkt;
	__u32 slot = 0;
	__u64 now;
	int in;

	pkt = bpf_map_lookup_elem(&parsed, &slot);
	if (!device || !pkt) {
		nt_explain(cfg, NT_EXPLAIN_DEVICE);
		return;
	}
	if (!cfg->entry_open || !nt_awake(cfg, &now) || !nt_parse_here(skb, stage, direct, pkt))
		return;
	if (device->vlan_id != NT_VLAN_NONE && device->vlan_id != pkt->vlan_id) {
		nt_explain(cfg, NT_EXPLAIN_PORT_VLAN);
		return;
	}
	in = nt_comes_in(stage, device->role);
	nt_meet_path(ctx, cfg, head, skb, dev, pkt, stage, ifindex, in,
		     in == !!(device->role & NT_ROLE_SIDE_A), now, direct);
}

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

NT_TRACE(dev_xmit, net_dev_start_xmit, struct sk_buff *, skb, struct net_device *, dev)
{
	if (!dev)
		return 0;
	return nt_reach_or_meet(ctx, skb, dev, NT_STAGE_DEV_XMIT, direct);
}

NT_TRACE(free_drop, kfree_skb, struct sk_buff *, skb, void *, location)
{
	const struct nt_flight_cfg *cfg = nt_on();

	if (cfg && skb)
		nt_freed_path(ctx, cfg, nt_freed(ctx, cfg, skb, (__u64)location, direct), skb,
			      (__u64)location, direct);
	return 0;
}

#endif
