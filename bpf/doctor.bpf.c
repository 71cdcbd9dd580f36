// SPDX-License-Identifier: GPL-2.0-only
/*
 * doctor - which ways to attach, channels and maps does this kernel allow
 *
 * Attaches: one cold target per mechanism, for a moment
 * Reads:    nothing
 * Keeps:    tries, a hash of 8 x 8 bytes to be read in batches
 * Emits:    struct nt_doctor_event for a drop that happens in that moment
 * Cost:     none worth a number: it lives for milliseconds
 *
 * Each mechanism is a point of its own, so that one refusal says nothing about another mechanism.
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#include "nt_channel.h"
#include "nt_map.h"

struct nt_doctor_event {
	__u64 ts_ns;
};

struct nt_doctor_cfg {
	__u64 enabled;
};

struct nt_manifest {
	struct nt_doctor_event events;
	struct nt_doctor_cfg cfg;
	enum nt_loss loss;
};

const struct nt_manifest nt_manifest SEC(".ntools") = {};

NT_CHANNEL(events, struct nt_doctor_event, 256 << 10);

NT_MAP(nt_cfg, ARRAY, 1, __u32, struct nt_doctor_cfg);

NT_MAP(tries, HASH, 8, __u32, __u32);

static __always_inline int nt_doctor_seen(void *ctx)
{
	struct nt_doctor_event *e = NT_RESERVE(events);

	if (!e)
		return 0;
	e->ts_ns = bpf_ktime_get_ns();
	NT_SUBMIT(ctx, events, e);
	return 0;
}

/* A tracepoint and a function that every supported kernel has. */
SEC("?tp_btf/kfree_skb")
int tp_btf__tp_btf(void *ctx)
{
	return nt_doctor_seen(ctx);
}

SEC("?raw_tp/kfree_skb")
int raw_tp__raw_tp(void *ctx)
{
	return nt_doctor_seen(ctx);
}

SEC("?fentry/dev_change_name")
int fentry__fentry(void *ctx)
{
	return 0;
}

SEC("?kprobe/dev_change_name")
int kprobe__kprobe(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
