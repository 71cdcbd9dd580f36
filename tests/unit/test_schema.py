# SPDX-License-Identifier: GPL-2.0-only
import io
import json

import jsonschema
import pytest

from ntools.model.flow import Flow
from ntools.model.hist import Histogram
from ntools.model.stages import ENDS
from ntools.output import schema
from ntools.output.jsonl import Writer


def check(record, closed=True):
    jsonschema.Draft7Validator(schema.load(record["type"], closed)).validate(record)


def hist(n):
    filled = Histogram("ns", 2, 28, 139)
    for value in range(n):
        filled.add(1 << (value % 50))
    return filled


FLOW = Flow(4, 6, bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)), 41000, 443, 0x800)
ENDS_OF = dict.fromkeys(ENDS, 0)

HEADER = {
    "host": "node1",
    "kernel": "5.10.0",
    "arch": "x86_64",
    "args": ["--vm-interface", "vnet0"],
    "filters": {"vm_interface": ["vnet0"]},
    "devices": [
        {"interface": "vnet0", "ifindex": 9, "netns_inum": 4026531840, "role": "vnet",
         "kind": "tap", "master": None},
    ],
    "points": [
        {"stage": "dev.rx", "attach": "tp_btf", "target": "netif_receive_skb"},
        {"stage": "ovs.in", "attach": None, "target": None, "candidates_failed": [
            {"attach": "fentry", "target": "ovs_vport_receive", "errno": 0, "text": "no module"}]},
    ],
    "degraded": [{"feature": "ovs", "because": "module is not loaded"}],
    "overhead_class": "low",
    "maps": [{"name": "flights", "type": "hash", "entries": 65536, "bytes": 7000000}],
    "interval_s": 5.0,
    "sample": 1,
    "forced": True,
    "admission": {"hooks_per_s": 9.0, "run_ns": None, "matches_per_s": 5.0, "bpf_pct": 0.01,
        "events_per_s": None, "flows": [{"share_ratio": 0.5, "flow": FLOW.fields()}]},
}  # fmt: skip

RECORDS = [
    ("interval", {"index": 1, "start_ns": 5, "end_ns": 9,
        "cost": {"bpf_ns": 4, "source": "kernel"}}),
    ("hist", {"name": "stage", "agg": "delta", **hist(3000).fields(), "labels": {
        "direction": "tx", "from": "dev.xmit", "to": "vm.copied", "interface": "vnet0"}}),
    ("hist", {"name": "stage", "agg": "total", **hist(3).fields(), "labels": {
        "direction": "rx", "from": "dev.rx", "to": "total", "interface": "vnet0",
        "peer_interface": "eth2", "peer_kind": "uplink"}}),
    ("hist", {"name": "empty", "agg": "total", "labels": {}, **Histogram().fields()}),
    ("ends", {"direction": "rx", "interface": "vnet0", "agg": "total", "started": 23, **ENDS_OF,
        "completed": 19, "dropped": 4, "late": 1, "holds": True, "by": [
            {"end": "dropped", "last_stage": "l3.in", "next_stage": "l3.deliver", "interface": None,
             "reason": "netfilter_drop", "reason_derived": False, "caller": "nf_hook_slow",
             "count": 4, "example": FLOW.fields()}]}),
    ("flow_stats", {"direction": "rx", "count": 3, "total_bytes": 4500, "sum_ns": 9, "max_ns": 5,
        "p": {"50": [1, 2], "99": None}, "agg": "delta", **FLOW.fields()}),
    ("packet", {"direction": "rx", **FLOW.fields(), "tcp_seq": 2**32 - 1, "tcp_ack": 0,
        "tcp_flags": ("syn", "ack"), "vlan_id": 100, "len_bytes": 1500, "segs": 1,
        "netns_inum": 4026531840, "total_ns": 52000, "end": "dropped", "last_stage": "dev.queue",
        "next_stage": "dev.xmit", "stages": [
            {"stage": "dev.rx", "interface": "vnet0", "ifindex": 9, "ts_ns": 1, "delta_ns": None,
             "cpu": 0, "hits": 1},
            {"stage": "dev.queue", "interface": "eth2", "ifindex": 2, "ts_ns": 52001,
             "delta_ns": 52000, "cpu": 0, "hits": 1, "stack_id": "00ff"}],
        "evidence": {"kind": "drop", "ts_ns": 52002, "reason": "qdisc_drop", "reason_code": None,
                     "caller": "__dev_queue_xmit", "caller_offset": 3329, "interface": "eth2"}}),
    ("drop", {"interface": "vnet3", "ifindex": 17, "netns_inum": 4026531840,
        "reason": "netfilter_drop", "reason_code": 8, "reason_derived": False, "class": "drop",
        "caller": "nf_hook_slow", "caller_offset": 150, "caller_module": None, **FLOW.fields(),
        "len_bytes": 74, "vlan_id": 100, "free": "drop", "context": "softirq", "cpu": 1,
        "pid": 0, "comm": b"swapper/1", "stack": [
            {"function": "nf_hook_slow", "offset": 150},
            {"function": None, "offset": None, "addr": "0xffffffff81000000"}]}),
    ("drop_group", {"group_by": ["reason", "location", "device"], "reason": "qdisc_drop",
        "reason_derived": True, "reason_also": ["tc_egress"], "caller": "__dev_queue_xmit",
        "interface": "va", "class": "drop", "drop_packets": 95, "drop_bytes": 89000,
        "total_packets": 95, "total_bytes": 89000, "first_ns": 1, "last_ns": 2,
        "stack_id": "9f00aa"}),
    ("stack", {"id": "9f00aa", "kind": "kernel", "frames": [
        {"function": "__dev_queue_xmit", "offset": 3329, "module": None}]}),
    ("governor", {"action": "sample", "cause": "max_cpu", "limit": 5.0, "sample": 4,
        "events": True, "events_per_s": 1900.5, "bpf_pct": 0.02, "user_cpu_pct": 9.1,
        "lost_pct": 0.0, "ring_pct": 3.2, "memory_pct": 61.0}),
    ("governor", {"action": "gap", "cause": "heartbeat", "gap_ns": 12 * 10**9}),
    ("echo", {"status": "internal_drop_rep", "family": "ipv4", "protocol": "icmp",
        "src_ip": "192.0.2.1", "dst_ip": "192.0.2.2", "icmp_id": 77, "icmp_seq": 1,
        "len_bytes": 84, "vlan_id": None, "req_internal_ns": 5, "external_ns": 7, "stages": {
            "req_rx": {"ts_ns": 1, "interface": "eth2", "ifindex": 2},
            "req_tx": {"ts_ns": 6, "interface": "vnet0", "ifindex": 9},
            "rep_rx": {"ts_ns": 13, "interface": "vnet0", "ifindex": 9}},
        "nat": {"src_ip": "198.51.100.1", "dst_ip": "192.0.2.2", "icmp_id": 5},
        "evidence": {"kind": "drop", "ts_ns": 20, "caller": "nf_hook_slow"}}),
    ("path_stats", {"agg": "total", "echoes": 1, "complete": 0, "internal_drop_req": 0,
        "external_drop": 0, "internal_drop_rep": 1, "timeout": 0, "unpaired": 3, "duplicate": 0}),
    ("path_stats", {"direction": "forward", "agg": "delta", "units_in": 5, "units_out": 4,
        "segs_in": 9, "segs_out": 8, "bytes_in": 9000, "bytes_out": 8000, "split_out": 0, "syn": 1,
        "fin": 0, "rst": 0, "retrans_after": 1, "retrans_before": 1, "dup_ack": 2, "started": 5,
        "completed": 4, "split": 0, "dropped": 1, "timed_out": 0, "open": 0, "holds": None,
        "by": [{"end": "dropped", "last_stage": "dev.rx", "interface": "eth2", "count": 1,
                "reason": "netfilter_drop", "caller": "nft_do_chain"}]}),
    ("datagram", {"direction": "forward", "status": "internal_drop_partial", **FLOW.fields(),
        "ip_id": 9, "bytes_in": 4008, "bytes_out": 2960, "datagram_bytes": 4008,
        "fragments_in": 3, "fragments_out": 2, "total_ns": 70000,
        "evidence": {"kind": "drop", "ts_ns": 20, "caller": "nf_hook_slow"}}),
    ("qdisc_stats", {"agg": "total", "interface": "eth2", "ifindex": 2, "netns_inum": 4026531840,
        "tx_queue": 0, "qdisc": "tbf", "handle": "9:", "parent": "root", "queued": 5,
        "dequeued": 3, "bypassed": 0, "dropped": 1, "split": 1, "consumed": 0, "stale": 0,
        "timed_out": 0, "open": 0, "taken": 9, "sent": 9, "taken_dropped": 0, "taken_split": 0,
        "taken_consumed": 0, "taken_stale": 0, "taken_timed_out": 0, "taken_open": 0,
        "requeued": 0, "refused": 0, "segments": 6, "children": 6, "reordered": 1, "bulks": 9,
        "bytes": 9000, "holds": True, "drops": [{"state": "queued", "count": 1,
            "reason": "qdisc_drop", "reason_derived": True, "caller": "kfree_skb_list"}]}),
    ("qdisc_packet", {"end": "dropped", "interface": "eth2", "ifindex": 2, "tx_queue": 0,
        "qdisc": "tbf", "handle": "9:", "parent": "root", **FLOW.fields(), "wait_ns": 5,
        "total_ns": 5, "qlen_packets": 4, "len_bytes": 1042, "segs": 1, "cpu": 1,
        "reason": "qdisc_drop", "reason_code": 7, "caller": "__dev_queue_xmit"}),
    ("hist", {"name": "softirq", "agg": "total", **hist(3).fields(),
        "labels": {"cpu": 1, "thread": "ksoftirqd", "time": "wake"}}),
    ("softirq_stats", {"cpu": 1, "agg": "total", "threads": [{"thread": "ksoftirqd", "runs": 3,
        "wakes": 2, "preempted": 1, "unknown": 0, "over": 1, "wait_ns": 9, "run_ns": 5}],
        "vectors": [{"vector": "net_rx", "entries": 3, "delays": 2, "unknown": 1, "over": 0,
            "entries_idle": 1, "entries_ksoftirqd": 1, "entries_task": 1, "run_ns_idle": 5,
            "run_ns_ksoftirqd": 5, "run_ns_task": 0, "ksoftirqd_pct": 50.0}],
        "napi": {"polls": 3, "packets": 90, "exhausted": 1}, "waiting": [
            {"pid": 21, "comm": "ksoftirqd/1", "kind": "preempt", "waiting_ns": 5000000}],
        "threshold_ns": 100000, "holds": True}),
    ("softirq_event", {"kind": "preempt", "cpu": 1, "delay_ns": 20000000, "thread": "ksoftirqd",
        "pid": 21, "comm": "ksoftirqd/1", "prev_pid": 900, "prev_comm": "hog", "prev_prio": 49}),
    ("softirq_event", {"kind": "raise", "cpu": 1, "delay_ns": 200000, "vector": "net_rx",
        "context": "task", "prev_pid": 900, "prev_comm": "hog", "prev_prio": -1}),
    ("correction", {"ref_seq": 7, "direction": "rx", "was": "timed_out", "end": "completed",
        "last_stage": "vm.copied", "total_ns": 2000000000, **FLOW.fields()}),
]  # fmt: skip

SUMMARY = {
    "cost": {"bpf_ns": 912000, "runs": 900, "user_cpu_ns": 40000000, "max_rss_bytes": 11000000},
    "invariant": {"started": 23, **ENDS_OF, "completed": 23, "holds": True},
    "counts": {"late": 1, "repeats": 2},
    "events": {"wanted": 5, "sampled_out": 3, "switched_off": 0},
    "asleep_ns": 2000000000,
    "forced": True,
    "explain": {"device": 400, "address": 3},
}


def stream(lost):
    out = io.StringIO()
    writer = Writer(out, "ntools-vm-latency", version="1")
    writer.header(**HEADER)
    writer.lost = lost
    for kind, fields in RECORDS:
        writer.record(kind, ts_ns=81234567890, **fields)
    writer.summary("signal", **SUMMARY)
    return [json.loads(line) for line in out.getvalue().splitlines()]


#: Tested elsewhere: what no run of a command writes.
OTHERS = {"clock", "merge_counts", "merge_summary", "merge_verdict"}


@pytest.mark.parametrize("lost", [{}, {"ring_full": 0}, {"ring_full": 312, "map_full": 1}])
def test_records_of_every_type_are_valid(lost):
    records = stream(lost)
    for record in records:
        check(record)
    assert {record["type"] for record in records} | OTHERS == set(schema.names())


def test_clock_is_valid():
    check({"type": "clock", "seq": 3, "ts_ns": 1, "utc_ns": 2, "epoch_offset_ns": -1,
           "epoch_error_ns": 40, "step_ns": -3600000000000})  # fmt: skip


@pytest.mark.parametrize(
    "kind, change",
    [
        ("drop", {"class": None}),
        ("drop", {"src_port": 65536}),
        ("drop", {"src_port": "443"}),
        ("drop", {"invented": 1}),
        ("drop", {"lost": {"ring_full": 1}}),
        ("summary", {"lost": 3}),
        ("summary", {"end": "tired"}),
        ("packet", {"end": "vanished"}),
        ("packet", {"stages": [{"stage": "dev.rx"}]}),
        ("hist", {"slots": [[1, 2, 3]]}),
        ("hist", {"p": {"50": 3}}),
        ("ends", {"started": None}),
        ("header", {"schema": 2}),
    ],
)
def test_wrong_records_are_refused(kind, change):
    record = next(record for record in stream({}) if record["type"] == kind)
    check(record)
    record.update(change)
    with pytest.raises(jsonschema.ValidationError):
        check({name: value for name, value in record.items() if value is not None})


def test_readers_may_meet_keys_they_do_not_know():
    for record in stream({}):
        check(dict(record, new_key=1), closed=False)


def test_unknown_type():
    with pytest.raises(KeyError):
        schema.load("parts")


def _properties(node):
    if isinstance(node, dict):
        for name, value in node.get("properties", {}).items():
            yield name, value
        for value in node.values():
            yield from _properties(value)
    elif isinstance(node, list):
        for value in node:
            yield from _properties(value)


@pytest.mark.parametrize("kind", schema.names())
def test_every_field_is_described_with_its_unit(kind):
    loaded = schema.load(kind)
    jsonschema.Draft7Validator.check_schema(loaded)
    assert loaded["title"]
    for name, value in _properties(loaded):
        text = value.get("description", "")
        assert text.endswith("."), f"{kind}.{name}"
        if name.endswith("_ns"):
            assert "ns" in text, f"{kind}.{name}"
        if name.endswith("_bytes"):
            assert "bytes" in text, f"{kind}.{name}"
