# SPDX-License-Identifier: GPL-2.0-only
"""Records of the kernel with any bytes in them, and records read back: decoded or refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lab.hostile import flaws
from unit.hostile import ANY, VALUE, few, hang_guard
from unit.test_drop_engine import KALLSYMS, REASONS, FakeChannel, FakeMap, FakeObject, FakeRows

import ntools
from ntools._loader.btf import Types
from ntools._loader.elf import sections
from ntools.engine.drop import DIMENSIONS, DropEngine, DropOptions
from ntools.engine.flight import FlightEngine, FlightOptions
from ntools.engine.lookups import HostLookups
from ntools.engine.places import Places
from ntools.host.devices import Device, DeviceNames
from ntools.host.guests import MacSeed
from ntools.host.symbols import Symbols
from ntools.host.uplink import Topology
from ntools.model import clock, loss, reasons, stages
from ntools.model.flow import Flow, address_text
from ntools.model.hist import KERNEL_BYTES, Histogram, KernelHistogram, decode_kernel
from ntools.output import schema
from ntools.output.drop import DropView
from ntools.output.jsonl import JsonSink, Writer
from ntools.output.text import TextSink, histogram_lines
from ntools.tools.vm_latency import View

BPF = Path(ntools.__file__).parent / "bpf"
VALIDATORS = {
    kind: jsonschema.Draft7Validator(schema.load(kind, closed=True)) for kind in schema.names()
}
U64 = st.one_of(st.integers(0, 300), st.sampled_from([2**32 - 1, 2**63, 2**64 - 1]),
                st.integers(0, 2**64 - 1))  # fmt: skip


@pytest.fixture(autouse=True)
def kernel(tmp_path_factory, monkeypatch):
    """Symbols and names of devices that do not come from this machine."""
    if not (BPF / "drop.x86.bpf.o").exists():
        pytest.skip("no object: make build")
    path = tmp_path_factory.mktemp("kernel") / "kallsyms"
    path.write_text(KALLSYMS)
    monkeypatch.setattr("ntools.host.symbols.Symbols", lambda: Symbols(path))
    monkeypatch.setattr(DeviceNames, "name", lambda self, netns, index: f"\x1b[{index}m\u202e")


class Output:
    """A writer with both sinks, and what came out of them."""

    def __init__(self, view) -> None:
        self.lines, self.text = io.StringIO(), io.StringIO()
        self.writer = Writer([JsonSink(self.lines), TextSink(view, self.text)], "ntools-test")
        self.writer.header(points=[], degraded=[], args=["\x1b"])

    def check(self) -> list[dict]:
        """Every line is safe; JSON lines are ASCII, parse, and fit their schema."""
        text, lines = self.text.getvalue(), self.lines.getvalue()
        assert flaws(text.replace("\n", "")) == [] and lines.isascii()
        records = [json.loads(line) for line in lines.split("\n")[:-1]]
        for rec in records[1:]:
            problems = [error.message for error in VALIDATORS[rec["type"]].iter_errors(rec)]
            assert problems == [], rec
        return records


def bytes_of(size: int) -> st.SearchStrategy[bytes]:
    """Anything, and mostly zeros: what lies in front of an unusual field should be usual."""
    return st.one_of(
        st.binary(min_size=size, max_size=size),
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), max_size=6).map(
            lambda edits: bytes(dict(edits).get(at, 0) for at in range(size))
        ),
    )


TYPES = {
    name: Types(sections((BPF / f"{name}.x86.bpf.o").read_bytes())[".BTF"])
    for name in ("drop", "flight", "flight_detail")
    if (BPF / f"{name}.x86.bpf.o").exists()
}
EVENT = TYPES["drop"].struct("nt_drop_event") if TYPES else None
KEY = TYPES["drop"].struct("nt_drop_key") if TYPES else None
FLIGHT = TYPES["flight_detail"].struct("nt_flight") if TYPES else None
PAIR = TYPES["flight_detail"].struct("nt_pair_key") if TYPES else None

# -- drop --------------------------------------------------------------------------------------


@given(raws=st.lists(bytes_of(EVENT.size if EVENT else 1), min_size=1, max_size=3),
       names=st.booleans(), verbose=st.booleans())  # fmt: skip
@example(raws=[bytes(EVENT.size)], names=True, verbose=True)
@example(raws=[b"\xff" * EVENT.size], names=True, verbose=True)
def test_any_drop_event(raws, names, verbose):
    obj = FakeObject(REASONS if names else {})
    engine = DropEngine(obj, DropOptions())
    engine.begin()
    out = Output(DropView(1, True, verbose, True))
    engine.take([EVENT.codec.unpack(raw) for raw in raws], out.writer)
    out.writer.summary("signal", **engine.totals())
    found = out.check()
    assert len([rec for rec in found if rec["type"] == "drop"]) == len(raws) == engine.shown


@given(
    keys=st.dictionaries(bytes_of(KEY.size if KEY else 1), st.tuples(U64, U64, U64, U64),
                         max_size=4),
    by=st.sets(st.sampled_from(sorted(DIMENSIONS)), min_size=1),
    totals=st.dictionaries(st.integers(0, 2**32 - 1), U64, max_size=3),
)  # fmt: skip
def test_any_row(keys, by, totals):
    obj = FakeObject()
    engine = DropEngine(obj, DropOptions(group_by=tuple(sorted(by))))
    engine.begin()
    obj.maps["drop_groups"] = FakeRows(obj, {KEY.codec.unpack(k): v for k, v in keys.items()})
    obj.maps["drop_totals"] = FakeMap({slot: [(n, 0)] for slot, n in totals.items()})
    obj.maps["drop_stacks"] = FakeMap({KEY.codec.unpack(k)[-5]: b"\xff" * 256 for k in keys})
    out = Output(DropView(1, True, True, True))
    engine.report(out.writer, True)
    out.writer.summary("signal", **engine.totals())
    out.check()


@given(raw=st.binary(max_size=260), location=U64)
def test_any_stack(raw, location):
    for frame in Places(HostLookups(None)).stack(raw, location):
        assert set(frame) >= {"function", "offset", "addr"}


# -- flight ------------------------------------------------------------------------------------


class Table(FakeMap):
    """A map read as bytes."""

    entries = 128
    key, percpu_stride = PAIR, KERNEL_BYTES

    def items_bytes(self):
        return iter(list(self.pairs.items()))

    def delete(self, key):
        return self.pairs.pop(key, None) is not None

    def lookup(self, key):
        found = self.pairs.get(key)
        return None if found is None else FLIGHT.codec.unpack(found)


class FakeFlight(FakeObject):
    def __init__(self) -> None:
        super().__init__()
        self.types = TYPES["flight_detail"]
        self.manifest = self.types.manifest()
        self.report: list = []

    def map(self, name):
        return self.maps.setdefault(name, Table())

    def channel(self, name):
        return FakeChannel()

    def forget(self):
        pass


NAMES = ("vnet\x1b[2J", "phy\u202e0", "br\x9b")
VM, PHY, BRIDGE = (
    Device(name, number, 1, kind, None, 1500, None, True, kind == "physical", 3)
    for number, (name, kind) in enumerate(zip(NAMES, ("tap", "physical", "bridge")), 1)
)
PLACE = Topology((VM,), (PHY,), (PHY,), (BRIDGE,), (BRIDGE,), (), (), "bridge", None,
                 ("VM     " + NAMES[0],), ())  # fmt: skip


def flight_engine(seeds=()) -> FlightEngine:
    engine = FlightEngine(FakeFlight(), PLACE, seeds, FlightOptions(explain=True))
    engine.begin()
    return engine


@given(
    raws=st.lists(bytes_of(FLIGHT.size if FLIGHT else 1), min_size=1, max_size=3),
    graves=st.lists(bytes_of(FLIGHT.size if FLIGHT else 1), max_size=2),
    pairs=st.dictionaries(bytes_of(PAIR.size if PAIR else 1), bytes_of(KERNEL_BYTES), max_size=2),
)
@example(raws=[b"\xff" * FLIGHT.size], graves=[b"\xff" * FLIGHT.size],
         pairs={b"\xff" * PAIR.size: b"\xff" * KERNEL_BYTES})  # fmt: skip
@few(60)
def test_any_flight(raws, graves, pairs):
    engine = flight_engine()
    out = Output(View(PLACE.description, True, True))
    engine.take([FLIGHT.codec.unpack(raw) for raw in raws], out.writer)
    engine.obj.maps["graves"] = Table(dict(enumerate(graves)))
    engine.obj.maps["pairs"] = Table(pairs)
    engine.obj.maps["flights"] = Table(dict(enumerate(raws)))
    with hang_guard():
        engine.sweep(out.writer)
        for last in (False, True):
            engine.report(out.writer, last)
    out.writer.summary("signal", **engine.totals())
    found = out.check()
    assert len([rec for rec in found if rec["type"] == "packet"]) >= len(raws) + len(graves)


def test_more_addresses_than_there_is_room_for():
    """A guest may use as many as it likes; what finds no room is counted as lost."""
    seeds = [(VM, MacSeed(f"52:54:00:00:{n >> 8:02x}:{n & 255:02x}", "fdb")) for n in range(300)]
    engine = flight_engine(seeds)
    assert len(engine.obj.maps["macs"].pairs) == Table.entries
    assert engine.losses() == {"mac_full": 300 - Table.entries}


# -- packets, flows, histograms ----------------------------------------------------------------


@given(src=st.binary(min_size=16, max_size=16), numbers=st.tuples(*[st.integers(0, 65535)] * 3),
       family=st.integers(0, 255), protocol=st.integers(0, 255))  # fmt: skip
def test_any_tuple(src, numbers, family, protocol):
    flow = Flow.from_kernel((src, src[::-1], *numbers, family, protocol))
    fields = flow.fields()
    assert fields.get("family") in (None, "ipv4", "ipv6")
    assert flaws(str(flow)) == [] and flow.reversed().reversed() == flow
    assert Flow.from_kernel((src, src, *numbers, family, protocol)).family in (0, 4, 6)


@given(data=st.binary(max_size=20))
def test_any_address(data):
    try:
        assert flaws(address_text(data)) == []
    except ValueError:
        assert len(data) not in (4, 16)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), U64, st.integers(), st.floats(), ANY,
              st.sampled_from(["ns", "log2", "sub", "slots"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ANY, inner, max_size=2)),
    max_leaves=6,
)  # fmt: skip
PLAIN = {"unit": "ns", "scale": "log2", "sub": 2, "range": [256, None], "count": 1, "sum": 300,
         "min": 300, "max": 300, "under": 0, "over": 0, "slots": [[29, 1]]}  # fmt: skip
PAIRS = st.lists(st.lists(U64, min_size=2, max_size=2), max_size=3)
CHANGES = st.dictionaries(st.sampled_from(sorted(PLAIN)), st.one_of(JSON, U64, PAIRS), max_size=3)


@given(changes=CHANGES, missing=st.sets(st.sampled_from(sorted(PLAIN)), max_size=1))
@example(changes={"sub": 2**40}, missing=set())
@example(changes={"slots": [[2**40, 1]]}, missing=set())
@example(changes={"slots": [[29, "1"]]}, missing=set())
@example(changes={"slots": [1]}, missing=set())
@example(changes={"count": None}, missing=set())
@example(changes={"range": [2**600, 5]}, missing=set())
@example(changes={}, missing={"sub"})
def test_histograms_of_foreign_records(changes, missing):
    fields = {name: value for name, value in {**PLAIN, **changes}.items() if name not in missing}
    with hang_guard():
        try:
            hist = Histogram.from_fields(fields)
        except ValueError as error:
            assert type(error) is ValueError and str(error)
            return
        lines = histogram_lines(hist)
        again = Histogram.from_fields(hist.fields())
    assert again == hist and len(lines) < 90
    assert not hist.fields()["p"].get("50") or hist.count or hist.slots or hist.under or hist.over


@given(cells=st.lists(bytes_of(KERNEL_BYTES), min_size=1, max_size=3), epoch=st.integers(0, 3))
def test_any_histogram_of_the_kernel(cells, epoch):
    hist = KernelHistogram()
    for cell in cells:
        hist.update([cell], epoch)
        assert hist.total.count == decode_kernel(cell)[0]
        assert Histogram.from_fields(json.loads(json.dumps(hist.total.fields()))) == hist.total
        assert len(histogram_lines(hist.total)) < 90


@given(cell=st.binary(max_size=600).filter(lambda cell: len(cell) != KERNEL_BYTES))
def test_histograms_of_another_size(cell):
    with pytest.raises(ValueError):
        decode_kernel(cell)


# -- names and times ---------------------------------------------------------------------------


@given(text=VALUE, known=st.dictionaries(st.integers(0, 9), ANY, max_size=3))
def test_any_name(text, known):
    names = reasons.ReasonNames(lambda enum: known)
    try:
        assert names.codes(text)
    except ValueError as error:
        assert type(error) is ValueError
    reasons.explain(text)
    reasons.derive(text)
    reasons.classify(text, text)
    assert reasons.place([text]) in (0, 1)
    loss.from_symbol(text)
    assert loss.consequence([text])
    stages.from_symbol(text)
    assert stages.position("vm.rx", text) >= 0
    assert stages.expected_next("vm.rx", text, {text}) is None or text in stages.STAGES


@given(utc=st.integers(0, 2**64 + 2**61), decimals=st.integers(0, 9))
def test_any_time(utc, decimals):
    for text in (clock.wall_text(utc, decimals, True), clock.utc_text(utc, decimals)):
        assert flaws(text) == []
