// SPDX-License-Identifier: GPL-2.0-only
/*
 * path_flow - TCP and UDP packets that pass this host, and the totals of their flows
 *
 * Attaches: devices (tracepoints)
 * Reads:    skb, packet headers, device and its namespace
 * Keeps:    flights, 65536 x 184 bytes (detail 16384); flows, 8192 x 328 bytes
 * Emits:    struct nt_flight when a packet leaves, only in the detail build
 * Cost:     a packet on other devices: one lookup and a bit; on these: its headers, the filter, two
 *           lookups more
 *
 * A unit is one buffer, of several segments maybe. A buffer may be cut into others on its way, or
 * come back from user space as another one: what leaves and is not followed is counted with its
 * flow, and user space takes for left what lies below the highest sequence number that did.
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#define NT_PATH 2 /* NT_PATH_FLOW */

#include "nt_filter.h"
#include "nt_hist.h"
#include "nt_path.h"

#define NT_TCP_PLAIN (NT_TCP_SYN | NT_TCP_FIN | NT_TCP_RST)

/*
 * The totals of the flow, by addresses and ports of the forward direction. A function, for programs
 * need it three times, and 4.19 takes 4096 instructions.
 */
static __attribute__((noinline)) struct nt_path_flow *nt_flow_of(const struct nt_tuple *t,
								  int forward, int make)
{
	__u32 zero = 0;
	struct nt_tuple *key = bpf_map_lookup_elem(&flow_key, &zero);
	struct nt_path_flow *flow, *blank;

	if (!key)
		return 0;
	__builtin_memcpy(key->src, forward ? t->src : t->dst, sizeof(key->src));
	__builtin_memcpy(key->dst, forward ? t->dst : t->src, sizeof(key->dst));
	key->src_port = forward ? t->src_port : t->dst_port;
	key->dst_port = forward ? t->dst_port : t->src_port;
	key->eth_proto = t->eth_proto;
	key->family = t->family;
	key->protocol = t->protocol;
	flow = bpf_map_lookup_elem(&flows, key);
	if (flow || !make)
		return flow;
	blank = bpf_map_lookup_elem(&blank_flow, &zero);
	if (blank)
		bpf_map_update_elem(&flows, key, blank, BPF_NOEXIST);
	flow = bpf_map_lookup_elem(&flows, key);
	if (!flow)
		nt_lost(NT_LOSS_GROUP_FULL);
	return flow;
}

static __always_inline struct nt_way *nt_way_of(const struct nt_tuple *t, int forward, int make)
{
	struct nt_path_flow *flow = nt_flow_of(t, forward, make);

	if (!flow)
		return 0;
	return forward ? &flow->way[NT_DIRECTION_FORWARD] : &flow->way[NT_DIRECTION_REPLY];
}

static __always_inline __u32 nt_end_seq(const struct nt_pkt *pkt)
{
	return pkt->seq + pkt->payload_len + !!(pkt->tcp_flags & NT_TCP_SYN) +
	       !!(pkt->tcp_flags & NT_TCP_FIN);
}

/* Whether a packet that ended in this range was freed here. */
static __always_inline int nt_was_lost(const struct nt_way *way, __u32 seq, __u32 end)
{
	int i, lost = 0;

#pragma clang loop unroll(full)
	for (i = 0; i < NT_WAY_LOST; i++)
		lost |= way->lost[i] - seq - 1 < end - seq;
	return lost;
}

static __always_inline void nt_came_in(struct nt_way *way, const struct nt_pkt *pkt, __u32 segs,
				       __u64 now)
{
	const __u32 end = nt_end_seq(pkt), known = way->known;

	__sync_fetch_and_add(&way->units_in, 1);
	__sync_fetch_and_add(&way->segs_in, segs);
	__sync_fetch_and_add(&way->bytes_in, pkt->payload_len);
	way->last_ns = now;
	if (NT_GROUPS || !pkt->tcp_hdr_len)
		return;
	if (pkt->tcp_flags & NT_TCP_SYN)
		__sync_fetch_and_add(&way->syn, 1);
	if (pkt->tcp_flags & NT_TCP_FIN)
		__sync_fetch_and_add(&way->fin, 1);
	if (pkt->tcp_flags & NT_TCP_RST)
		__sync_fetch_and_add(&way->rst, 1);
	if (end == pkt->seq) {
		/* Neither data nor the beginning or the end of any. */
		if (!(pkt->tcp_flags & NT_TCP_PLAIN) && (known & NT_WAY_ACK) &&
		    way->last_ack == pkt->ack)
			__sync_fetch_and_add(&way->dup_ack, 1);
	} else if (!(known & NT_WAY_IN) || (__s32)(end - way->top_in) > 0) {
		way->top_in = end;
		way->known |= NT_WAY_IN;
	} else if ((known & NT_WAY_OUT) && (__s32)(end - way->top_out) <= 0 &&
		   !nt_was_lost(way, pkt->seq, end)) {
		__sync_fetch_and_add(&way->retrans_after, 1);
	} else {
		__sync_fetch_and_add(&way->retrans_before, 1);
	}
	if (pkt->tcp_flags & NT_TCP_ACK) {
		way->last_ack = pkt->ack;
		way->known |= NT_WAY_ACK;
	}
}

static __always_inline void nt_went_out(struct nt_way *way, __u32 segs, __u32 bytes, __u32 end_seq)
{
	__sync_fetch_and_add(&way->units_out, 1);
	__sync_fetch_and_add(&way->segs_out, segs);
	__sync_fetch_and_add(&way->bytes_out, bytes);
	if (!(way->known & NT_WAY_OUT) || (__s32)(end_seq - way->top_out) > 0) {
		way->top_out = end_seq;
		way->known |= NT_WAY_OUT;
	}
}

#if NT_GROUPS
/* Bytes behind the IP headers. */
static __always_inline __u32 nt_frag_bytes(const struct nt_pkt *pkt)
{
	return pkt->total_len - (pkt->l4_off - pkt->l3_off);
}

/* The datagram a fragment belongs to. */
static __attribute__((noinline)) struct nt_group *nt_group_of(const struct nt_tuple *t, __u32 id,
							       int make)
{
	__u32 zero = 0;
	struct nt_group_key *key = bpf_map_lookup_elem(&group_key, &zero);
	struct nt_group *group, *blank;

	if (!key)
		return 0;
	__builtin_memcpy(key->src, t->src, sizeof(key->src));
	__builtin_memcpy(key->dst, t->dst, sizeof(key->dst));
	key->id = id;
	key->family = t->family;
	key->protocol = t->protocol;
	group = bpf_map_lookup_elem(&groups, key);
	if (group || !make)
		return group;
	blank = bpf_map_lookup_elem(&blank_group, &zero);
	if (blank)
		bpf_map_update_elem(&groups, key, blank, BPF_NOEXIST);
	group = bpf_map_lookup_elem(&groups, key);
	if (!group)
		nt_lost(NT_LOSS_GROUP_FULL);
	return group;
}

static __always_inline void nt_frag_out(struct nt_group *group, __u32 bytes, __u64 now)
{
	__sync_fetch_and_add(&group->bytes_out, bytes);
	__sync_fetch_and_add(&group->frags_out, 1);
	group->last_ns = now;
}

/* A fragment comes in; ports, and with them the whole filter, are known of the first one only. */
static __always_inline void nt_frag_in(struct nt_group *group, const struct nt_pkt *pkt,
				       __u32 reject, int forward, __u64 now)
{
	const __u32 bytes = nt_frag_bytes(pkt);

	if (!group->first_ns) {
		group->first_ns = now;
		group->direction = forward ? NT_DIRECTION_FORWARD : NT_DIRECTION_REPLY;
	}
	__sync_fetch_and_add(&group->bytes_in, bytes);
	__sync_fetch_and_add(&group->frags_in, 1);
	group->last_ns = now;
	if (!(pkt->flags & NT_PKT_MF))
		group->total = pkt->frag_off + bytes;
	if (!pkt->frag_off) {
		group->src_port = pkt->tuple.src_port;
		group->dst_port = pkt->tuple.dst_port;
		group->flags |= NT_GROUP_PORTS;
		if (reject)
			group->flags |= NT_GROUP_REFUSED;
	}
}

/* 1 if it was a fragment, which has no flow; unless it is refused for something but its ports. */
static __always_inline int nt_meet_frag(const struct nt_pkt *pkt, __u32 reject, int in,
					int forward, __u64 now)
{
	struct nt_group *group;

	if (!(pkt->flags & NT_PKT_FRAG) || (reject && reject < NT_REJECT_PORT))
		return 0;
	group = nt_group_of(&pkt->tuple, pkt->ip_id, in);
	if (!group)
		return 1;
	if (in)
		nt_frag_in(group, pkt, reject, forward, now);
	else
		nt_frag_out(group, nt_frag_bytes(pkt), now);
	return 1;
}

/* 1 if it was a fragment that was freed: evidence for its datagram. */
static __always_inline int nt_freed_frag(__u64 *ctx, const struct nt_pkt *pkt, __u64 location,
					 __u64 now)
{
	struct nt_group *group;

	if (!(pkt->flags & NT_PKT_FRAG))
		return 0;
	group = nt_group_of(&pkt->tuple, pkt->ip_id, 0);
	if (group) {
		group->free_ns = now;
		group->free_location = location;
		group->free_reason = nt_free_reason(ctx);
	}
	return 1;
}
#else
static __always_inline int nt_freed_frag(__u64 *ctx, const struct nt_pkt *pkt, __u64 location,
					 __u64 now)
{
	return 0;
}

static __always_inline int nt_meet_frag(const struct nt_pkt *pkt, __u32 reject, int in,
					int forward, __u64 now)
{
	return 0;
}
#endif

static __always_inline void nt_arrived(const struct nt_flight_cfg *cfg, struct nt_flight *f,
				       __u64 head)
{
	__u32 direction = f->direction & 1;
	struct nt_way *way = nt_way_of(&f->tuple, direction == NT_DIRECTION_FORWARD, 0);
	struct nt_hist *hist = bpf_map_lookup_elem(&times, &direction);

	if (way)
		nt_went_out(way, f->segs ? f->segs : 1, f->payload, f->end_seq);
	if (hist)
		nt_hist_add(hist, f->last_ns - f->start_ns, cfg->epoch);
}

/* What leaves is counted in the kernel, whether user space hears of it or not. */
static __always_inline __attribute__((unused)) void nt_told(const struct nt_flight_cfg *cfg,
							     const struct nt_flight *f)
{
}

static __always_inline __u32 nt_segs(struct sk_buff *skb, __u64 head, const int direct)
{
	unsigned char *end = (unsigned char *)head + NT_GET(skb, end);
	__u16 segs = 0;

	bpf_core_read(&segs, sizeof(segs), &((struct skb_shared_info *)end)->gso_segs);
	return segs ? segs : 1;
}

/* The flight of a packet that is in another buffer than it came in; `head` becomes that buffer. */
static __always_inline struct nt_flight *nt_flight_of(const struct nt_pkt *pkt, __u64 *head)
{
	struct nt_print print;
	struct nt_flight *f;
	__u64 alias, *old;

	nt_print_take((void *)*head, pkt, &print);
	alias = nt_key_of(&pkt->tuple, print.digest);
	old = bpf_map_lookup_elem(&aliases, &alias);
	if (!old)
		return 0;
	*head = *old;
	f = bpf_map_lookup_elem(&flights, head);
	return f && f->print.digest == print.digest ? f : 0;
}

static __always_inline void nt_meet_path(void *ctx, const struct nt_flight_cfg *cfg, __u64 head,
					 struct sk_buff *skb, struct net_device *dev,
					 const struct nt_pkt *pkt, const __u8 stage, __u32 ifindex,
					 int in, int forward, __u64 now, const int direct)
{
	__u32 reject, segs;
	struct nt_flight *f;
	struct nt_way *way;
	__u64 alias;

	if (!(cfg->directions & (forward ? 1 << NT_DIRECTION_FORWARD : 1 << NT_DIRECTION_REPLY))) {
		nt_explain(cfg, NT_EXPLAIN_DIRECTION);
		return;
	}
	reject = nt_filter_match_way(&cfg->filter, pkt, !forward);
	if (nt_meet_frag(pkt, reject, in, forward, now))
		return;
	if (reject) {
		nt_explain(cfg, NT_EXPLAIN_FILTER + reject);
		return;
	}
	if (in && nt_guard_counts(&cfg->guard, &pkt->tuple))
		return;
	way = nt_way_of(&pkt->tuple, forward, in);
	if (!way) {
		if (!in)
			nt_count(&rejects, NT_EXPLAIN_UNPAIRED);
		return;
	}
	segs = nt_segs(skb, head, direct);
	if (!in) {
		f = nt_flight_of(pkt, &head);
		if (!f) {
			__sync_fetch_and_add(&way->split_out, 1);
			nt_went_out(way, segs, pkt->payload_len, nt_end_seq(pkt));
			return;
		}
		/* Of what was cut into pieces, this is the first: the others are counted above. */
		f->segs = segs;
		f->payload = pkt->payload_len;
		f->end_seq = nt_end_seq(pkt);
		nt_advance(ctx, cfg, f, head, skb, dev, stage, ifindex, now, direct);
		return;
	}
	nt_came_in(way, pkt, segs, now);
	f = nt_start(pkt, head, skb, stage,
		     forward ? NT_DIRECTION_FORWARD : NT_DIRECTION_REPLY, ifindex, now, direct);
	if (!f)
		return;
	f->payload = pkt->payload_len;
	f->end_seq = nt_end_seq(pkt);
	if (!nt_keep(f, head))
		return;
	alias = nt_key_of(&f->tuple, f->print.digest);
	if (bpf_map_update_elem(&aliases, &alias, &head, BPF_ANY))
		nt_lost(NT_LOSS_ALIAS_FULL);
}

static __always_inline void nt_freed_path(__u64 *ctx, const struct nt_flight_cfg *cfg,
					  struct nt_flight *f, struct sk_buff *skb,
					  __u64 location, const int direct)
{
	struct nt_way *way;
	struct nt_pkt *pkt;
	__u64 now, head;
	__u32 slot = 1;

	if (!f) {
		pkt = bpf_map_lookup_elem(&parsed, &slot);
		if (!pkt || nt_parse_skb(skb, NT_AT_ANY | (direct ? NT_DIRECT : 0), pkt))
			return;
		if (!nt_awake(cfg, &now) || nt_freed_frag(ctx, pkt, location, now))
			return;
		head = (__u64)NT_GET(skb, head);
		f = nt_flight_of(pkt, &head);
		if (!f)
			return;
		nt_note_free(ctx, f, location, now);
	}
	way = nt_way_of(&f->tuple, f->direction == NT_DIRECTION_FORWARD, 0);
	if (way) {
		slot = way->lost_count++;
		way->lost[slot % NT_WAY_LOST] = f->end_seq;
	}
}

char LICENSE[] SEC("license") = "GPL";
