// SPDX-License-Identifier: GPL-2.0-only
/*
 * loader - what the tests of the loader attach, fill and read
 *
 * Attaches: net_dev_start_xmit, which runs in the process that sends
 * Keeps:    hits, numbers, spread, recent
 * Emits:    struct nt_loader_event, 64 per call of the point `flood`
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#include "nt_attach.h"
#include "nt_channel.h"

#define NT_BURST 64

enum nt_loader_hit {
	NT_HIT_SENT,
	NT_HIT_EITHER,
	NT_HIT_FLOOD,
	NT_HIT_MAX,
};

struct nt_loader_event {
	__u64 ts_ns;
	__u64 number;
	__u64 inverse;
	__u32 cpu;
	__u16 low;
	__u8 text[6];
	__s32 negative;
	__u32 reserved;
};

struct nt_inner {
	__u16 port;
	__u8 flags;
	__u8 pad;
	__u32 word;
};

struct nt_loader_cfg {
	__u32 enabled;
	__u32 pid;
	struct nt_inner inner;
};

struct nt_manifest {
	struct nt_loader_event events;
	struct nt_loader_cfg cfg;
	enum nt_loss loss;
	enum nt_loader_hit hit;
};

const struct nt_manifest nt_manifest SEC(".ntools") = {};

NT_CHANNEL(events, struct nt_loader_event, 256 << 10);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct nt_loader_cfg);
} nt_cfg SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NT_HIT_MAX);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct nt_inner);
	__type(value, __u64);
} numbers SEC(".maps");

struct nt_spread {
	__u64 count;
	__u32 word;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct nt_spread);
} spread SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, __u32);
} recent SEC(".maps");

static __always_inline struct nt_loader_cfg *nt_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&nt_cfg, &zero);
}

/* Counts what the process of the test sends while it is told to. */
static __always_inline int nt_hit(__u32 which)
{
	struct nt_loader_cfg *cfg = nt_config();
	__u64 *count;

	if (!cfg || !cfg->enabled || cfg->pid != bpf_get_current_pid_tgid() >> 32)
		return 0;
	count = bpf_map_lookup_elem(&hits, &which);
	if (count)
		*count += cfg->enabled;
	return 0;
}

NT_TRACE(sent, net_dev_start_xmit, struct sk_buff *, skb)
{
	return skb ? nt_hit(NT_HIT_SENT) : 0;
}

/* Two targets: the kernel has one of them. */
NT_TRACE(either__gone, nt_no_such_tracepoint, struct sk_buff *, skb)
{
	return skb ? nt_hit(NT_HIT_EITHER) : 0;
}

NT_TRACE(either__here, net_dev_start_xmit, struct sk_buff *, skb)
{
	return skb ? nt_hit(NT_HIT_EITHER) : 0;
}

NT_TRACE(missing, nt_no_such_tracepoint, struct sk_buff *, skb)
{
	return skb ? 0 : 1;
}

/* A function every kernel has, and one none has. */
NT_ENTRY(entry, dev_change_name, struct net_device *, dev)
{
	return dev ? 0 : 1;
}

NT_ENTRY(nowhere, nt_no_such_function, struct net_device *, dev)
{
	return dev ? 0 : 1;
}

/* Called by the tests only (test run), with the number of the first event as argument. */
SEC("?raw_tp/net_dev_start_xmit")
int flood__raw_tp(__u64 *ctx)
{
	__u64 first = ctx[0];
	__u32 hit = NT_HIT_FLOOD;
	__u64 *count = bpf_map_lookup_elem(&hits, &hit);

	/* Real packets have a kernel pointer here. */
	if (first >> 48)
		return 0;
#pragma unroll
	for (__u64 i = 0; i < NT_BURST; i++) {
		struct nt_loader_event *e = NT_RESERVE(events);

		if (count)
			*count += 1;
		if (!e)
			continue;
		__builtin_memset(e, 0, sizeof(*e));
		e->ts_ns = bpf_ktime_get_ns();
		e->number = first + i;
		e->inverse = ~(first + i);
		e->cpu = bpf_get_smp_processor_id();
		e->low = (__u16)(first + i);
		e->text[0] = 'n';
		e->text[1] = 't';
		e->negative = -5;
		NT_SUBMIT(ctx, events, e);
	}
	return 0;
}

/* What the verifier refuses: a number used as a pointer. */
SEC("?raw_tp/net_dev_start_xmit")
int rejected__raw_tp(__u64 *ctx)
{
	return *(int *)ctx[0];
}

struct nt_no_such_type {
	int value;
} __attribute__((preserve_access_index));

SEC("?raw_tp/net_dev_start_xmit")
int typeless__raw_tp(__u64 *ctx)
{
	return BPF_CORE_READ((struct nt_no_such_type *)ctx[0], value);
}

struct sk_buff___nt_test {
	int nt_no_such_field;
} __attribute__((preserve_access_index));

SEC("?raw_tp/net_dev_start_xmit")
int fieldless__raw_tp(__u64 *ctx)
{
	return BPF_CORE_READ((struct sk_buff___nt_test *)ctx[0], nt_no_such_field);
}

char LICENSE[] SEC("license") = "GPL";
