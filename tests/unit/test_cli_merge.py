# SPDX-License-Identifier: GPL-2.0-only
"""ntools-path-merge: files it takes, files it refuses, what it says."""

from __future__ import annotations

import json

import jsonschema
import pytest
from unit.test_model_merge import echo

from ntools.cli.merge import main
from ntools.output import schema

HEADER = {"type": "header", "tool": "ntools-icmp-path", "epoch_offset_ns": 0, "start_ns": 0}


def written(tmp_path, name, *units, lost=None, complete=None, **header):
    """A file as the command prints it."""
    through = sum(unit["status"] == "complete" for unit in units)
    records = [
        {**HEADER, **header},
        *({"type": "echo", "utc_ns": unit["ts_ns"], **unit} for unit in units),
        {
            "type": "path_stats",
            "agg": "total",
            "complete": through if complete is None else complete,
        },
        {"type": "summary", "utc_ns": 10**11, "lost": lost or {}},
    ]
    path = tmp_path / name
    path.write_text("".join(json.dumps(rec) + "\n" for rec in records))
    return str(path)


@pytest.fixture
def both(tmp_path):
    a = [echo(n, (10 * n, 10 * n + 1, 10 * n + 6, 10 * n + 7)) for n in range(1, 24)]
    b = [echo(n, (10 * n + 2, 10 * n + 3, 10 * n + 4, 10 * n + 5)) for n in range(1, 24)]
    a[4] = echo(5, (50, 51, None, None), "external_drop")
    del b[4]
    return written(tmp_path, "a", *a), written(tmp_path, "b", *b)


def run(a, b, *words):
    return main(["--a", a, "--b", b, "--guard-ms", "0", *words])


def test_text_says_who_lost_it(both, capsys):
    assert run(*both) == 0
    out = capsys.readouterr().out
    assert "      22  95.7 %  COMPLETE" in out and "       1   4.3 %  NETWORK_A_TO_B" in out
    assert "id 7 seq 5" in out and "clock of B: +0.000 ms against A, known to 1.000 ms" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_status_tells_of_loss(both, tmp_path, capsys):
    assert run(*both, "--exit-code") == 10
    assert run(both[1], both[1], "--exit-code") == 0


def test_json(both, capsys):
    assert run(*both, "--format", "json", "-v") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [rec["type"] for rec in records] == ["merge_verdict"] * 23 + ["merge_summary"]
    for record in records:
        jsonschema.Draft7Validator(schema.load(record["type"], closed=True)).validate(record)
    assert sum(records[-1]["counts"].values()) == records[-1]["units"] == 23
    assert records[-1]["counts"]["network_a_to_b"] == 1 and records[-1]["clock_offset_ns"] == 0


def test_wrong_way_round_is_said(both, tmp_path, capsys):
    few = written(tmp_path, "few", echo(1, (10, 11, 16, 17)))
    run(few, both[1])
    assert "the wrong way round" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "ntools-path-merge: "),
        (b"{}\n", "does not begin with a header record"),
        (b"{\xff", "not text in UTF-8"),
        (b'{"type": "header", "epoch_offset_ns": 0, "tool": "ntools-drop"}\n', "of ntools-drop"),
        (b"nothing", "ntools-path-merge: "),
    ],
)
def test_no_recording(both, tmp_path, capsys, content, said):
    path = tmp_path / "bad"
    path.write_bytes(content)
    assert run(str(path), both[1]) != 0
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1, error


def test_missing_file(both, capsys):
    assert run("/nonexistent", both[1]) != 0
    assert "/nonexistent" in capsys.readouterr().err


def test_two_commands_cannot_be_merged(both, tmp_path, capsys):
    other = written(tmp_path, "udp", tool="ntools-udp-path")
    assert run(both[0], other) == 2
    assert "Record the same command on both hosts" in capsys.readouterr().err


def test_packets_that_were_not_printed(both, tmp_path, capsys):
    """Without -v complete echoes are counted, not named: their absence would mean a loss."""
    silent = written(tmp_path, "silent", complete=23)
    assert run(both[0], silent) == 2
    assert "names 0 of 23" in capsys.readouterr().err


def counted(tmp_path, name, ended=10**11, **ways):
    """A run of tcp-path; per direction segments in and out, of 1000 bytes each."""
    records = [
        {**HEADER, "tool": "ntools-tcp-path"},
        *(
            {"type": "path_stats", "agg": agg, "direction": direction, "segs_in": came,
             "segs_out": left, "bytes_in": 1000 * came, "bytes_out": 1000 * left}
            for direction, (came, left) in ways.items()
            for agg in ("delta", "total")
        ),
        {"type": "summary", "utc_ns": ended, "lost": {}},
    ]  # fmt: skip
    path = tmp_path / name
    path.write_text("".join(json.dumps(rec) + "\n" for rec in records))
    return str(path)


def test_counts_of_connections(tmp_path, capsys):
    a = counted(tmp_path, "a", forward=(1000, 997), reply=(480, 480))
    b = counted(tmp_path, "b", forward=(990, 990), reply=(500, 499))
    assert run(a, b, "--exit-code") == 10
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    said = " ".join(out.split())
    assert "forward: 3 segments, 3000 bytes were lost inside A" in said
    assert "forward: 7 segments, 7000 bytes were lost between A and B" in said
    assert "reply: 19 segments, 19000 bytes were lost between A and B" in said
    assert "reply: 1 segments, 1000 bytes were lost inside B" in said and "note" not in said

    assert run(a, b, "--format", "json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [rec["type"] for rec in records] == ["merge_counts", "merge_counts", "merge_summary"]
    for record in records:
        jsonschema.Draft7Validator(schema.load(record["type"], closed=True)).validate(record)
    assert records[0]["lost_segs"] == {"a_internal": 3, "network": 7, "b_internal": 0}


def test_counts_of_runs_that_differ(tmp_path, capsys):
    a = counted(tmp_path, "a", forward=(10, 10))
    b = counted(tmp_path, "b", ended=10**11 + 3 * 10**9, forward=(12, 12))
    assert run(a, b, "--exit-code") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "forward: 2 segments, 2000 bytes too many between A and B" in said
    assert "the runs end 3.0 s apart" in said


def test_counts_without_loss_or_without_totals(tmp_path, capsys):
    a = counted(tmp_path, "a", forward=(10, 10))
    assert run(a, a) == 0
    assert "nothing was lost" in capsys.readouterr().out
    assert run(a, counted(tmp_path, "b")) != 0
    assert "has no totals" in capsys.readouterr().err
    assert run(a, counted(tmp_path, "c", reply=(1, 1))) == 2
    assert "different directions" in capsys.readouterr().err
