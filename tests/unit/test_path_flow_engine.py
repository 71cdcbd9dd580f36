# SPDX-License-Identifier: GPL-2.0-only
"""The engine of flows on a path without a kernel: its layouts come from the installed object."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from unit.test_echo_engine import PHY, TAP, FakeMap, FakeObject

import ntools
from ntools._loader.btf import Types
from ntools._loader.elf import sections
from ntools.engine.path_flow import ENDS, FlowEngine, FlowOptions
from ntools.host.sides import Sides
from ntools.model.filter import PacketFilter
from ntools.output.jsonl import Writer
from ntools.output.path import flow_lines, unit_lines

OBJECT = Path(ntools.__file__).parent / "bpf" / "path_flow_detail.x86.bpf.o"
MS = 1_000_000
A, B = b"\n\0\0\1".ljust(16, b"\0"), b"\n\0\0\2".ljust(16, b"\0")
FLOW = (A, B, 40000, 80, 0x800, 4, 6)


class Cells(FakeMap):
    percpu_stride = 8


class Bench:
    def __init__(self, **options):
        self.obj = FakeObject()
        self.obj.types = Types(sections(OBJECT.read_bytes())[".BTF"])
        self.obj.manifest = self.obj.types.manifest()
        self.flight = self.obj.types.struct("nt_flight")
        self.way = self.obj.types.struct("nt_way")
        self.obj.maps.update(
            {name: FakeMap(value=self.flight) for name in ("flights", "graves")},
            times=Cells(), flows=Flows(),
        )  # fmt: skip
        options.setdefault("shown", "lost")
        self.engine = FlowEngine(
            self.obj, Sides((PHY,), (TAP,)), FlowOptions(PacketFilter(), **options)
        )
        self.stream = io.StringIO()
        self.writer = Writer(self.stream, "ntools-tcp-path")
        self.writer.header()
        self.engine.begin()

    def record(self, start=10, end_seq=100, reply=False, freed=0, **more):
        src, dst, src_port, dst_port, *rest = FLOW
        if reply:
            src, dst, src_port, dst_port = dst, src, dst_port, src_port
        fields = dict(zip(("eth_proto", "family", "protocol"), rest), src=src, dst=dst,
                      src_port=src_port, dst_port=dst_port)  # fmt: skip
        values = {"tuple__" + name: value for name, value in fields.items()}
        values.update(start_ns=start * MS, last_ns=start * MS, end_seq=end_seq, free_ns=freed * MS,
                      direction=int(reply), entry_ifindex=9 if reply else 7, last_ifindex=7,
                      vlan_id=0xFFFF, **more)  # fmt: skip
        return self.flight.codec.unpack(self.flight.pack(values))

    def put(self, where, *records):
        pairs = self.obj.maps[where].pairs
        for record in records:
            pairs[len(pairs).to_bytes(8, "little")] = record

    def flow(self, forward=None, reply=None):
        ways = (self.way.pack(forward or {}), self.way.pack(reply or {}))
        self.obj.maps["flows"].pairs[FLOW] = b"".join(ways)

    def end(self, now=5000):
        self.engine.now_ns = now * MS
        self.engine.finish(self.writer)
        self.engine.report(self.writer, True)
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        stats = {rec["direction"]: rec for rec in found if rec["type"] == "path_stats"}
        return [rec for rec in found if rec["type"] == "packet"], stats


class Flows(FakeMap):
    def items_bytes(self):
        return [(b"", value) for value in self.pairs.values()]


@pytest.fixture(autouse=True)
def built():
    if not OBJECT.exists():
        pytest.skip("no object: make build")


def test_totals_of_all_flows():
    bench = Bench()
    bench.flow({"units_in": 5, "units_out": 4, "bytes_in": 500}, {"units_in": 3, "dup_ack": 2})
    bench.obj.map("ends").pairs.update({0: 5, 1: 4})
    _, stats = bench.end()
    forward, reply = stats["forward"], stats["reply"]
    assert (forward["units_in"], forward["units_out"], forward["bytes_in"]) == (5, 4, 500)
    assert (forward["started"], forward["completed"], reply["dup_ack"]) == (5, 4, 2)
    assert forward["holds"] is False  # one of five has no end


def test_freed_inside_is_dropped():
    bench = Bench()
    bench.put("flights", bench.record(freed=11))
    (packet,), stats = bench.end()
    assert (packet["end"], packet["direction"], packet["interface"]) == (
        "dropped", "forward", "phy0",
    )  # fmt: skip
    (group,) = stats["forward"]["by"]
    assert (stats["forward"]["dropped"], group["end"], group["count"]) == (1, "dropped", 1)


@pytest.mark.parametrize(
    "top_out, end", [(100, "split"), (99, "timed_out"), (2**32 - 5, "timed_out"), (150, "split")]
)
def test_what_it_carried_has_left(top_out, end):
    bench = Bench()
    bench.flow({"top_out": top_out, "known": 2})
    bench.put("flights", bench.record(end_seq=100))
    _, stats = bench.end()
    assert {name: stats["forward"][name] for name in ENDS if stats["forward"][name]} == {end: 1}


def test_replies_are_looked_up_by_the_forward_direction():
    bench = Bench()
    bench.flow({"top_out": 0, "known": 2}, {"top_out": 100, "known": 2})
    bench.put("graves", bench.record(reply=True))
    _, stats = bench.end()
    assert stats["reply"]["split"] == 1


def test_given_up_without_room_for_its_description():
    """Two were given up, one of them fits the map: the other is counted, too."""
    bench = Bench()
    bench.obj.map("ends").pairs.update({0: 3, 1: 1, 3: 2})
    bench.put("graves", bench.record())
    _, stats = bench.end()
    forward = stats["forward"]
    assert (forward["started"], forward["completed"], forward["timed_out"]) == (3, 1, 2)
    assert forward["holds"]


def test_still_inside_at_the_end():
    bench = Bench()
    bench.put("flights", bench.record(start=4900))
    _, stats = bench.end(5000)
    assert stats["forward"]["open"] == 1


def test_text():
    bench = Bench()
    bench.put("flights", bench.record(freed=11))
    packets, stats = bench.end()
    lines = flow_lines([stats["forward"], stats["reply"]], [])
    assert any(line.split()[:4] == ["forward", "0", "0", "1"] for line in lines)
    assert any("last seen at vnet0" in line or "last seen at phy0" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)
    assert "DROPPED" in unit_lines(packets[0])[0]
