// SPDX-License-Identifier: GPL-2.0-only
/*
 * path - packets that come in at one side of the host and leave at the other
 *
 * Attaches: devices (tracepoints)
 * Reads:    skb, packet headers, device and its namespace
 * Keeps:    flights, 16384 x 608 bytes; echoes under way outside, 16384 x 64 bytes
 * Emits:    struct nt_flight when a packet leaves
 * Cost:     a packet on other devices: one lookup and a bit; on these: its headers, the filter
 *
 * Forward comes in at side A and leaves at side B, the reply direction comes in at B and leaves at
 * A. A device of the wire is entered at dev.rx and left at dev.xmit; at one whose other end is the
 * host's own stack it is the other way round. What happened to a request and to its reply is put
 * together by user space: a reply carries the time its request came in.
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#define NT_DETAIL 1
#define NT_PATH 1

#include "nt_attach.h"
#include "nt_filter.h"
#include "nt_flight.h"
#include "nt_follow.h"
#include "nt_guard.h"
#include "nt_parse.h"

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

/* The reply to an echo request that looks like this; of a reply, itself. */
static __always_inline struct nt_echo_key *nt_echo_key(const struct nt_tuple *t, __u64 seq,
							int request)
{
	__u32 zero = 0;
	struct nt_echo_key *key = bpf_map_lookup_elem(&echo_key, &zero);

	if (!key)
		return 0;
	__builtin_memcpy(key->reply.src, request ? t->dst : t->src, sizeof(t->src));
	__builtin_memcpy(key->reply.dst, request ? t->src : t->dst, sizeof(t->dst));
	key->reply.src_port = 0;
	key->reply.dst_port = t->dst_port;
	key->reply.eth_proto = t->eth_proto;
	key->reply.family = t->family;
	key->reply.protocol = t->protocol;
	key->seq = seq;
	return key;
}

static __always_inline void nt_echo_put(const struct nt_echo_key *key, __u64 request_ns,
					__u64 left_ns, __u64 head, __u32 ifindex)
{
	struct nt_echo echo = {
		.request_ns = request_ns, .left_ns = left_ns, .head = head, .rx_ifindex = ifindex
	};

	if (bpf_map_update_elem(&echoes, key, &echo, BPF_ANY))
		nt_lost(NT_LOSS_ALIAS_FULL);
}

/* A request has left, maybe with other addresses: its reply will have those. */
static __always_inline void nt_arrived(const struct nt_flight_cfg *cfg, struct nt_flight *f,
				       __u64 head)
{
	const int request = f->direction == NT_DIRECTION_FORWARD;
	struct nt_echo_key *key;
	struct nt_echo *echo;

	if (nt_tuple_again((void *)head, &f->print, &f->out))
		nt_lost(NT_LOSS_READ_FAILED);
	if (!(cfg->flags & NT_FLIGHT_ECHO))
		return;
	key = request ? nt_echo_key(&f->out, f->seq, 1) : 0;
	if (!key)
		return;
	echo = bpf_map_lookup_elem(&echoes, key);
	if (echo && echo->request_ns == f->start_ns)
		echo->left_ns = f->last_ns;
	else
		nt_echo_put(key, f->start_ns, f->last_ns, 0, 0);
}

/*
 * A reply has left, and user space hears of it: nothing is to be known of its echo any more. What
 * it does not hear of stays, so that it can tell a record that was lost from a reply that never
 * came.
 */
static __always_inline void nt_told(const struct nt_flight_cfg *cfg, const struct nt_flight *f)
{
	struct nt_echo_key *key;

	if (!(cfg->flags & NT_FLIGHT_ECHO) || f->direction == NT_DIRECTION_FORWARD)
		return;
	key = nt_echo_key(&f->out, f->seq, 0);
	if (key)
		bpf_map_delete_elem(&echoes, key);
}

/* It came in as one buffer and left as another, known by what it says. */
static __always_inline void nt_left_unfollowed(void *ctx, const struct nt_flight_cfg *cfg,
					       const struct nt_echo *echo, struct nt_flight *f,
					       __u64 request_ns, __u64 came_ns)
{
	__u64 before = echo->head;
	struct nt_flight *was = bpf_map_lookup_elem(&flights, &before);

	if (was && was->start_ns == came_ns)
		bpf_map_delete_elem(&flights, &before);
	f->request_ns = request_ns;
	f->last_ns = f->start_ns;
	f->start_ns = came_ns;
	f->entry_ifindex = echo->rx_ifindex;
	f->end = NT_END_COMPLETED;
	nt_emit(ctx, cfg, f);
}

/*
 * What becomes of an echo that nobody follows: NT_ECHO_FOLLOW it, NT_ECHO_LEFT as another buffer
 * than it came in as, or an enum nt_explain why neither.
 */
#define NT_ECHO_FOLLOW -1
#define NT_ECHO_LEFT -2

static __always_inline int nt_echo_fate(const struct nt_flight_cfg *cfg, struct nt_echo *echo,
					const struct nt_echo_key *key, int in, int request,
					__u64 head, __u32 ifindex, __u64 now)
{
	__u64 *reached;

	if (in && request) {
		if (echo && now - echo->request_ns < cfg->echo_ns)
			return NT_EXPLAIN_DUPLICATE;
		nt_echo_put(key, now, 0, head, ifindex);
		return NT_ECHO_FOLLOW;
	}
	if (!echo) {
		if (request)
			nt_echo_put(key, 0, now, 0, 0);
		return in || request ? NT_EXPLAIN_UNPAIRED : NT_EXPLAIN_ECHO;
	}
	if (!in && !request)
		return NT_ECHO_LEFT;
	reached = in ? &echo->replied_ns : &echo->left_ns;
	if (*reached)
		return NT_EXPLAIN_DUPLICATE;
	*reached = now;
	if (!in)
		return NT_ECHO_LEFT;
	echo->head = head;
	echo->rx_ifindex = ifindex;
	/* Its request was only seen when it left: that has been counted. */
	return echo->request_ns ? NT_ECHO_FOLLOW : NT_EXPLAIN_ECHO;
}

static __always_inline void nt_meet_echo(void *ctx, const struct nt_flight_cfg *cfg, __u64 head,
					 struct sk_buff *skb, const struct nt_pkt *pkt,
					 const __u8 stage, __u32 ifindex, int in, int forward,
					 __u64 now, const int direct)
{
	const int request = pkt->icmp_type == (pkt->tuple.family == 6 ? 128 : 8);
	struct nt_echo_key *key = nt_echo_key(&pkt->tuple, pkt->icmp_seq, request);
	struct nt_echo *echo;
	struct nt_flight *f;
	__u32 reject;
	int fate;

	if (!key)
		return;
	if (!(pkt->flags & NT_PKT_ECHO) ||
	    (cfg->echo_id != NT_ECHO_ANY && request && cfg->echo_id != pkt->icmp_id)) {
		nt_explain(cfg, NT_EXPLAIN_ECHO);
		return;
	}
	echo = bpf_map_lookup_elem(&echoes, key);
	reject = !echo || (in && request) ? nt_filter_match_way(&cfg->filter, pkt, !request) : 0;
	if (reject)
		fate = NT_EXPLAIN_FILTER + reject;
	else if (request == forward)
		fate = nt_echo_fate(cfg, echo, key, in, request, head, ifindex, now);
	else /* Comes in where it should leave: are the sides the wrong way round? */
		fate = request && in ? NT_EXPLAIN_UNPAIRED : NT_EXPLAIN_DIRECTION;
	if (fate >= 0) {
		nt_count(&rejects, fate); /* two of them belong to every report */
		return;
	}
	if (nt_guard_counts(&cfg->guard, &pkt->tuple))
		return;
	f = nt_start(pkt, head, skb, stage, request ? NT_DIRECTION_FORWARD : NT_DIRECTION_REPLY,
		     ifindex, now, direct);
	if (!f)
		return;
	f->request_ns = 0;
	f->out = pkt->tuple;
	if (fate == NT_ECHO_FOLLOW) {
		if (!request && echo)
			f->request_ns = echo->request_ns;
		nt_keep(f, head);
	} else if (echo) {
		nt_left_unfollowed(ctx, cfg, echo, f, request ? 0 : echo->request_ns,
				   request ? echo->request_ns : echo->replied_ns);
	}
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
	nt_meet_echo(ctx, cfg, head, skb, pkt, stage, ifindex, in,
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
	return nt_freed(ctx, skb, (__u64)location, direct);
}

char LICENSE[] SEC("license") = "GPL";
