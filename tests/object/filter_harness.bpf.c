// SPDX-License-Identifier: GPL-2.0-only
/*
 * filter_harness - bpf/include/nt_filter.h on many packets a test made
 *
 * Attaches: nothing, the programs are run by BPF_PROG_TEST_RUN
 * Reads:    a packet of the map `packets` per run, the filter in `filters`
 * Keeps:    verdicts, a byte per packet
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#include "nt_filter.h"
#include "nt_map.h"

#define TEST_PACKETS 8192

struct test_verdicts {
	__u8 reject[TEST_PACKETS];
	__u8 unsure[TEST_PACKETS];
};

struct test_manifest {
	struct test_verdicts verdicts;
	struct nt_filter filter;
	struct nt_pkt packet;
	enum nt_pkt_flag flag;
	enum nt_filter_use use;
	enum nt_filter_table table;
	enum nt_filter_prefix prefix;
	enum nt_reject reject;
};
const struct test_manifest test_manifest SEC(".ntools") = {};

NT_MAP(filters, ARRAY, 1, __u32, struct nt_filter);
NT_MAP(packets, ARRAY, TEST_PACKETS, __u32, struct nt_pkt);
NT_MAP(verdicts, ARRAY, 1, __u32, struct test_verdicts);
/* The packet the next run looks at. */
NT_MAP(cursor, ARRAY, 1, __u32, __u32);

SEC("raw_tp/netif_receive_skb")
int judge(void *ctx)
{
	__u32 zero = 0, *next = bpf_map_lookup_elem(&cursor, &zero), at;
	struct nt_filter *filter = bpf_map_lookup_elem(&filters, &zero);
	struct test_verdicts *out = bpf_map_lookup_elem(&verdicts, &zero);
	struct nt_pkt *pkt;
	enum nt_reject reject;
	(void)ctx;

	if (!next || !filter || !out)
		return 0;
	at = *next & (TEST_PACKETS - 1);
	*next = at + 1;
	pkt = bpf_map_lookup_elem(&packets, &at);
	if (!pkt)
		return 0;
	reject = nt_filter_match(filter, pkt);
	out->reject[at] = reject;
	out->unsure[at] = nt_filter_unsure(filter, pkt, reject);
	return 0;
}

/* Everything but the filter: what a measurement has to subtract. */
SEC("raw_tp/netif_receive_skb")
int idle(void *ctx)
{
	__u32 zero = 0, *next = bpf_map_lookup_elem(&cursor, &zero), at;
	struct nt_filter *filter = bpf_map_lookup_elem(&filters, &zero);
	struct test_verdicts *out = bpf_map_lookup_elem(&verdicts, &zero);
	struct nt_pkt *pkt;
	(void)ctx;

	if (!next || !filter || !out)
		return 0;
	at = *next & (TEST_PACKETS - 1);
	*next = at + 1;
	pkt = bpf_map_lookup_elem(&packets, &at);
	if (!pkt)
		return 0;
	out->reject[at] = filter->vlan_id;
	out->unsure[at] = pkt->flags;
	return 0;
}

const char test_license[] SEC("license") = "GPL";
