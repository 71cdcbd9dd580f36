# SPDX-License-Identifier: GPL-2.0-only
"""The qdisc engine without a kernel: its layouts come from the installed object."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest
from unit.test_echo_engine import FakeMap, FakeObject

import ntools
from ntools._loader.btf import Types
from ntools._loader.elf import sections
from ntools.engine.qdisc import ENDS, TAKEN_ENDS, QdiscEngine, QdiscOptions
from ntools.errors import UsageProblem
from ntools.host.devices import Device
from ntools.model.filter import PacketFilter, Rule
from ntools.output.jsonl import Writer
from ntools.output.qdisc import packet_lines, queue_lines, summary_lines

OBJECT = Path(ntools.__file__).parent / "bpf" / "qdisc.x86.bpf.o"
MS = 1_000_000
ETH = Device("eth2", 7, 100, "physical", None, 1500, None, True, False)
KEY = (100, 7, 0, 0x90000)
A, B = b"\n\0\0\1".ljust(16, b"\0"), b"\n\0\0\2".ljust(16, b"\0")


class Rows(FakeMap):
    """A map whose keys and values are packed by their layouts."""

    percpu_stride = 552

    def items_bytes(self):
        return [(self.key.codec.pack(*key), value) for key, value in self.pairs.items()]

    def lookup(self, key):
        value = self.pairs.get(key)
        return self.value.codec.unpack(value) if value else None


class Queued(FakeMap):
    """Packets under way, by the address of their skb."""


class Bench:
    def __init__(self, **options):
        self.obj = FakeObject()
        types = self.obj.types = Types(sections(OBJECT.read_bytes())[".BTF"])
        self.obj.manifest = types.manifest()
        self.row, self.packet_type = types.struct("nt_qdisc_row"), types.struct("nt_queued")
        self.count = types.enum("nt_qdisc_count")
        self.obj.maps.update(
            queues=Rows(types.struct("nt_qdisc_key"), self.row),
            queue_times=Rows(types.struct("nt_qdisc_time_key"), types.struct("nt_hist")),
            queued=Queued(value=self.packet_type),
        )
        self.engine = QdiscEngine(self.obj, QdiscOptions(devices=(ETH,), **options))
        self.stream = io.StringIO()
        self.writer = Writer(self.stream, "ntools-qdisc-latency")
        self.writer.header()
        self.engine.begin()

    def queue(self, key=KEY, qlens=(), bulks=(), flags=0, **counts):
        words = [0] * self.count["NT_COUNT_MAX"]
        for name, value in counts.items():
            words[self.count["NT_COUNT_" + name.upper()]] = value

        def slots(given):
            return struct.pack("<20I", *([*given] + [0] * 20)[:20])

        self.obj.maps["queues"].pairs[key] = self.row.pack(
            {"kind": b"tbf", "parent": 0xFFFFFFFF, "flags": flags, "qlen_max": 5,
             "counts": struct.pack(f"<{len(words)}Q", *words), "qlens": slots(qlens),
             "bulks": slots(bulks)}
        )  # fmt: skip

    def packet(self, end="NT_COUNT_SENT", port=80, **more):
        values = {"tuple__src": A, "tuple__dst": B, "tuple__src_port": 40000,
                  "tuple__dst_port": port, "tuple__eth_proto": 0x800, "tuple__family": 4,
                  "tuple__protocol": 17, "vlan_id": 0xFFFF, "qlen": 0xFFFFFFFF, "segs": 1,
                  "end": self.count[end]}  # fmt: skip
        values.update(zip(("row__netns", "row__ifindex", "row__queue", "row__handle"), KEY))
        return self.packet_type.codec.unpack(self.packet_type.pack({**values, **more}))

    def wait(self, *records):
        for number, record in enumerate(records):
            self.obj.maps["queued"].pairs[number] = record

    def records(self, kind):
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [rec for rec in found if rec["type"] == kind]

    def end(self, now=5000):
        self.engine.now_ns = self.writer.now_ns = now * MS
        self.engine.finish(self.writer)
        self.engine.report(self.writer, True)
        self.writer.summary("signal", **self.engine.totals())
        return self.records("qdisc_stats")


@pytest.fixture(autouse=True)
def built():
    if not OBJECT.exists():
        pytest.skip("no object: make build")


def test_counts_and_their_sums():
    bench = Bench()
    bench.queue(queued=5, dequeued=3, dropped=1, split=1, taken=6, sent=6, segments=3, children=3)
    (row,) = bench.end()
    assert (row["interface"], row["handle"], row["parent"]) == ("eth2", "9:", "root")
    assert (row["queued"], row["dequeued"], row["holds"]) == (5, 3, True)
    (summary,) = bench.records("summary")
    assert summary["invariant"]["completed"] == 4 and summary["invariant"]["holds"] is True


@pytest.mark.parametrize(
    "wrong", [{"queued": 6}, {"taken": 7}, {"bypassed": 1}, {"taken_dropped": 1}]
)
def test_what_does_not_add_up_is_said(wrong):
    bench = Bench()
    bench.queue(**{"queued": 5, "dequeued": 5, "taken": 5, "sent": 5, **wrong})
    (row,) = bench.end()
    assert row["holds"] is False
    assert any("do not add up" in line for line in queue_lines(row, {}, False))
    assert "NOT ACCOUNTED FOR" in summary_lines(bench.records("summary")[0])[1]


def test_still_waiting_and_given_up():
    bench = Bench(timeout_s=1.0)
    bench.queue(queued=3, dequeued=1, taken=1)
    bench.wait(
        bench.packet(start_ns=10 * MS, last_ns=10 * MS),
        bench.packet(start_ns=4900 * MS, last_ns=4900 * MS),
        bench.packet(start_ns=10 * MS, taken_ns=4900 * MS, last_ns=4900 * MS, state=1),
    )
    bench.engine.now_ns = bench.writer.now_ns = 5000 * MS
    overdue = [key for key, value in bench.obj.maps["queued"].pairs.items() if value[0] < 4000 * MS]
    assert overdue == [0]  # the first field is what the sweep goes by
    for record in [bench.obj.maps["queued"].pairs.pop(0)]:
        bench.engine._give_up(record, "timed_out", bench.writer)
    (row,) = bench.end()
    assert (row["timed_out"], row["open"], row["taken_open"], row["holds"]) == (1, 1, 1, True)


def test_reports_are_differences():
    bench = Bench()
    bench.queue(queued=5, dequeued=5, taken=5, sent=5, qlens=(5,))
    bench.engine.report(bench.writer, False)
    bench.queue(queued=7, dequeued=7, taken=7, sent=7, qlens=(5, 2), qlen_sum=2)
    bench.engine.report(bench.writer, False)
    bench.engine.report(bench.writer, False)  # nothing new: no record
    assert [rec["queued"] for rec in bench.records("qdisc_stats")] == [5, 2]
    assert [rec["count"] for rec in bench.records("hist")] == [5, 2]
    (last,) = [rec for rec in bench.end() if rec["agg"] == "total"]
    assert last["queued"] == 7
    assert bench.records("hist")[-1]["max"] == 5


def test_packets():
    bench = Bench(details=True, order=True)
    bench.queue(queued=2)
    sent = bench.packet(start_ns=10 * MS, taken_ns=14 * MS, last_ns=15 * MS, qlen=3, bulk=2,
                        position=1, late=1, len_bytes=1042)  # fmt: skip
    passed = bench.packet("NT_COUNT_BYPASSED", start_ns=20 * MS, last_ns=21 * MS)
    child = bench.packet(taken_ns=30 * MS, last_ns=31 * MS, child=1)
    assert bench.engine.take([sent, passed, child], bench.writer) == 3
    first, second, third = bench.records("qdisc_packet")
    assert (first["end"], first["wait_ns"], first["driver_ns"]) == ("sent", 4 * MS, MS)
    assert (first["qlen_packets"], first["position"], first["reordered"]) == (3, 1, True)
    assert (second["end"], "wait_ns" in second, "driver_ns" in second) == ("bypassed", False, False)
    assert ("wait_ns" in third, third["driver_ns"], third["child"]) == (False, MS, True)
    text = [line for rec in (first, second, third) for line in packet_lines(rec)]
    assert all(len(line) <= 80 for line in text)
    assert any("OVERTAKEN" in line and "place 2 of 2" in line for line in text)


def test_a_threshold_hides_the_fast():
    bench = Bench(details=True, threshold_ns=5 * MS)
    fast = bench.packet(start_ns=10 * MS, taken_ns=14 * MS, last_ns=15 * MS)
    slow = bench.packet(start_ns=10 * MS, taken_ns=15 * MS, last_ns=16 * MS)
    bench.engine.take([fast, slow], bench.writer)
    assert [rec["wait_ns"] for rec in bench.records("qdisc_packet")] == [5 * MS]


def test_dropped_without_a_reason():
    bench = Bench(details=True)
    bench.queue(queued=1, dropped=1)
    bench.obj.map("queue_drops").pairs[(*KEY, 1, 0, 0)] = 1
    bench.engine.take([bench.packet("NT_COUNT_DROPPED", start_ns=1, last_ns=5)], bench.writer)
    (packet,), (row,) = bench.records("qdisc_packet"), bench.end()
    for rec in (packet, row["drops"][0]):
        assert (rec["reason"], rec["reason_derived"]) == ("qdisc_drop", True)
    assert (row["drops"][0]["state"], row["drops"][0]["count"]) == ("queued", 1)
    assert any("~QDISC_DROP" in line for line in queue_lines(row, {}, False))


def test_a_replay_narrows():
    bench = Bench(details=True)
    rule = Rule(dst_port=((443, 443),))
    bench.engine.narrow(PacketFilter((rule,)))
    packets = [bench.packet(port=port, start_ns=1, last_ns=2) for port in (80, 443)]
    assert bench.engine.take(packets, bench.writer) == 1
    with pytest.raises(UsageProblem):
        Bench().engine.narrow(PacketFilter((rule,)))
    with pytest.raises(UsageProblem):
        bench.engine.narrow(PacketFilter((Rule(min_len=9),)))


def test_counting_goes_on_where_it_was():
    bench, again = Bench(), Bench()
    bench.queue(queued=1)
    bench.wait(bench.packet(start_ns=1, last_ns=1))
    bench.engine.finish(bench.writer)
    again.engine.restore(json.loads(json.dumps(bench.engine.state())))
    again.queue(queued=1)
    (row,) = again.end()
    assert (row["open"], row["holds"]) == (1, True)


def test_text_fits_and_names_everything():
    bench = Bench()
    counts = {name: 100000 for name in (*ENDS, *TAKEN_ENDS) if not name.endswith(("open", "out"))}
    bench.queue(qlens=(1, 2, 3), bulks=(0, 4), segments=3, children=2, requeued=1, refused=1,
                reordered=9, **counts)  # fmt: skip
    (row,) = bench.end()
    hists = {rec["name"]: rec for rec in bench.records("hist")}
    lines = queue_lines(row, hists, True)
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(" ".join(lines).split())
    for word in ("stale 100k", "3 segments, 2 seen", "requeued 1 times", "overtaken 9"):
        assert word in text
