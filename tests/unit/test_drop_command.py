# SPDX-License-Identifier: GPL-2.0-only
"""Options, text and plan of ntools-drop."""

from __future__ import annotations

from collections import namedtuple

import pytest

from ntools.cli import plan
from ntools.errors import UsageProblem
from ntools.output.drop import DropView, event_lines, report_lines, why_lines
from ntools.tools import drop

EVENT = {
    "type": "drop", "utc_ns": 1_700_000_000_123_456_000, "reason": "netfilter_drop",
    "interface": "vnet0", "netns_inum": 1, "class": "drop", "caller": "nft_do_chain",
    "caller_offset": 1000, "family": "ipv4", "protocol": "udp", "src_ip": "10.99.1.1",
    "dst_ip": "10.99.1.2", "src_port": 41822, "dst_port": 7777, "len_bytes": 38,
    "cpu": 1, "comm": "qemu", "pid": 5, "truesize_bytes": 768,
    "stack": [{"function": f"some_function_{i}", "offset": i} for i in range(9)],
}  # fmt: skip


def group_by(*argv):
    return drop._group_by(drop.parser().parse_args(argv))


@pytest.mark.parametrize(
    "argv, expected",
    [
        ((), ()),
        (("--mode", "event"), ()),
        (("--mode", "summary"), ("reason", "location", "device")),
        (("--top", "3"), ("reason", "location", "device")),
        (("--max-entries", "256"), ("reason", "location", "device")),
        (("--group-by", "port,reason"), ("reason", "port")),
        (("--stack",), ("reason", "location", "device", "stack")),
        (("--group-by", "all"), ("reason", "location", "device", "fivetuple", "stack")),
    ],
)
def test_table_is_implied(argv, expected):
    assert group_by(*argv) == expected


def test_events_have_no_rows():
    with pytest.raises(UsageProblem, match="--top"):
        group_by("--mode", "event", "--top", "3")


@pytest.mark.parametrize(
    "argv",
    [
        ("--group-by", "colour"),
        ("--group-by", ","),
        ("--max-entries", "255"),
        ("--max-entries", "1048577"),
        ("--rate-limit", "-1"),
        ("--type", "0x10000"),
        ("--normal", "maybe"),
        ("--reason",),
    ],
)
def test_bad_values_are_one_line(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        drop.parser().parse_args(argv)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_manual_names_every_option():
    """What the manual says of options is about options there are."""
    import re

    text = " ".join(drop.MANUAL.values()) + drop.EXAMPLES
    known = {option for action in drop.parser()._actions for option in action.option_strings}
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= known


def test_event_text():
    lines = event_lines(EVENT, 1, True, False)
    assert lines[0].endswith(" netfilter_drop vnet0 udp 10.99.1.1:41822 > 10.99.1.2:7777 38B")
    assert lines[1].startswith("    at    some_function_0+0x0 < some_function_1+0x1 <")
    assert lines[-1].endswith("...")
    assert max(len(line) for line in lines) <= 80


def test_event_text_of_the_unusual():
    rec = dict(EVENT, reason_derived=True, netns_inum=2, vlan_id=100, **{"class": "purge"})
    del rec["stack"], rec["interface"]
    rec["ifindex"] = 7
    text = "\n".join(event_lines(rec, 1, True, True))
    for part in ("~netfilter_drop if7 netns 2 vlan 100", "(purge)", "at    nft_do_chain+0x3e8",
                 "cpu 1 qemu[5]"):  # fmt: skip
        assert part in text
    assert "(purge)" not in "\n".join(event_lines(rec, 1, False, False))


def test_arp_text():
    rec = {
        "utc_ns": 0, "reason": "otherhost", "class": "drop", "eth_type": "arp",
        "arp_op": "request", "src_ip": "10.0.0.1", "dst_ip": "10.0.0.2", "len_bytes": 28,
    }  # fmt: skip
    assert (
        "otherhost - arp who-has 10.0.0.2 tell 10.0.0.1 28B" in event_lines(rec, 1, True, False)[0]
    )


def test_why():
    assert why_lines(EVENT)[0].startswith("    why   ")
    assert "or tcp_csum" in " ".join(
        why_lines(dict(EVENT, reason="no_socket", reason_also=["tcp_csum"]))
    )
    assert why_lines(dict(EVENT, reason="reason_nobody_described")) == []


def test_reason_is_explained_once():
    view = DropView(1, True, False, False)
    assert sum("why" in line for _ in range(3) for line in view.drop(EVENT)) == 1


def test_report_text():
    row = {
        "group_by": ["reason", "location", "device", "fivetuple", "stack"], "class": "drop",
        "reason": "qdisc_drop", "caller": "__dev_queue_xmit", "interface": "va",
        "drop_packets": 95, "drop_bytes": 89400, "protocol": "udp", "src_ip": "fd00:1:2:3::1",
        "dst_ip": "fd00:1:2:3::2", "src_port": 1, "dst_port": 65535, "stack_id": "ab",
    }  # fmt: skip
    rest = {"group_by": row["group_by"], "other": True, "drop_packets": 3}
    lines = report_lines("whole run", [row, rest], {"ab": EVENT["stack"]}, False)
    assert lines[1] == "whole run: 98 drops"
    assert lines[3].split() == ["95", "89400", "qdisc_drop", "__dev_queue_xmit", "va", "drop"]
    assert "udp [fd00:1:2:3::1]:1 > [fd00:1:2:3::2]:65535" in lines[4]
    assert lines[-1].strip() == "3  in all other rows"
    assert max(len(line) for line in lines) <= 80
    assert report_lines("12:00", [dict(rest, drop_packets=0)], {}, False) == ["", "12:00: 0 drops"]


Candidate = namedtuple("Candidate", "program mechanism target")
Point = namedtuple("Point", "name candidates")
Report = namedtuple("Report", "point attach target failed")
Refusal = namedtuple("Refusal", "mechanism target errno text")


class FakeObject:
    points = {
        "free_drop": Point(
            "free_drop",
            [Candidate("a", "tp_btf", "kfree_skb"), Candidate("b", "raw_tp", "kfree_skb")],
        )
    }

    def __init__(self, refused):
        self.refused = refused

    def outlook(self):
        failed = [Refusal("tp_btf", "kfree_skb", 0, "this kernel has no BTF")]
        if self.refused:
            return [Report("free_drop", "raw_tp", "kfree_skb", failed)]
        return [Report("free_drop", "tp_btf", "kfree_skb", [])]

    def map_bytes(self):
        return [("events", 4096, 4096), ("nt_cfg", 1, 512)]


def test_plan():
    lines = plan.plan_lines(FakeObject(False), {"dst_port": 9, "vlan_id": None}, "low")
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["free.drop", "tp_btf/kfree_skb", "first"], ["free.drop", "raw_tp/kfree_skb", "if"],
    ]  # fmt: skip
    assert "memory of all maps: 4.5 KiB" in lines
    assert "filters: dst_port=9" in lines
    assert lines[-1] == "overhead class: low"


def test_plan_tells_why_not():
    lines = plan.plan_lines(FakeObject(True), {}, "low")
    assert "no: this kernel has no BTF" in lines[1]
    assert "first choice" in lines[2]
    assert "filters: none" in lines
