// SPDX-License-Identifier: GPL-2.0-only
/*
 * parse_harness - the packet headers of bpf/include on packets a test made
 *
 * Attaches: bytes and skb_*: nothing, they are run by BPF_PROG_TEST_RUN
 *           the others: tracepoints; they look at packets with a mark of the test
 * Reads:    a packet, and the image of an sk_buff, from the map `input`
 * Keeps:    output: result of the last run; seen: one result per (point, mark)
 */
#include "ntools_kernel.h"
#include <bpf/bpf_helpers.h>

#include "nt_attach.h"
#include "nt_filter.h"
#include "nt_identity.h"
#include "nt_parse.h"
#include "nt_tunnel.h"

#define TEST_MARK 0x6e740000

struct test_input {
	struct nt_filter filter;
	__u8 skb[512];
	/* Readable bytes before the packet stand for the MAC header or headroom. */
	__u8 bytes[1024];
	__u32 off;
	__u32 linear;
	__u32 end;
	__u32 proto;
	__u64 data; /* offset of skb->data in bytes */
	__u64 head; /* address of bytes */
	__u64 inner;
};

struct test_output {
	struct nt_pkt pkt;
	__s64 result;
	__u64 key;
	__u32 digest;
	__u32 reject;
	__s64 inner;
};

enum test_point {
	TEST_QUEUE_NET,
	TEST_QUEUE_ETH,
	TEST_XMIT_NET,
	TEST_RX_DATA,
	TEST_RX_ANY,
	TEST_FREE_ANY,
};

struct test_key {
	__u32 point;
	__u32 mark;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct test_input);
} input SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct test_output);
} output SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct test_key);
	__type(value, struct test_output);
} seen SEC(".maps");

struct test_manifest {
	struct test_input input;
	struct test_output output;
	struct test_key key;
	enum test_point point;
	enum nt_pkt_flag flag;
	enum nt_filter_use use;
	enum nt_reject reject;
};
const struct test_manifest test_manifest SEC(".ntools") = {};

static __always_inline void test_judge(const struct nt_filter *filter, const struct nt_pkt *pkt,
				       const void *head, struct test_output *out)
{
	struct nt_print print;

	nt_print_take(head, pkt, &print);
	out->pkt = *pkt;
	/* In a map, as engines have it: on the stack the verifier follows every value of it. */
	out->reject = nt_filter_match(filter, &out->pkt);
	out->digest = print.digest;
	out->key = nt_key_of(&pkt->tuple, print.digest);
}

/* Address of the bytes; through the map it becomes a number, as that of a packet is one. */
static __always_inline __u64 test_head(struct test_input *in)
{
	in->head = (__u64)in->bytes;
	return *(volatile __u64 *)&in->head;
}

SEC("raw_tp/netif_receive_skb")
int bytes(void *ctx)
{
	__u32 zero = 0;
	struct test_input *in = bpf_map_lookup_elem(&input, &zero);
	struct test_output *out = bpf_map_lookup_elem(&output, &zero);
	struct nt_skb m = {};
	struct nt_pkt pkt;
	(void)ctx;

	if (!in || !out)
		return 0;
	m.linear = in->linear;
	m.end = in->end;
	m.head = (void *)test_head(in);
	m.zero = nt_vague_zero((__u64)m.head);
	out->result = nt_parse_bytes(m.head, in->off, in->linear, in->end, in->proto, 0, &pkt);
	if (in->inner)
		out->inner = nt_parse_inner(&m, &pkt);
	test_judge(&in->filter, &pkt, m.head, out);
	return 0;
}

static __always_inline int test_skb(const int where)
{
	__u32 zero = 0;
	struct test_input *in = bpf_map_lookup_elem(&input, &zero);
	struct test_output *out = bpf_map_lookup_elem(&output, &zero);
	struct sk_buff *skb;
	struct nt_pkt pkt;

	if (!in || !out)
		return 0;
	skb = (void *)in->skb;
	/* Only the kernel knows where the packet is. */
	*(__u64 *)(in->skb + bpf_core_field_offset(skb->head)) = test_head(in);
	*(__u64 *)(in->skb + bpf_core_field_offset(skb->data)) = test_head(in) + in->data;
	out->result = nt_parse_skb(skb, where, &pkt);
	test_judge(&in->filter, &pkt, (void *)test_head(in), out);
	return 0;
}

#define TEST_SKB(name, where)                                                                      \
	SEC("raw_tp/netif_receive_skb")                                                            \
	int skb_##name(void *ctx)                                                                  \
	{                                                                                          \
		(void)ctx;                                                                         \
		return test_skb(where);                                                            \
	}                                                                                          \
	SEC("raw_tp/netif_receive_skb")                                                            \
	int skb_##name##_d(void *ctx)                                                              \
	{                                                                                          \
		(void)ctx;                                                                         \
		return test_skb((where) | NT_DIRECT);                                              \
	}

TEST_SKB(data, NT_AT_DATA)
TEST_SKB(eth, NT_AT_ETH)
TEST_SKB(net, NT_AT_NET)
TEST_SKB(any, NT_AT_ANY)
TEST_SKB(out, NT_AT_NET | NT_LEN_SKB)
TEST_SKB(nomac, NT_AT_DATA | NT_NO_MAC)

static __always_inline int test_live(struct sk_buff *skb, const int direct, const int where,
				     __u32 point)
{
	struct test_key key = { .point = point };
	struct test_output out = {};
	struct nt_pkt pkt;
	__u32 zero = 0;
	struct test_input *in = bpf_map_lookup_elem(&input, &zero);

	if (!skb || !in)
		return 0;
	key.mark = NT_GET(skb, mark);
	if ((key.mark & 0xffff0000) != TEST_MARK)
		return 0;
	out.result = nt_parse_skb(skb, where | (direct ? NT_DIRECT : 0), &pkt);
	test_judge(&in->filter, &pkt, NT_GET(skb, head), &out);
	bpf_map_update_elem(&seen, &key, &out, BPF_ANY);
	return 0;
}

NT_TRACE(queue_net, net_dev_queue, struct sk_buff *, skb)
{
	return test_live(skb, direct, NT_AT_NET, TEST_QUEUE_NET);
}

NT_TRACE(queue_eth, net_dev_queue, struct sk_buff *, skb)
{
	return test_live(skb, direct, NT_AT_ETH, TEST_QUEUE_ETH);
}

NT_TRACE(xmit_net, net_dev_start_xmit, struct sk_buff *, skb)
{
	return test_live(skb, direct, NT_AT_NET, TEST_XMIT_NET);
}

NT_TRACE(rx_data, netif_receive_skb, struct sk_buff *, skb)
{
	return test_live(skb, direct, NT_AT_DATA, TEST_RX_DATA);
}

NT_TRACE(rx_any, netif_receive_skb, struct sk_buff *, skb)
{
	return test_live(skb, direct, NT_AT_ANY, TEST_RX_ANY);
}

NT_TRACE(free_any, kfree_skb, struct sk_buff *, skb)
{
	return test_live(skb, direct, NT_AT_ANY, TEST_FREE_ANY);
}

const char test_license[] SEC("license") = "GPL";
