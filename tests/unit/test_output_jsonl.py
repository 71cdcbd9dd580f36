# SPDX-License-Identifier: GPL-2.0-only
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import ntools
from ntools.model.clock import Clock
from ntools.output.jsonl import JsonSink, Sink, Writer
from ntools.output.stream import LineStream, printable, printable_bytes


class FakeTime:
    def __init__(self):
        self.now = 10**9
        self.offset = 1700000000 * 10**9

    def monotonic(self):
        return self.now

    def wall(self):
        return self.now + self.offset

    def clock(self):
        return Clock(self.monotonic, self.wall)


def new():
    out, fake = io.StringIO(), FakeTime()
    return out, fake, Writer(out, "ntools-test", clock=fake.clock())


def lines(out):
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_whole_stream():
    out, fake, writer = new()
    writer.header(host="node1", points=[])
    fake.now += 5
    writer.record("drop", interface="vnet0")
    writer.record("drop", ts_ns=10**9 + 2, interface="vnet1")
    fake.now += 10**9
    returned = writer.summary("signal", cost={"runs": 3})
    header, first, second, summary = lines(out)
    assert header["type"] == "header"
    assert (header["schema"], header["tool"], header["clock"]) == (1, "ntools-test", "monotonic")
    assert header["version"] == ntools.__version__
    assert header["epoch_offset_ns"] == fake.offset
    assert header["start_ns"] == 10**9
    assert len(header["run"]) == 32
    assert "seq" not in header
    assert (first["seq"], first["ts_ns"]) == (1, 10**9 + 5)
    assert first["utc_ns"] == first["ts_ns"] + fake.offset
    assert (second["seq"], second["ts_ns"], second["interface"]) == (2, 10**9 + 2, "vnet1")
    assert summary == returned
    assert (summary["seq"], summary["end"]) == (3, "signal")
    assert summary["duration_ns"] == 10**9 + 5
    assert summary["seen"] == {"drop": 2}
    assert summary["lost"] == {}
    assert summary["cost"] == {"runs": 3}


def test_runs_have_different_ids():
    ids = set()
    for _ in range(3):
        _, _, writer = new()
        ids.add(writer.header()["run"])
    assert len(ids) == 3


def test_loss_is_a_sum_in_records_and_a_breakdown_in_interval_and_summary():
    out, _, writer = new()
    writer.header()
    writer.lost = {"ring_full": 0, "map_full": 0}
    writer.record("drop")
    writer.lost = {"ring_full": 3, "map_full": 4}
    writer.record("drop")
    writer.record("interval", index=1)
    writer.summary("count")
    _, before, after, interval, summary = lines(out)
    assert "lost" not in before
    assert after["lost"] == 7
    assert interval["lost"] == summary["lost"] == {"ring_full": 3, "map_full": 4}


def test_unknown_values():
    out, _, writer = new()
    writer.header()
    writer.record(
        "x", absent=None, nan=float("nan"), inf=float("inf"), zero=0, empty="", false=False,
        nested={"p": None, "q": [float("-inf"), 1.5]},
    )  # fmt: skip
    record = lines(out)[1]
    assert not {"absent", "nan", "inf"} & set(record)
    assert (record["zero"], record["empty"], record["false"]) == (0, "", False)
    assert record["nested"] == {"p": None, "q": [None, 1.5]}


def test_large_numbers_are_exact():
    out, _, writer = new()
    writer.header()
    writer.record("x", ts_ns=2**63 - 1, cookie=2**64 - 1)
    record = lines(out)[1]
    assert (record["ts_ns"], record["cookie"]) == (2**63 - 1, 2**64 - 1)


def test_untrusted_text_is_escaped():
    out, _, writer = new()
    writer.header(args=["--x", "\x1b[2J"])
    writer.record(
        "x", comm=b"a\n\x1b[31m\xff\\b", name="eth\x1b0\u202e", raw="\udcff", seen={"k\x07": 1}
    )
    header, record = lines(out)
    assert header["args"] == ["--x", "\\x1b[2J"]
    assert record["comm"] == "a\\x0a\\x1b[31m\\xff\\x5cb"
    assert record["name"] == "eth\\x1b0\\xe2\\x80\\xae"
    assert record["raw"] == "\\xff"
    assert record["seen"] == {"k\\x07": 1}
    assert out.getvalue().isascii()


def test_escaping_any_bytes():
    rnd = random.Random(3)
    for _ in range(300):
        data = bytes(rnd.randrange(256) for _ in range(rnd.randrange(20)))
        text = printable_bytes(data)
        assert text.isascii() and text.isprintable()
        assert text.encode().decode("unicode_escape").encode("latin-1") == data
        anything = data.decode("utf-8", "surrogateescape")
        shown = printable(anything)
        assert shown.isprintable()
        shown.encode()
        assert printable(shown) == shown


def test_halves_of_characters_are_escaped():
    assert printable("a\ud800b") == "a\\xed\\xa0\\x80b"


def test_text_that_is_fine_is_not_changed():
    assert printable("näme with \\ and 東京") == "näme with \\ and 東京"


def test_values_json_cannot_carry_are_a_bug():
    _, _, writer = new()
    writer.header()
    for value in ({1: 2}, {1, 2}, object()):
        with pytest.raises(TypeError):
            writer.record("x", value=value)
    with pytest.raises(ValueError, match="seq"):
        writer.record("x", seq=3)


def test_order_is_enforced():
    _, _, writer = new()
    for early in (lambda: writer.record("x"), lambda: writer.summary("count"), writer.tick):
        with pytest.raises(RuntimeError):
            early()
    writer.header()
    with pytest.raises(RuntimeError):
        writer.header()
    writer.summary("count")
    for late in (lambda: writer.record("x"), lambda: writer.summary("count"), writer.tick):
        with pytest.raises(RuntimeError):
            late()


def test_clock_records():
    out, fake, writer = new()
    writer.header()
    old = fake.offset
    writer.tick()
    fake.now += 60 * 10**9
    writer.tick()
    fake.offset += 10**9
    writer.record("x", ts_ns=fake.now)
    records = lines(out)[1:]
    assert [record["type"] for record in records] == ["clock", "clock", "x"]
    assert [record["seq"] for record in records] == [1, 2, 3]
    assert [record.get("step_ns") for record in records] == [0, 10**9, None]
    assert records[1]["epoch_offset_ns"] == old + 10**9
    assert records[0]["utc_ns"] == records[0]["ts_ns"] + old
    assert records[2]["utc_ns"] == fake.now + old + 10**9
    assert writer.summary("count")["seen"] == {"clock": 2, "x": 1}


class Memory(Sink):
    def __init__(self):
        self.calls = []

    def header(self, rec):
        self.calls.append(("header", rec))

    def record(self, rec):
        self.calls.append(("record", rec))

    def summary(self, rec):
        self.calls.append(("summary", rec))

    def close(self):
        self.calls.append(("close", None))


def test_all_sinks_get_the_same():
    out, memory = io.StringIO(), Memory()
    writer = Writer([memory, JsonSink(out)], "t")
    writer.header()
    writer.record("x", comm=b"\n", values=(1, 2))
    writer.summary("count")
    writer.close()
    assert [call for call, _ in memory.calls] == ["header", "record", "summary", "close"]
    assert [rec for _, rec in memory.calls[:-1]] == lines(out)


class Counting(io.StringIO):
    flushed = 0

    def flush(self):
        self.flushed += 1


def test_every_line_is_flushed():
    out = Counting()
    writer = Writer(out, "t")
    writer.header()
    assert out.flushed == 1
    writer.record("x")
    assert out.flushed == 2


def test_a_reader_that_goes_away_ends_the_stream_quietly():
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        writer = Writer(stream, "t")
        writer.header()
        assert not writer.broken
        os.close(read)
        writer.record("x")
        assert writer.broken
        writer.record("x")
        writer.summary("signal")


def test_a_broken_stdout_leaves_no_trace_at_exit():
    code = (
        "import sys\n"
        "from ntools.output.jsonl import Writer\n"
        "w = Writer(sys.stdout, 't')\n"
        "w.header()\n"
        "while not w.broken: w.record('x', fill='x' * 1000)\n"
        "w.summary('signal')\n"
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(ntools.__file__).parents[1]))
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        assert json.loads(process.stdout.readline())["type"] == "header"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_an_error():
    def overflow():
        with open("/dev/full", "w") as stream:
            LineStream(stream).write(["x"])

    with pytest.raises(OSError):
        overflow()


def test_characters_the_locale_does_not_have():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    LineStream(stream).write(["n\xe4me", "\u6771"])
    assert raw.getvalue() == b"n\\xe4me\n\\u6771\n"
