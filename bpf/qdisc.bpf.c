// SPDX-License-Identifier: GPL-2.0-only
/*
 * qdisc - how long packets wait in the transmit queue of a device
 *
 * Attaches: net:net_dev_queue, qdisc:qdisc_dequeue, net:net_dev_start_xmit, net:net_dev_xmit,
 *           skb:kfree_skb, skb:consume_skb
 * Reads:    skb, packet headers, device and its namespace, root qdisc of the transmit queue
 * Keeps:    queued, 16384 x 152 bytes; queues, 1024 x 376 bytes; queue_times, per CPU, 512 x 512
 *           bytes; queue_drops, 1024 x 32 bytes; orders, 8192 x 24 bytes
 * Emits:    struct nt_queued at the end of a packet, only with NT_QDISC_DETAILS
 * Cost:     a packet: its headers if they are asked for, the update of a map and its deletion,
 *           three lookups; where it only passes, a lookup per free
 *
 * Between entry and driver of one device the address of the skb is the packet. The enqueue itself
 * is no stage: its tracepoint comes after it, 5.10 has none. Only the first packet of a bulk has a
 * dequeue of its own; the others hang on it.
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "nt_attach.h"
#include "nt_channel.h"
#include "nt_filter.h"
#include "nt_guard.h"
#include "nt_hist.h"
#include "nt_identity.h"
#include "nt_parse.h"
#include "nt_qdisc.h"

/* The configuration while the run is on; else 0. */
static __always_inline const struct nt_qdisc_cfg *nt_on(void)
{
	const struct nt_qdisc_cfg *cfg;
	__u32 zero = 0;

	cfg = bpf_map_lookup_elem(&nt_cfg, &zero);
	return cfg && cfg->enabled ? cfg : 0;
}

static __always_inline int nt_awake(const struct nt_qdisc_cfg *cfg, __u64 *now)
{
	*now = bpf_ktime_get_ns();
	return !nt_guard_asleep(&cfg->guard, *now);
}

static __always_inline void nt_explain(const struct nt_qdisc_cfg *cfg, __u32 step)
{
	__u64 *count;

	if (!(cfg->flags & NT_QDISC_EXPLAIN))
		return;
	count = bpf_map_lookup_elem(&rejects, &step);
	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void nt_add(struct nt_qdisc_row *row, const __u32 what, __u64 by)
{
	__sync_fetch_and_add(&row->counts[what], by);
}

/* Slot of a length: 0, 1, 2 to 3, 4 to 7 and so on. */
static __always_inline __u32 nt_length_slot(__u32 length)
{
	__u32 slot = length ? nt_log2(length) + 1 : 0;

	return slot < NT_QDISC_LENGTHS ? slot : NT_QDISC_LENGTHS - 1;
}

/*
 * The queue a packet is for, and its root qdisc; the transmit queue has been chosen by now. Returns
 * 0, or -1 when that could not be read.
 */
static __always_inline int nt_place(struct sk_buff *skb, struct net_device *dev, const int direct,
				    struct nt_qdisc_key *key, struct Qdisc **root)
{
	struct netdev_queue *txq = 0;
	struct net *net;

	key->ifindex = NT_GET(dev, ifindex);
	key->queue = NT_GET(skb, queue_mapping);
	key->handle = 0;
	key->netns = 0;
	net = NT_GET(dev, nd_net.net);
	if (net)
		key->netns = NT_GET(net, ns.inum);
	*root = 0;
	if (bpf_core_read(&txq, sizeof(txq), &dev->_tx) || !txq)
		return -1;
	txq = (void *)txq + (__u64)key->queue * bpf_core_type_size(struct netdev_queue);
	if (bpf_core_read(root, sizeof(*root), &txq->qdisc) || !*root)
		return -1;
	return bpf_core_read(&key->handle, sizeof(key->handle), &(*root)->handle) ? -1 : 0;
}

/* Whether these are not queues that are asked for. */
static __always_inline int nt_elsewhere(const struct nt_qdisc_cfg *cfg,
					const struct nt_qdisc_key *key)
{
	struct nt_qdisc_device device = { .netns = key->netns, .ifindex = key->ifindex };

	if (cfg->netns && cfg->netns != key->netns) {
		nt_explain(cfg, NT_EXPLAIN_NETNS);
		return 1;
	}
	if ((cfg->flags & NT_QDISC_BY_DEVICE) &&
	    !bpf_map_lookup_elem(&chosen_devices, &device)) {
		nt_explain(cfg, NT_EXPLAIN_INTERFACE);
		return 1;
	}
	if ((cfg->flags & NT_QDISC_BY_QUEUE) && cfg->queue != key->queue) {
		nt_explain(cfg, NT_EXPLAIN_QUEUE);
		return 1;
	}
	return 0;
}

/*
 * Whether a packet is asked for; it is in `parsed` then. Without filter, order and details nobody
 * wants to know whose it is, and its headers are not read.
 */
static __attribute__((noinline)) int nt_passes(const struct nt_qdisc_cfg *cfg,
					       struct sk_buff *skb)
{
	const __u32 headers = NT_QDISC_DETAILS | NT_QDISC_ORDER;
	struct nt_pkt *pkt;
	__u32 zero = 0, reject;

	pkt = bpf_map_lookup_elem(&parsed, &zero);
	if (!pkt)
		return 0;
	if (!cfg->filter.used && !(cfg->flags & headers) &&
	    !(cfg->guard.flags & NT_GUARD_COUNT_ONLY)) {
		nt_pkt_init(pkt, 0);
		return 1;
	}
	if (nt_parse_skb(skb, NT_AT_ANY, pkt)) {
		nt_lost(NT_LOSS_READ_FAILED);
		return 0;
	}
	reject = nt_filter_match(&cfg->filter, pkt);
	if (!reject)
		return 1;
	if (nt_filter_unsure(&cfg->filter, pkt, reject))
		nt_lost(NT_LOSS_UNPARSED);
	else
		nt_explain(cfg, NT_EXPLAIN_FILTER + reject);
	return 0;
}

static __always_inline struct nt_qdisc_row *nt_make_row(const struct nt_qdisc_key *key,
							struct Qdisc *root)
{
	struct nt_qdisc_row *row = bpf_map_lookup_elem(&queues, key), *blank;
	const struct Qdisc_ops *ops = 0;
	__u32 zero = 0;

	if (row)
		return row;
	blank = bpf_map_lookup_elem(&blank_queue, &zero);
	if (blank)
		bpf_map_update_elem(&queues, key, blank, BPF_NOEXIST);
	row = bpf_map_lookup_elem(&queues, key);
	if (!row) {
		nt_lost(NT_LOSS_MAP_FULL);
		return 0;
	}
	bpf_core_read(&row->parent, sizeof(row->parent), &root->parent);
	bpf_core_read(&row->flags, sizeof(row->flags), &root->flags);
	bpf_core_read(&ops, sizeof(ops), &root->ops);
	bpf_core_read(row->kind, sizeof(row->kind), &ops->id);
	return row;
}

static __always_inline void nt_time(const struct nt_qdisc_cfg *cfg, const struct nt_queued *f,
				    const __u64 what, __u64 ns)
{
	struct nt_qdisc_time_key key = { .row = f->row, .time = what };
	struct nt_hist *hist = bpf_map_lookup_elem(&queue_times, &key);
	__u32 zero = 0;

	if (!hist) {
		struct nt_hist *blank = bpf_map_lookup_elem(&blank_time, &zero);

		/* Another CPU may have been first: what counts is that it is there now. */
		if (blank)
			bpf_map_update_elem(&queue_times, &key, blank, BPF_NOEXIST);
		hist = bpf_map_lookup_elem(&queue_times, &key);
	}
	if (hist)
		nt_hist_add(hist, ns, cfg->epoch);
	else
		nt_lost(NT_LOSS_HIST_FULL);
}

/* It leaves its queue: was one of its flow that came later before it? */
static __always_inline void nt_in_order(const struct nt_qdisc_cfg *cfg, struct nt_queued *f,
					struct nt_qdisc_row *row)
{
	struct nt_qdisc_order_key key = { .row = f->row };
	__u64 *last;

	if (!(cfg->flags & NT_QDISC_ORDER) || !f->start_ns)
		return;
	key.flow = nt_key_of(&f->tuple, 0);
	last = bpf_map_lookup_elem(&orders, &key);
	if (!last) {
		if (bpf_map_update_elem(&orders, &key, &f->start_ns, BPF_NOEXIST))
			nt_lost(NT_LOSS_GROUP_FULL);
	} else if (f->start_ns < *last) {
		f->late = 1;
		nt_add(row, NT_COUNT_REORDERED, 1);
	} else {
		*last = f->start_ns;
	}
}

/* The end of a packet. */
static __always_inline void nt_ended(void *ctx, const struct nt_qdisc_cfg *cfg,
				     struct nt_queued *f, const __u64 *skb, const __u8 end,
				     __u64 now)
{
	const __u64 until = f->taken_ns ? f->taken_ns : now;
	struct nt_queued *e;

	f->end = end;
	f->last_ns = now;
	if ((cfg->flags & NT_QDISC_DETAILS) &&
	    (!cfg->threshold_ns ||
	     (f->start_ns && end != NT_COUNT_BYPASSED && until - f->start_ns >= cfg->threshold_ns)) &&
	    NT_GUARD_PASS(&cfg->guard, now, nt_key_of(&f->tuple, f->number))) {
		e = NT_RESERVE(events);
		if (e) {
			bpf_probe_read_kernel(e, sizeof(*e), f);
			NT_SUBMIT(ctx, events, e);
		}
	}
	bpf_map_delete_elem(&queued, skb);
}

/* What is known of a packet at this moment; 0 when there is no room for it. */
static __always_inline struct nt_queued *nt_fresh(struct sk_buff *skb, struct net_device *dev,
						  const struct nt_qdisc_key *key)
{
	__u32 zero = 0;
	struct nt_queued *f = bpf_map_lookup_elem(&fresh, &zero);
	struct nt_pkt *pkt = bpf_map_lookup_elem(&parsed, &zero);
	unsigned char *end = 0;
	sk_buff_data_t tail = 0;
	__u16 size = 0, segs = 0;

	if (!f || !pkt)
		return 0;
	__builtin_memset(f, 0, sizeof(*f));
	f->tuple = pkt->tuple;
	f->row = *key;
	f->dev = (__u64)dev;
	f->number = nt_mix(nt_mix(nt_mix(NT_MIX_B, pkt->ip_id), pkt->seq), pkt->payload);
	f->qlen = NT_QLEN_UNKNOWN;
	f->ip_id = pkt->ip_id;
	f->seq = pkt->seq;
	f->vlan_id = pkt->vlan_id;
	f->cpu = bpf_get_smp_processor_id();
	f->segs = 1;
	bpf_core_read(&f->len_bytes, sizeof(f->len_bytes), &skb->len);
	bpf_core_read(&end, sizeof(end), &skb->head);
	bpf_core_read(&tail, sizeof(tail), &skb->end);
	end += tail;
	bpf_core_read(&size, sizeof(size), &((struct skb_shared_info *)end)->gso_size);
	if (size) {
		bpf_core_read(&segs, sizeof(segs), &((struct skb_shared_info *)end)->gso_segs);
		/* What a guest sends has no number yet. */
		f->segs = segs ? segs : f->len_bytes / size + 1;
	}
	return f;
}

/* TCQ_F_CPUSTATS, include/net/sch_generic.h: it counts per CPU, its own length stays 0. */
#define NT_QDISC_CPUSTATS 0x20

static __always_inline void nt_measure(struct nt_queued *f, struct nt_qdisc_row *row,
				       struct Qdisc *root)
{
	__u32 length = 0, slot;

	if ((row->flags & NT_QDISC_CPUSTATS) ||
	    bpf_core_read(&length, sizeof(length), &root->q.qlen))
		return;
	f->qlen = length;
	nt_add(row, NT_COUNT_QLEN_KNOWN, 1);
	nt_add(row, NT_COUNT_QLEN_SUM, length);
	if (length > row->qlen_max)
		row->qlen_max = length;
	slot = nt_length_slot(length);
	if (slot < NT_QDISC_LENGTHS)
		__sync_fetch_and_add(&row->qlens[slot], 1);
}

/* The same skb comes in again: the end of the packet it was before was not seen. */
static __always_inline void nt_forget(void *ctx, const struct nt_qdisc_cfg *cfg, const __u64 *skb,
				      __u64 now)
{
	struct nt_queued *f = bpf_map_lookup_elem(&queued, skb);
	struct nt_qdisc_row *row;

	if (!f)
		return;
	row = bpf_map_lookup_elem(&queues, &f->row);
	if (row && f->state == NT_QDISC_WAITS)
		nt_add(row, NT_COUNT_STALE, 1);
	else if (row)
		nt_add(row, NT_COUNT_TAKEN_STALE, 1);
	if (f->state == NT_QDISC_WAITS)
		nt_ended(ctx, cfg, f, skb, NT_COUNT_STALE, now);
	else
		nt_ended(ctx, cfg, f, skb, NT_COUNT_TAKEN_STALE, now);
}

NT_TRACE(dev_queue, net_dev_queue, struct sk_buff *, skb)
{
	const struct nt_qdisc_cfg *cfg = nt_on();
	struct nt_qdisc_key key = {};
	struct nt_qdisc_row *row;
	struct net_device *dev;
	struct nt_queued *f;
	struct nt_pkt *pkt;
	struct Qdisc *root;
	__u64 now, address, *count;
	__u32 zero = 0;

	if (!cfg || !skb)
		return 0;
	dev = NT_GET(skb, dev);
	if (!dev || !nt_awake(cfg, &now))
		return 0;
	address = (__u64)skb;
	nt_forget(ctx, cfg, &address, now);
	if (!cfg->entry_open)
		return 0;
	if (nt_place(skb, dev, direct, &key, &root)) {
		nt_lost(NT_LOSS_READ_FAILED);
		return 0;
	}
	if (nt_elsewhere(cfg, &key) || !nt_passes(cfg, skb))
		return 0;
	pkt = bpf_map_lookup_elem(&parsed, &zero);
	if (!pkt || nt_guard_counts(&cfg->guard, &pkt->tuple))
		return 0;
	count = bpf_map_lookup_elem(&passed, &zero);
	if (count)
		__sync_fetch_and_add(count, 1);
	row = nt_make_row(&key, root);
	f = row ? nt_fresh(skb, dev, &key) : 0;
	if (!row || !f)
		return 0;
	f->state = NT_QDISC_WAITS;
	f->start_ns = now;
	f->last_ns = now;
	nt_measure(f, row, root);
	if (bpf_map_update_elem(&queued, &address, f, BPF_ANY)) {
		nt_lost(NT_LOSS_MAP_FULL);
		return 0;
	}
	nt_add(row, NT_COUNT_QUEUED, 1);
	nt_add(row, NT_COUNT_BYTES, f->len_bytes);
	return 0;
}

/* Whether segments of split packets are still to come. */
static __always_inline int nt_expecting(void)
{
	__u32 expected = NT_SPLIT_EXPECTED, seen = NT_SPLIT_SEEN;
	__u64 *all = bpf_map_lookup_elem(&splits, &expected);
	__u64 *some = bpf_map_lookup_elem(&splits, &seen);

	return all && some && *all > *some;
}

static __always_inline void nt_split_add(const __u32 what, __u64 by)
{
	__u32 index = what;
	__u64 *count = bpf_map_lookup_elem(&splits, &index);

	if (count)
		__sync_fetch_and_add(count, by);
}

/*
 * A packet nobody saw come in: a segment of one that was split, if such are expected in this queue.
 * Returns the queue it belongs to.
 */
static __always_inline struct nt_qdisc_row *nt_child(const struct nt_qdisc_cfg *cfg,
						     struct sk_buff *skb, struct net_device *dev,
						     struct nt_qdisc_key *key)
{
	struct nt_qdisc_row *row;
	struct Qdisc *root;

	if (!nt_expecting() || nt_place(skb, dev, 0, key, &root))
		return 0;
	row = bpf_map_lookup_elem(&queues, key);
	if (!row || row->counts[NT_COUNT_SEGMENTS] <= row->counts[NT_COUNT_CHILDREN] ||
	    !nt_passes(cfg, skb))
		return 0;
	nt_add(row, NT_COUNT_CHILDREN, 1);
	nt_split_add(NT_SPLIT_SEEN, 1);
	return row;
}

/* On its way to the driver, without having been seen to come in. */
static __always_inline void nt_keep_taken(struct nt_queued *f, struct nt_qdisc_row *row,
					  struct sk_buff *skb, __u64 now)
{
	__u64 address = (__u64)skb;

	f->state = NT_QDISC_TAKEN;
	f->taken_ns = now;
	f->last_ns = now;
	if (bpf_map_update_elem(&queued, &address, f, BPF_ANY))
		nt_lost(NT_LOSS_MAP_FULL);
	else
		nt_add(row, NT_COUNT_TAKEN, 1);
}

static __attribute__((noinline)) int nt_child_taken(const struct nt_qdisc_cfg *cfg,
						    struct sk_buff *skb, __u64 now)
{
	struct net_device *dev = 0;
	struct nt_qdisc_key key = {};
	struct nt_qdisc_row *row;
	struct nt_queued *f;

	if (bpf_core_read(&dev, sizeof(dev), &skb->dev) || !dev)
		return 0;
	row = nt_child(cfg, skb, dev, &key);
	f = row ? nt_fresh(skb, dev, &key) : 0;
	if (f) {
		f->child = 1;
		nt_keep_taken(f, row, skb, now);
	}
	return row != 0;
}

/* One packet of a bulk; whether it is one of ours. The numbers are (bulk << 16 | position). */
static __attribute__((noinline)) int nt_taken(const struct nt_qdisc_cfg *cfg, __u64 skb, __u64 now,
					      __u64 numbers)
{
	struct nt_queued *f = bpf_map_lookup_elem(&queued, &skb);
	struct nt_qdisc_row *row;

	if (!f)
		return 0;
	row = bpf_map_lookup_elem(&queues, &f->row);
	if (!row)
		return 0;
	if (!(numbers & 0xffff)) {
		__u32 bulk = numbers >> 16, slot = nt_length_slot(bulk);

		nt_add(row, NT_COUNT_BULKS, 1);
		nt_add(row, NT_COUNT_BULK_SUM, bulk);
		if (bulk > row->bulk_max)
			row->bulk_max = bulk;
		if (slot < NT_QDISC_LENGTHS)
			__sync_fetch_and_add(&row->bulks[slot], 1);
	}
	f->position = numbers & 0xffff;
	f->bulk = numbers >> 16;
	if (f->state == NT_QDISC_TAKEN) {
		f->requeues += 1;
		f->last_ns = now;
		nt_add(row, NT_COUNT_REQUEUED, 1);
		return 1;
	}
	f->state = NT_QDISC_TAKEN;
	f->taken_ns = now;
	f->last_ns = now;
	nt_add(row, NT_COUNT_DEQUEUED, 1);
	nt_add(row, NT_COUNT_TAKEN, 1);
	nt_time(cfg, f, NT_TIME_WAIT, now - f->start_ns);
	nt_in_order(cfg, f, row);
	return 1;
}

NT_TRACE(qd_out, qdisc_dequeue, void *, qdisc, void *, txq, long, packets, struct sk_buff *, skb)
{
	const struct nt_qdisc_cfg *cfg = nt_on();
	__u64 now, next, bulk;
	int i;

	/* Nothing was there: 5.10 tells of that, too. */
	if (!cfg || !skb || !nt_awake(cfg, &now))
		return 0;
	next = (__u64)skb;
	bulk = (__u64)(__u32)packets << 16;
	if (!nt_taken(cfg, next, now, bulk))
		nt_child_taken(cfg, skb, now);
#pragma clang loop unroll(full)
	for (i = 1; i < NT_QDISC_BULK; i++) {
		if (bpf_core_read(&next, sizeof(next), &((struct sk_buff *)next)->next) || !next)
			return 0;
		nt_taken(cfg, next, now, bulk | i);
	}
	return 0;
}

static __attribute__((noinline)) int nt_child_sent(const struct nt_qdisc_cfg *cfg,
						   struct sk_buff *skb, struct net_device *dev)
{
	struct nt_qdisc_key key = {};

	return nt_child(cfg, skb, dev, &key) != 0;
}

NT_TRACE(dev_xmit, net_dev_start_xmit, struct sk_buff *, skb, struct net_device *, dev)
{
	const struct nt_qdisc_cfg *cfg = nt_on();
	__u64 now, address = (__u64)skb;
	struct nt_qdisc_row *row;
	struct nt_queued *f;

	if (!cfg || !skb || !dev)
		return 0;
	f = bpf_map_lookup_elem(&queued, &address);
	if (!f) {
		if (nt_expecting())
			nt_child_sent(cfg, skb, dev);
		return 0;
	}
	if (f->dev != (__u64)dev || !nt_awake(cfg, &now))
		return 0;
	row = bpf_map_lookup_elem(&queues, &f->row);
	if (!row)
		return 0;
	if (f->state == NT_QDISC_WAITS) {
		nt_add(row, NT_COUNT_BYPASSED, 1);
		nt_in_order(cfg, f, row);
		nt_ended(ctx, cfg, f, &address, NT_COUNT_BYPASSED, now);
		return 0;
	}
	nt_add(row, NT_COUNT_SENT, 1);
	if (f->refused)
		nt_time(cfg, f, NT_TIME_RETRY, now - f->taken_ns);
	else
		nt_time(cfg, f, NT_TIME_DRIVER, now - f->taken_ns);
	nt_ended(ctx, cfg, f, &address, NT_COUNT_SENT, now);
	return 0;
}

/* dev_xmit_complete(): below this the driver has taken it; NET_XMIT_MASK, linux/netdevice.h. */
#define NT_NET_XMIT_MASK 0x0f

/* The driver did not take it: it goes back to where it was taken from, and comes again. */
static __attribute__((noinline)) int nt_refused(const struct nt_qdisc_cfg *cfg,
						struct sk_buff *skb, struct net_device *dev,
						__u64 now)
{
	struct nt_qdisc_key key = {};
	struct nt_qdisc_row *row;
	struct nt_queued *f;
	struct Qdisc *root;

	if (nt_place(skb, dev, 0, &key, &root) || nt_elsewhere(cfg, &key))
		return 0;
	row = bpf_map_lookup_elem(&queues, &key);
	if (!row || !nt_passes(cfg, skb))
		return 0;
	nt_add(row, NT_COUNT_REFUSED, 1);
	f = nt_fresh(skb, dev, &key);
	if (f) {
		f->refused = 1;
		nt_keep_taken(f, row, skb, now);
	}
	return 1;
}

/* The packet may be freed by now, unless the driver refused it. */
NT_TRACE(dev_ret, net_dev_xmit, struct sk_buff *, skb, long, rc, struct net_device *, dev)
{
	const struct nt_qdisc_cfg *cfg;
	__u64 now;

	if ((__s32)rc < NT_NET_XMIT_MASK || !skb || !dev)
		return 0;
	cfg = nt_on();
	if (cfg && cfg->entry_open && !(cfg->guard.flags & NT_GUARD_COUNT_ONLY) &&
	    nt_awake(cfg, &now))
		nt_refused(cfg, skb, dev, now);
	return 0;
}

/*
 * The reason is an argument of newer kernels only: Linux commit c504e5c2f964 "net: skb: introduce
 * kfree_skb_reason()" (v5.17). The test is a constant at load time.
 */
static __always_inline __u32 nt_free_reason(const __u64 *ctx)
{
	return bpf_core_type_exists(enum skb_drop_reason) ? ctx[2] : 0;
}

static __always_inline void nt_count_drop(const struct nt_queued *f)
{
	struct nt_qdisc_drop_key key = {
		.row = f->row, .location = f->location, .reason = f->reason, .state = f->state
	};
	__u64 none = 0, *count = bpf_map_lookup_elem(&queue_drops, &key);

	if (!count) {
		bpf_map_update_elem(&queue_drops, &key, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&queue_drops, &key);
	}
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		nt_lost(NT_LOSS_GROUP_FULL);
}

NT_TRACE(free_drop, kfree_skb, struct sk_buff *, skb, void *, location)
{
	const struct nt_qdisc_cfg *cfg = nt_on();
	__u64 now, address = (__u64)skb;
	struct nt_qdisc_row *row;
	struct nt_queued *f;

	if (!cfg || !skb)
		return 0;
	f = bpf_map_lookup_elem(&queued, &address);
	if (!f || !nt_awake(cfg, &now))
		return 0;
	row = bpf_map_lookup_elem(&queues, &f->row);
	if (!row)
		return 0;
	f->location = (__u64)location;
	f->reason = nt_free_reason(ctx);
	nt_count_drop(f);
	if (f->state == NT_QDISC_WAITS) {
		nt_add(row, NT_COUNT_DROPPED, 1);
		nt_ended(ctx, cfg, f, &address, NT_COUNT_DROPPED, now);
	} else {
		nt_add(row, NT_COUNT_TAKEN_DROPPED, 1);
		nt_ended(ctx, cfg, f, &address, NT_COUNT_TAKEN_DROPPED, now);
	}
	return 0;
}

/* Freed as used before it was sent: cut into segments, which go on as packets of their own. */
NT_TRACE(free_ok, consume_skb, struct sk_buff *, skb)
{
	const struct nt_qdisc_cfg *cfg = nt_on();
	__u64 now, address = (__u64)skb;
	struct nt_qdisc_row *row;
	struct nt_queued *f;
	__u32 taken;
	__u8 end;

	if (!cfg || !skb)
		return 0;
	f = bpf_map_lookup_elem(&queued, &address);
	if (!f || !nt_awake(cfg, &now))
		return 0;
	row = bpf_map_lookup_elem(&queues, &f->row);
	if (!row)
		return 0;
	taken = f->state != NT_QDISC_WAITS;
	if (f->segs > 1) {
		nt_add(row, NT_COUNT_SEGMENTS, f->segs);
		nt_split_add(NT_SPLIT_EXPECTED, f->segs);
		end = taken ? NT_COUNT_TAKEN_SPLIT : NT_COUNT_SPLIT;
	} else {
		end = taken ? NT_COUNT_TAKEN_CONSUMED : NT_COUNT_CONSUMED;
	}
	if (end < NT_COUNT_MAX)
		__sync_fetch_and_add(&row->counts[end], 1);
	nt_ended(ctx, cfg, f, &address, end, now);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
