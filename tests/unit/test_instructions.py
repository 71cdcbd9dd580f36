# SPDX-License-Identifier: GPL-2.0-only
"""The table of instructions per packet: what it takes, and what it does not let pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vm import instructions  # noqa: E402

PLAIN, SMALL = ("tp_btf", "drop: counted"), ("raw_tp", "latency: a drop")
TABLE = {PLAIN: 1000, SMALL: 40}


def test_written_and_read_again(tmp_path):
    path = tmp_path / "table"
    instructions.write_table(TABLE, "6.12.1", path)
    assert instructions.read_table(path) == TABLE
    assert "6.12.1" in path.read_text()


def test_a_line_that_is_none(tmp_path):
    path = tmp_path / "table"
    path.write_text("# a comment\n\n12 tp_btf\n")
    with pytest.raises(ValueError, match="line 3"):
        instructions.read_table(path)


@pytest.mark.parametrize("count", [950, 1000, 1050])
def test_within_a_twentieth(count):
    assert instructions.judge(TABLE, {**TABLE, PLAIN: count}) == []


@pytest.mark.parametrize("count", [949, 1051])
def test_more_and_less_than_a_twentieth(count):
    (problem,) = instructions.judge(TABLE, {**TABLE, PLAIN: count})
    assert problem.startswith("drop: counted, tp_btf: ")
    assert str(count) in problem and "1000" in problem


def test_a_few_instructions_of_a_small_count():
    assert instructions.judge(TABLE, {**TABLE, SMALL: 46}) == []
    assert instructions.judge(TABLE, {**TABLE, SMALL: 47})


def test_what_is_only_on_one_side():
    assert instructions.judge(TABLE, {PLAIN: 1000, ("tp_btf", "new"): 1}) == [
        "latency: a drop, raw_tp: in the table, but not measured",
        "new, tp_btf: measured, but not in the table",
    ]


def test_the_report_says_what_to_do(monkeypatch):
    rows = []
    monkeypatch.setattr(instructions, "read_table", lambda: TABLE)
    monkeypatch.setattr(instructions, "measure", lambda kernel: [
        {"mechanism": "tp_btf", "path": "drop: counted", "instructions": 1200.4, "carrier": 9},
        {"mechanism": "raw_tp", "path": "latency: a drop", "instructions": 40.2, "carrier": 9},
    ])  # fmt: skip
    instructions.check(rows.append)
    assert [(row["name"], row["result"]) for row in rows] == [
        ("instructions.drop", "failed"),
        ("instructions.latency", "passed"),
    ]
    assert "+20%" in rows[0]["reason"] and "instructions.py --write" in rows[0]["reason"]


def test_a_guest_that_dies_is_a_failure(monkeypatch):
    def dies(kernel):
        raise instructions.VmProblem("no boot")

    rows = []
    monkeypatch.setattr(instructions, "read_table", lambda: TABLE)
    monkeypatch.setattr(instructions, "measure", dies)
    instructions.check(rows.append)
    assert [row["result"] for row in rows] == ["failed"] and "no boot" in rows[0]["reason"]
