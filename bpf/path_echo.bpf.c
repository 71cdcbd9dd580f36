// SPDX-License-Identifier: GPL-2.0-only
/*
 * path_echo - echo requests and their replies that pass this host
 *
 * Attaches: devices (tracepoints)
 * Reads:    skb, packet headers, device and its namespace
 * Keeps:    flights, 16384 x 224 bytes; echoes under way outside, 16384 x 88 bytes
 * Emits:    struct nt_flight when a packet leaves
 * Cost:     a packet on other devices: one lookup and a bit; on these: its headers, the filter
 *
 * What happened to a request and to its reply is put together by user space: a reply carries the
 * time its request came in.
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#define NT_DETAIL 1
#define NT_PATH 1 /* NT_PATH_ECHO */

/* Requests are chosen together with their replies. */
#define NT_CHOSEN_BY(f) nt_mix(NT_MIX_B, (f)->seq << 16 | (f)->tuple.dst_port)

#include "nt_filter.h"
#include "nt_path.h"

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

static __always_inline void nt_meet_path(void *ctx, const struct nt_flight_cfg *cfg, __u64 head,
					 struct sk_buff *skb, struct net_device *dev,
					 const struct nt_pkt *pkt, const __u8 stage, __u32 ifindex,
					 int in, int forward, __u64 now, const int direct)
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

static __always_inline void nt_freed_path(__u64 *ctx, const struct nt_flight_cfg *cfg,
					  struct nt_flight *f, struct sk_buff *skb,
					  __u64 location, const int direct)
{
}

char LICENSE[] SEC("license") = "GPL";
