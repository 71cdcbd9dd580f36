# SPDX-License-Identifier: GPL-2.0-only
"""Names of any bytes on their way out: text, JSON lines, plans, warnings."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from lab.hostile import flaws
from unit.hostile import ANY, COMM, DEVICE, VALUE

from ntools.cli import app, plan
from ntools.host import blind, ovs, uplink
from ntools.host.devices import Device, Devices
from ntools.output.jsonl import JsonSink, Sink, Writer
from ntools.output.stream import LineStream, printable, printable_bytes
from ntools.output.text import Column, TextSink, attach_lines, hint_lines, loss_line, table, wrap

LEAF = st.one_of(
    ANY, VALUE, st.binary(max_size=20), COMM, DEVICE.map(os.fsdecode), st.none(), st.booleans(),
    st.integers(), st.floats(),
)  # fmt: skip
FIELD = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(ANY, inner, max_size=3),
    ),
    max_leaves=6,
)


class Keep(Sink):
    """Records as views get them."""

    def __init__(self) -> None:
        self.records: list = []

    def record(self, rec):
        self.records.append(rec)


class Show:
    """A view that shows everything as it is."""

    def drop(self, rec):
        return [f"{name}={value}" for name, value in rec.items()]

    header = summary = drop


@given(fields=st.dictionaries(st.sampled_from(["a", "b", "c"]), FIELD))
@example(fields={"a": {"\x1b": "\ud800", "\n": b"\\\n"}})
def test_records_are_one_ascii_line_and_come_back(fields):
    lines, text, kept = io.StringIO(), io.StringIO(), Keep()
    writer = Writer([JsonSink(lines), TextSink(Show(), text), kept], "ntools-test")
    writer.header(args=[fields])
    writer.record("drop", **fields)
    writer.summary("signal", counts=fields)
    out = lines.getvalue()
    assert out.isascii() and out.count("\n") == 3 and flaws(out.replace("\n", "")) == []
    assert [json.loads(line) for line in out.splitlines()] == [
        json.loads(json.dumps(rec)) for rec in kept.records
    ]
    assert flaws(text.getvalue().replace("\n", "")) == []
    assert text.getvalue().count("\n") == sum(len(rec) for rec in kept.records)


@given(text=st.one_of(ANY, VALUE))
def test_text_is_made_safe_and_stays_what_it_was(text):
    shown = printable(text)
    assert flaws(shown) == [] and printable(shown) == shown
    assert shown == text or flaws(text)


@given(data=st.binary(max_size=40))
def test_bytes_can_be_told_from_their_text(data):
    shown = printable_bytes(data)
    assert shown.isascii() and flaws(shown) == []
    assert shown.encode().decode("unicode_escape").encode("latin-1") == data


@given(
    lines=st.lists(ANY.map(printable), max_size=4), encoding=st.sampled_from(["ascii", "cp1252"])
)
def test_streams_of_other_encodings(lines, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    LineStream(stream).write(lines)
    assert raw.getvalue().count(b"\n") == len(lines)


@given(cells=st.lists(st.tuples(LEAF, LEAF), max_size=4), text=ANY, width=st.integers(0, 100))
def test_tables_and_hints(cells, text, width):
    columns = [Column("a", left=True, least=6), Column("b")]
    # Bytes come through the writer, which makes text of them.
    rows = [[None if isinstance(cell, bytes) else cell for cell in row] for row in cells]
    lines = table(columns, rows, width)
    assert len(lines) == len(cells) + 1 and all(flaws(line) == [] for line in lines)
    for line in wrap(text, width) + hint_lines("why", text, width):
        assert "\n" not in line


@given(lost=st.dictionaries(ANY, st.integers(0, 99), max_size=3), text=ANY)
def test_losses_and_refusals(lost, text):
    header = {"points": [{"stage": text, "attach": text, "target": text, "candidates_failed": [
        {"attach": text, "target": text, "text": text}]}],
        "degraded": [{"feature": text, "because": text}]}  # fmt: skip

    class Explain:
        def header(self, rec):
            return attach_lines(rec)

    stream = io.StringIO()
    sink = TextSink(Explain(), stream)
    sink.header({"type": "header", **header})
    sink.summary({"type": "summary", "lost": lost})
    assert flaws(stream.getvalue().replace("\n", "")) == []
    assert (loss_line(lost) is None) == (not any(lost.values()))


# -- what is said beside the records -----------------------------------------------------------


NOWHERE = Path("/nonexistent")


class Plan:
    """An object that was not loaded."""

    points: dict = {}

    def outlook(self):
        return []

    def map_bytes(self):
        return [("a", 1, 2)]


class Args:
    command = "ntools-test"


def device(name: str, number: int, kind: str, **more) -> Device:
    fields = {"mac": None, "mtu": 1500, "qdisc": None, "up": True, "has_bus_device": False, **more}
    return Device(name=name, ifindex=number, netns_inum=1, kind=kind, **fields)


@given(names=st.lists(DEVICE.map(os.fsdecode), min_size=5, max_size=5, unique=True), other=ANY,
       typed=VALUE)  # fmt: skip
def test_warnings_plans_and_descriptions(names, other, typed):
    """Every place that names devices, bridges of OVS or what was typed."""
    vm, switch, phy, far, lone = (
        device(name, number, kind, **more)
        for number, (name, (kind, more)) in enumerate(zip(names, (
            ("tap", {"master": 2}),
            ("bridge", {"lower": (1, 3, 4)}),
            ("physical", {"master": 2, "has_bus_device": True, "phys_port_name": "pf0vf1",
                          "xdp_prog_ids": (5,)}),
            ("veth", {"master": 2}),
            ("dummy", {}),
        )), 1)
    )  # fmt: skip
    devices = Devices(1, [vm, switch, phy, far, lone])
    layout = ovs.OvsLayout(
        (ovs.OvsBridge(other, False, (ovs.OvsPort(lone.name, "", None, 1),)),), True
    )
    found = uplink.discover([vm, lone], devices, read_layout=lambda: layout)
    warnings = [*found.warnings, *blind.blind_spots([phy], Devices(1, [phy]), layout, NOWHERE)]
    assert len(warnings) >= 3
    out, err, text = io.StringIO(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        app.warn(Args, warnings)
        app.warn(Args, [typed])
        plan.print_plan(Plan(), {"interface": vm.name, "reason": (typed,), "netns": other}, "low")
    said = err.getvalue().split("\n")
    assert len(said) == len(warnings) + 2 and all(flaws(line) == [] for line in said)
    planned = out.getvalue().split("\n")
    assert all(flaws(line) == [] for line in planned) and len(planned) == 9

    class Describe:
        def header(self, rec):
            return found.description

    TextSink(Describe(), text).header({"type": "header"})
    shown = text.getvalue().split("\n")
    assert len(shown) == len(found.description) + 1 and all(flaws(line) == [] for line in shown)
