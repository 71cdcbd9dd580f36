// SPDX-License-Identifier: GPL-2.0-only
/*
 * firing_parts - what the parts cost that our programs are made of; each ten times per run
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#include "nt_map.h"

struct value {
	__u64 word[22]; /* as large as a flight */
};

NT_MAP(filled, HASH, 65536, __u64, struct value);
NT_MAP(empty, HASH, 65536, __u64, struct value);
NT_MAP(per_cpu, PERCPU_HASH, 256, __u64, struct value);
NT_MAP(table, ARRAY, 4, __u32, struct value);
NT_MAP(own, PERCPU_ARRAY, 4, __u32, struct value);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24);
} ring SEC(".maps");

#define TEN(x) x x x x x x x x x x

/* `sum` is kept in a map, so that nothing is left out as unused. */
#define PART(name, before, body)                                                                   \
	SEC("raw_tp/netif_rx")                                                                     \
	int name(__u64 *ctx)                                                                       \
	{                                                                                          \
		__u64 key = 7, sum = 0;                                                            \
		__u32 one = 1;                                                                     \
		struct value *v, fresh = {}, *source = bpf_map_lookup_elem(&table, &one);          \
                                                                                                   \
		(void)fresh;                                                                       \
		(void)key;                                                                         \
		if (!source)                                                                       \
			return 0;                                                                  \
		before TEN(body) v = bpf_map_lookup_elem(&own, &one);                              \
		if (v)                                                                             \
			v->word[0] = sum + !ctx;                                                   \
		return 0;                                                                          \
	}

#define LOOK(map, k)                                                                               \
	v = bpf_map_lookup_elem(&map, &(k));                                                       \
	if (v)                                                                                     \
		sum += v->word[1];
#define FILL(map) bpf_map_update_elem(&map, &key, &fresh, BPF_ANY);

PART(nothing, , )
PART(clock, , sum += bpf_ktime_get_ns();)
PART(array, , LOOK(table, one))
PART(percpu_array, , LOOK(own, one))
PART(hash_found, FILL(filled), LOOK(filled, key))
PART(hash_missed, , LOOK(empty, key))
PART(percpu_hash, FILL(per_cpu), LOOK(per_cpu, key))
PART(hash_put_drop, , FILL(empty) bpf_map_delete_elem(&empty, &key);)
PART(read_8, , bpf_probe_read_kernel(&fresh, 8, source); sum += fresh.word[0];)
PART(read_64, , bpf_probe_read_kernel(&fresh, 64, source); sum += fresh.word[0];)
PART(read_176, , bpf_probe_read_kernel(&fresh, 176, source); sum += fresh.word[0];)
PART(ring_record, , v = bpf_ringbuf_reserve(&ring, sizeof(*v), 0);
     if (v) bpf_ringbuf_discard(v, 0);)
PART(comm, , bpf_get_current_comm(&fresh, 16);)
PART(stack_12, , sum += bpf_get_stack(ctx, &fresh, 96, 0);)

char LICENSE[] SEC("license") = "GPL";
