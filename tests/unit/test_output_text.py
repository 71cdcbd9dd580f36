# SPDX-License-Identifier: GPL-2.0-only
import io
import random

import pytest

from ntools.model.hist import Histogram
from ntools.output import text
from ntools.output.jsonl import Writer
from ntools.output.text import Column, TextSink


def test_table():
    columns = [Column("from", left=True), Column("count"), Column("max us")]
    assert text.table(columns, [("dev.rx", 23, "1.5"), ("dev.queue", 4, None)], indent=2) == [
        "  from       count  max us",
        "  dev.rx        23     1.5",
        "  dev.queue      4       -",
    ]


def test_columns_nobody_knows_are_left_out():
    columns = [Column("a"), Column("b"), Column("c")]
    assert text.table(columns, [(1, None, 3), (2, None, None)]) == ["a  c", "1  3", "2  -"]
    assert text.table(columns, []) == ["a  b  c"]


def test_wide_tables_are_cut_where_it_is_allowed():
    columns = [
        Column("n"),
        Column("flow", left=True, least=10),
        Column("place", left=True, least=6),
    ]
    lines = text.table(columns, [(123456789, "f" * 60, "p" * 40)], width=50)
    assert max(len(line) for line in lines) <= 50
    assert "123456789" in lines[1]
    assert lines[1].count("..") == 2


def test_numbers_are_never_cut():
    lines = text.table([Column("a"), Column("b", left=True, least=3)], [(10**30, "x" * 60)], 20)
    assert lines[1].split() == [str(10**30), "x.."]


def test_tables_of_any_size_fit_or_cut_nothing_but_text():
    rnd = random.Random(5)
    for _ in range(200):
        columns = [
            Column("t" * rnd.randrange(1, 9), rnd.random() < 0.5, rnd.choice((0, 0, 4, 8)))
            for _ in range(rnd.randrange(1, 7))
        ]
        rows = [["x" * rnd.randrange(1, 40) for _ in columns] for _ in range(rnd.randrange(1, 5))]
        lines = text.table(columns, rows)
        rigid = sum(
            max([len(column.title)] + [len(row[at]) for row in rows])
            if not column.least
            else max(column.least, len(column.title))
            for at, column in enumerate(columns)
        )
        assert max(map(len, lines)) <= max(80, rigid + 2 * (len(columns) - 1))
        for row, line in zip(rows, lines[1:]):
            for cell, shown, column in zip(row, line.split(), columns):
                assert shown == cell or (column.least and shown.endswith(".."))


def test_cells_are_safe_for_terminals():
    assert text.table([Column("a")], [("\x1b[2J",)])[1] == "\\x1b[2J"


def test_numbers():
    assert [text.us(n) for n in (None, 0, 49, 51, 1523000)] == ["-", "0.0", "0.0", "0.1", "1523.0"]
    assert text.us(256, 3) == "0.256"
    assert text.approximate_us(1500) == "~1.5"
    assert text.approximate_us(None) == "-"
    assert text.share(1, 3) == "33.3"
    assert text.share(1, 0) == text.share(None, 3) == "-"
    assert [text.number(n) for n in (None, 0, 99999, 100000, 999999, 12345678, 10**16)] == [
        "-", "0", "99999", "100k", "1.0M", "12.3M", "10000T",
    ]  # fmt: skip


def test_histogram_picture():
    hist = Histogram("ns", 2, 28, 139)
    hist.add(100, 4)
    hist.add(300, 32)
    hist.add(500, 32)
    hist.add(5000, 1)
    hist.add(2**40, 2)
    lines = text.histogram_lines(hist)
    assert [line.split() for line in lines[1:-1]] == [
        ["under", "->", "0.256", ":", "4", "|**", "|"],
        ["0.256", "->", "0.511", ":", "64", "|" + "*" * 32 + "|"],
        ["0.512", "->", "1.023", ":", "0", "|", "|"],
        ["1.024", "->", "2.047", ":", "0", "|", "|"],
        ["2.048", "->", "4.095", ":", "0", "|", "|"],
        ["4.096", "->", "8.191", ":", "1", "|*", "|"],
        ["over", "->", "68719476.735", ":", "2", "|*", "|"],
    ]
    assert lines[-1].startswith("count 71, mean ")
    assert "p99 -," in lines[-1]
    assert lines[-1].endswith("max 1099511627.8 us")
    assert max(map(len, lines)) <= 80


def test_histogram_picture_shows_every_sample():
    rnd = random.Random(6)
    for _ in range(50):
        hist = Histogram("ns", rnd.randrange(4))
        for _ in range(rnd.randrange(100)):
            hist.add(int(rnd.lognormvariate(8, 5)))
        counts = [line.split(" : ")[1].split()[0] for line in text.histogram_lines(hist)[1:-1]]
        assert sum(map(int, counts)) == hist.count


def test_loss_line():
    assert text.loss_line(None) is None
    assert text.loss_line({}) is None
    assert text.loss_line({"ring_full": 0}) is None
    assert text.loss_line({"ring_full": 312, "map_full": 0}) == (
        "lost: ring_full 312; totals are exact, the list is not complete"
    )


def test_wrapping():
    words = "one two three four"
    assert text.wrap(words, 9) == ["one two", "three", "four"]
    assert text.wrap(words, 11, indent=2) == ["  one two", "  three", "  four"]
    assert text.wrap("x" * 100, 20) == ["x" * 100]
    assert text.wrap("") == []
    assert text.hint_lines("why", words, width=20) == ["    why   one two", "          three four"]
    assert text.hint_lines("why", "") == []


class View:
    def header(self, rec):
        return [f"{rec['tool']} on {rec['host']}"]

    def drop(self, rec):
        return [f"{rec['comm']} dropped"]

    def clock(self, rec):
        return None

    def summary(self, rec):
        yield f"seen {rec['seen']['drop']}"


@pytest.mark.parametrize("lost, tail", [
    ({"ring_full": 0}, []),
    ({"ring_full": 2}, ["lost: ring_full 2; totals are exact, the list is not complete"]),
])  # fmt: skip
def test_view(lost, tail):
    out = io.StringIO()
    writer = Writer(TextSink(View(), out), "ntools-drop")
    writer.header(host="node1\x1b")
    writer.record("drop", comm=b"a\rb")
    writer.record("what the view does not show", a=1)
    writer.lost = lost
    writer.summary("count")
    assert out.getvalue().splitlines() == [
        "ntools-drop on node1\\x1b", "a\\x0db dropped", "seen 1", *tail,
    ]  # fmt: skip


def test_lines_of_a_view_are_made_safe_too():
    out = io.StringIO()
    view = View()
    view.header = lambda rec: ["\x1b[2J", "a\nb"]
    TextSink(view, out).header({"type": "header"})
    assert out.getvalue() == "\\x1b[2J\na\\x0ab\n"


COST = {"user_cpu_ns": 250_000_000, "max_rss_bytes": 1, "source": "kernel", "bpf_ns": 5, "runs": 5,
        "bpf_run_ns": 312.4, "bpf_runs_per_s": 123456.7, "bpf_pct": 0.12345}  # fmt: skip


def test_cost_is_in_the_footer():
    rec = {"cost": COST, "duration_ns": 10_000_000_000}
    assert text.cost_line(rec) == (
        "cost: 0.123 % of all CPUs in the kernel (123k runs/s of 312 ns), 2.5 % of one here"
    )
    assert "~0.123 %" in text.cost_line({**rec, "cost": {**COST, "source": "table"}})
    assert text.cost_line({"cost": {"user_cpu_ns": 1}}) is None


def test_governor_is_shown_by_every_view():
    out = io.StringIO()
    writer = Writer(TextSink(object(), out), "t")
    writer.header()
    writer.record("governor", action="sample", cause="max_cpu", sample=4, events=True)
    writer.record("governor", action="gap", cause="heartbeat", gap_ns=12_300_000_000)
    writer.summary("governor", cost=COST)
    lines = out.getvalue().splitlines()
    assert lines[0] == "!     safety: events of 1 packet in 4 from now on (max_cpu)"
    assert lines[1] == "!     safety: stopped for 12.3 s: nothing was counted meanwhile"
    assert lines[2].startswith("cost: ")
    assert max(map(len, lines)) <= 80
