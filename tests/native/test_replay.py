# SPDX-License-Identifier: GPL-2.0-only
"""Recordings of real runs: cut anywhere, damaged anywhere, they never tell anything wrong."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from lab.drops import watch
from lab.latency import follow
from lab.netns import Namespace
from lab.replay import comparable
from lab.topo import bridge_topo
from lab.traffic import udp

from ntools.tools import drop, vm_latency

OFFSETS = 1000
Records = List[Dict[str, Any]]


def replay(main: Any, path: Path, *args: str) -> Tuple[int, Records, str]:
    """(exit status, records, stderr) of a replay in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["--replay", str(path), "--format", "json", *args])
    return status, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()


def told(stderr: str) -> int:
    """Lines of a replay but for the warnings of the run itself; the first says what it is."""
    lines = stderr.splitlines()
    if len(lines) > 1:
        assert lines[0].startswith("replay: recorded "), stderr
    return sum("no uplink" not in line for line in lines)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Dict[str, Any]:
    """Name -> (main, recording, live records)."""
    place = tmp_path_factory.mktemp("recordings")
    found: Dict[str, Any] = {}
    lo = "127.0.0.1"
    with Namespace("h") as ns:
        with watch(ns, "--protocol", "udp", "--record", str(place / "events")) as tool:
            for port in range(7000, 7040):
                udp(ns, lo, port, 3, wait_s=0.01)
            found["events"] = (drop.main, place / "events", tool.stop().records)
        table = ("--group-by", "reason,fivetuple", "--interval", "0.5", "--top", "50")
        with watch(ns, *table, "--record", str(place / "table")) as tool:
            for port in range(7000, 7040):
                udp(ns, lo, port, 3, wait_s=0.05)
            found["table"] = (drop.main, place / "table", tool.stop().records)
    with bridge_topo(static_neigh=True) as topo:
        for name, mode in (
            ("summary", ("--interval", "0.3")),
            ("details", ("--details", "--force")),
        ):
            with follow(topo, *mode, "--record", str(place / name)) as tool:
                topo.ping(30, interval_s=0.02)
                found[name] = (vm_latency.main, place / name, tool.stop().records)
    return found


NAMES = ("events", "table", "summary", "details")


@pytest.mark.parametrize("name", NAMES)
def test_replay_is_the_run(runs, name):
    main, path, live = runs[name]
    status, again, stderr = replay(main, path)
    assert (status, comparable(again)) == (0, comparable(live))
    assert told(stderr) == 1, stderr
    assert again[0]["run"] != live[0]["run"]


@pytest.mark.parametrize("name", NAMES)
def test_text_is_the_same_as_of_the_records(runs, name):
    """The text comes from the records alone: nothing of this host can be in it."""
    main, path, _ = runs[name]
    texts = []
    for _ in range(2):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            assert main(["--replay", str(path), "--explain"]) == 0
        texts.append(out.getvalue())
    assert texts[0] == texts[1] and len(texts[0].splitlines()) > 5


@pytest.mark.parametrize("name", NAMES)
def test_cut_anywhere(runs, name, tmp_path):
    """Every cut file gives the beginning of the run, or says in one line that it is none."""
    main, path, live = runs[name]
    data = path.read_bytes()
    whole = comparable(live)
    chosen = random.Random(7)
    offsets = sorted(chosen.sample(range(len(data)), min(OFFSETS // len(NAMES), len(data))))
    lengths = set()
    for offset in offsets:
        part = tmp_path / "part"
        part.write_bytes(data[:offset])
        status, again, stderr = replay(main, part)
        assert comparable(again) == whole[: len(again)], offset
        assert len(again) < len(whole), offset
        assert status == (0 if again else 1), (offset, stderr)
        assert told(stderr) == (2 if again else 1), stderr
        last = stderr.splitlines()[-1]
        assert any(t in last for t in ("has no end", "cannot replay", "nothing of")), stderr
        lengths.add(len(again))
    assert len(lengths) > 1, "all cuts lay in the first block"


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bits(runs, name, tmp_path):
    main, path, live = runs[name]
    data = path.read_bytes()
    whole = comparable(live)
    chosen = random.Random(11)
    for _ in range(OFFSETS // len(NAMES)):
        at = chosen.randrange(len(data))
        bad = bytearray(data)
        bad[at] ^= 1 << chosen.randrange(8)
        part = tmp_path / "part"
        part.write_bytes(bad)
        _, again, stderr = replay(main, part)
        assert comparable(again) == whole[: len(again)], at
        assert stderr


def test_narrower_views(runs):
    main, path, live = runs["details"]
    packets = [rec for rec in live if rec["type"] == "packet"]
    directions = {rec["direction"] for rec in packets}
    assert directions == {"rx", "tx"}
    status, again, _ = replay(main, path, "--direction", "tx")
    assert status == 0
    shown = [rec for rec in again if rec["type"] == "packet"]
    assert {rec["direction"] for rec in shown} == {"tx"}
    assert len(shown) == sum(rec["direction"] == "tx" for rec in packets)
    assert {rec["labels"]["direction"] for rec in again if rec["type"] == "hist"} == {"tx"}
    slow = sorted(rec["total_ns"] for rec in packets)[len(packets) // 2]
    _, again, _ = replay(main, path, "--latency-ms", repr(slow / 1e6))
    expected = sum(rec["total_ns"] >= int(slow / 1e6 * 1e6) for rec in packets)
    assert sum(rec["type"] == "packet" for rec in again) == expected
    start = live[0]["start_ns"]
    half = packets[len(packets) // 2]["ts_ns"] - start
    _, again, _ = replay(main, path, "--from", f"+{half // 10**9}.{half % 10**9:09}")
    shown = [rec for rec in again if rec["type"] == "packet"]
    assert len(shown) == sum(rec["ts_ns"] >= start + half for rec in packets)


def test_asking_for_more_is_refused(runs, tmp_path):
    main, path, _ = runs["table"]
    status, again, stderr = replay(main, path, "--group-by", "stack")
    assert (status, again) == (2, []) and "--group-by" in stderr and "reason,fivetuple" in stderr
    events = runs["events"][1]
    status, again, stderr = replay(main, events, "--protocol", "udp,tcp")
    assert (status, again) == (2, []) and "more than was recorded" in stderr
    other = vm_latency.main
    status, again, stderr = replay(other, path)
    assert (status, again) == (1, []) and "ntools-drop" in stderr


def test_filters_narrow(runs):
    main, path, live = runs["events"]
    drops = [rec for rec in live if rec["type"] == "drop" and 7010 <= rec["dst_port"] <= 7019]
    assert len(drops) == 30
    status, again, _ = replay(main, path, "--dst-port", "7010-7019", "--protocol", "udp")
    shown = [rec for rec in again if rec["type"] == "drop"]
    strip = lambda recs: [dict(rec, seq=0) for rec in recs]  # noqa: E731
    assert (status, strip(shown)) == (0, strip(drops))
    counts = again[-1]["counts"]
    assert counts["matched"] == counts["shown"] + counts["hidden"] + counts["narrowed"] == 120
    status, again, _ = replay(main, path, "--dst-port", "53")
    assert (status, [rec["type"] for rec in again]) == (0, ["header", "summary"])
    main, path, live = runs["details"]
    status, again, _ = replay(main, path, "--icmp-type", "echo-request", "--ipv4")
    packets = [rec for rec in again if rec["type"] == "packet"]
    assert status == 0 and {rec["direction"] for rec in packets} == {"tx"}
    assert len(packets) == 30 and not [rec for rec in again if rec["type"] in ("hist", "ends")]
    for name, args, text in (
        ("details", ("--src-mac", "52:54:00:00:00:01"), "--src-mac"),
        ("summary", ("--protocol", "icmp"), "counts"),
        ("table", ("--protocol", "udp"), "counts"),
    ):
        main, path, _ = runs[name]
        status, again, stderr = replay(main, path, *args)
        assert (status, again) == (2, []) and text in stderr.splitlines()[-1]


def test_parts_of_a_series_agree(tmp_path):
    """Every file of a series can be replayed alone; the last one knows the whole run's totals."""
    with Namespace("h") as ns:
        args = ("--record", str(tmp_path / "run"), "--record-max-size", "1M", "--record-keep", "9")
        with watch(ns, "--force", "--max-events", "0", "--ring-size", "64M", *args) as tool:
            for port in range(7000, 7200):
                udp(ns, "127.0.0.1", port, 400, wait_s=0.0)
            live = tool.stop()
    files = sorted(tmp_path.glob("run*"))
    assert len(files) > 1, [path.stat().st_size for path in files]
    shown = [replay(drop.main, path) for path in files]
    assert [status for status, _, _ in shown] == [0] * len(files)
    drops = [rec for _, records, _ in shown for rec in records if rec["type"] == "drop"]
    key = lambda rec: (rec["ts_ns"], rec["src_port"], rec["dst_port"])  # noqa: E731
    assert sorted(map(key, drops)) == sorted(map(key, live.of_type("drop")))
    last = shown[-1][1][-1]
    assert (last["type"], last["counts"]) == ("summary", live.summary["counts"])
