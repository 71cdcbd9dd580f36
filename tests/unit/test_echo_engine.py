# SPDX-License-Identifier: GPL-2.0-only
"""The echo engine without a kernel: its struct layouts come from the installed object."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import ntools
from ntools._loader.btf import Types
from ntools._loader.elf import sections
from ntools.engine.echo import STATUSES, EchoEngine, EchoOptions
from ntools.host.devices import Device
from ntools.host.sides import Sides
from ntools.model.filter import PacketFilter
from ntools.output.echo import stats_lines
from ntools.output.jsonl import Writer

OBJECT = Path(ntools.__file__).parent / "bpf" / "path_echo.x86.bpf.o"
MS = 1_000_000
PHY, TAP = (
    Device(name, index, 100, kind, None, 1500, None, True, False)
    for name, index, kind in (("phy0", 7, "physical"), ("vnet0", 9, "tap"))
)


class FakeMap:
    """Keys and values decoded, or as the bytes of a layout."""

    def __init__(self, key=None, value=None):
        self.pairs, self.key, self.value = {}, key, value

    def items(self):
        return iter(list(self.pairs.items()))

    def items_bytes(self):
        return [(key, self.value.codec.pack(*value)) for key, value in self.pairs.items()]

    def lookup(self, key):
        return self.pairs.get(key)

    def update(self, key, value):
        self.pairs[key] = value

    def delete(self, key):
        return self.pairs.pop(key, None) is not None

    def sums(self):
        return [self.pairs.get(index, 0) for index in range(64)]


class FakeObject:
    def __init__(self):
        if not OBJECT.exists():
            pytest.skip("no object: make build")
        self.types = Types(sections(OBJECT.read_bytes())[".BTF"])
        self.manifest = self.types.manifest()
        self.name, self.kernel = "path_echo", self
        self.enum_names = lambda enum: {}
        self.config = {}
        flight = self.types.struct("nt_flight")
        self.maps = {name: FakeMap(value=flight) for name in ("flights", "graves")}

    def configure(self, **values):
        self.config.update(values)

    def resize(self, name, size):
        pass

    def map(self, name):
        return self.maps.setdefault(name, FakeMap())

    def programs(self):
        return []

    def forget(self):
        pass

    def channel(self, name="events"):
        return FakeChannel()


class FakeChannel:
    lost = 0
    fd = 0

    def read(self):
        return iter(())


class Bench:
    """An engine, and packets as its kernel side describes them."""

    def __init__(self, **options):
        self.obj = FakeObject()
        sides = Sides((PHY,), (TAP,))
        self.engine = EchoEngine(self.obj, sides, EchoOptions(PacketFilter(), **options))
        self.stream = io.StringIO()
        self.writer = Writer(self.stream, "ntools-icmp-path")
        self.writer.header()
        self.engine.begin()
        self._flight = self.obj.types.struct("nt_flight")

    def flight(self, seq=1, start=10, last=10, reply=False, request=0, nat=None, **more):
        """``struct nt_flight``; times in ms."""
        src, dst = (b"\n\0\0\1", b"\n\0\0\2")[:: -1 if reply else 1]
        values = {
            "tuple__src": src, "tuple__dst": dst, "tuple__src_port": 0 if reply else 8 << 8,
            "tuple__dst_port": 77, "tuple__eth_proto": 0x800, "tuple__family": 4,
            "tuple__protocol": 1, "seq": seq, "start_ns": start * MS, "last_ns": last * MS,
            "entry_ifindex": 9 if reply else 7, "last_ifindex": 7 if reply else 9,
            "direction": int(reply), "request_ns": request * MS, "vlan_id": 0xFFFF, **more,
        }  # fmt: skip
        kept = ("src", "dst", "src_port", "dst_port", "eth_proto", "family", "protocol")
        out = {name: values["tuple__" + name] for name in kept}
        out.update(nat or {})
        values.update({"out__" + name: value for name, value in out.items()})
        return self._flight.codec.unpack(self._flight.pack(values))

    def take(self, *records):
        self.engine.take(records, self.writer)

    def sweep(self, now):
        self.engine.now_ns = now * MS
        self.engine.sweep(self.writer)

    def put(self, where, record):
        self.obj.maps[where].pairs[len(self.obj.maps[where].pairs).to_bytes(8, "little")] = record

    def end(self):
        """Statuses of all echoes, and the counts of the run."""
        self.engine.finish(self.writer)
        self.engine.report(self.writer, True)
        records = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        (stats,) = [rec for rec in records if rec["type"] == "path_stats"]
        return [rec for rec in records if rec["type"] == "echo"], stats


def test_request_and_reply_are_one_echo():
    bench = Bench(everything=True)
    bench.take(bench.flight(start=10, last=11))
    bench.take(bench.flight(start=15, last=17, reply=True, request=10))
    (echo,), stats = bench.end()
    assert (echo["status"], echo["src_ip"], echo["dst_ip"]) == ("complete", "10.0.0.1", "10.0.0.2")
    parts = [echo[name + "_ns"] // MS for name in
             ("req_internal", "external", "rep_internal", "total")]  # fmt: skip
    assert parts == [1, 4, 2, 7]
    stages = [echo["stages"][name] for name in ("req_rx", "req_tx", "rep_rx", "rep_tx")]
    assert [stage["interface"] for stage in stages] == ["phy0", "vnet0", "vnet0", "phy0"]
    assert (stats["echoes"], stats["complete"]) == (1, 1)


def test_complete_echoes_are_counted_but_not_shown():
    bench = Bench()
    bench.take(bench.flight(), bench.flight(start=15, last=17, reply=True, request=10))
    echoes, stats = bench.end()
    assert (echoes, stats["complete"]) == ([], 1)


def test_request_that_does_not_leave():
    bench = Bench()
    bench.put("flights", bench.flight())
    bench.sweep(500)
    assert not bench.engine._counts
    bench.sweep(1011)
    (echo,), stats = bench.end()
    assert (echo["status"], list(echo["stages"])) == ("internal_drop_req", ["req_rx"])
    assert (stats["echoes"], stats["internal_drop_req"]) == (1, 1)


def test_buffer_that_went_to_another_packet_waits_for_its_time():
    """The request may leave as another buffer: only what does not is lost."""
    bench = Bench(everything=True)
    bench.put("graves", bench.flight(seq=1, start=10))
    bench.put("graves", bench.flight(seq=2, start=20, last=20))
    bench.sweep(100)
    bench.take(bench.flight(seq=1, start=10, last=300))
    bench.take(bench.flight(seq=1, start=301, last=302, reply=True, request=10))
    bench.sweep(1100)
    echoes, stats = bench.end()
    assert [(rec["icmp_seq"], rec["status"]) for rec in echoes] == [
        (1, "complete"), (2, "internal_drop_req"),
    ]  # fmt: skip
    assert stats["echoes"] == 2


def test_no_reply():
    bench = Bench()
    bench.take(bench.flight(last=11))
    bench.sweep(1000)
    assert not bench.engine._counts
    bench.sweep(1012)
    (echo,), _ = bench.end()
    assert (echo["status"], sorted(echo["stages"])) == ("external_drop", ["req_rx", "req_tx"])


def test_reply_that_is_inside_has_time_of_its_own():
    bench = Bench()
    record = bench.flight(last=11)
    bench.take(record)
    key = bench.engine._echo_key(record)
    bench.obj.map("echoes").pairs[key] = (10 * MS, 11 * MS, 900 * MS, 0, 0, 0)
    bench.put("flights", bench.flight(start=900, last=900, reply=True, request=10))
    bench.sweep(1012)
    assert not bench.engine._counts
    bench.sweep(1901)
    (echo,), stats = bench.end()
    assert (echo["status"], stats["echoes"]) == ("internal_drop_rep", 1)
    assert not bench.obj.map("echoes").pairs


def test_end_of_the_run_is_no_verdict():
    bench = Bench()
    bench.put("flights", bench.flight(seq=1))
    bench.take(bench.flight(seq=2, start=20, last=21))
    bench.put("flights", bench.flight(seq=3, start=40, last=40, reply=True, request=30))
    bench.engine.now_ns = 50 * MS
    echoes, stats = bench.end()
    assert {rec["status"] for rec in echoes} == {"timeout"} and stats["timeout"] == 3


def test_what_was_lost_is_a_timeout():
    bench = Bench()
    bench.obj.map("ends").pairs[0] = 3
    bench.take(bench.flight(), bench.flight(start=15, last=17, reply=True, request=10))
    _, stats = bench.end()
    assert (stats["echoes"], stats["complete"], stats["timeout"]) == (3, 1, 2)


def test_later_than_the_verdict():
    bench = Bench()
    bench.put("flights", bench.flight())
    bench.sweep(1011)
    bench.take(bench.flight(start=10, last=1012))
    _, stats = bench.end()
    assert (stats["echoes"], stats["internal_drop_req"]) == (1, 1)


def test_translated_request():
    bench = Bench(everything=True)
    bench.take(bench.flight(nat={"src": b"\xc0\0\2\1", "dst_port": 99}))
    bench.take(bench.flight(start=15, last=17, reply=True, request=10))
    (echo,), _ = bench.end()
    assert echo["nat"] == {"src_ip": "192.0.2.1", "dst_ip": "10.0.0.2", "icmp_id": 99}


def test_text_fits_a_terminal():
    many = dict.fromkeys(("echoes", *STATUSES, "unpaired", "duplicate"), 1_234_567)
    lines = stats_lines({"agg": "total", **many}, [])
    assert all(len(line) <= 80 for line in lines)
    assert all(name in " ".join(lines) for name in STATUSES)
