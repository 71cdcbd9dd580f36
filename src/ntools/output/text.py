# SPDX-License-Identifier: GPL-2.0-only
"""Text for people: tables, histograms, numbers, the loss line, and the sink that uses them."""

from __future__ import annotations

import sys
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    TextIO,
)

from ntools.model.hist import Histogram
from ntools.model.loss import consequence

from .jsonl import Record, Sink
from .stream import LineStream, printable

__all__ = [
    "MISSING",
    "TIMES",
    "WIDTH",
    "Column",
    "TextSink",
    "approximate_us",
    "attach_lines",
    "cost_line",
    "governor_lines",
    "histogram_lines",
    "hint_lines",
    "loss_line",
    "mean_us",
    "number",
    "percentile_us",
    "rejection_lines",
    "share",
    "table",
    "time_cells",
    "us",
    "wrap",
]

#: Columns of a terminal line unless the terminal says otherwise.
WIDTH = 80

#: What stands for a value that is not known.
MISSING = "-"

_DONE = {
    "warn": "near the limit",
    "sample": "events of 1 packet in {} from now on",
    "degrade": "no single events from now on",
    "stop": "the run ends here",
    "recover": "one step back: events of 1 packet in {}",
}
_GAP = 2
_CUT = ".."
_BAR = 32


class Column(NamedTuple):
    """A column of a table.

    :ivar title: heading, with the unit: ``p99 us``.
    :ivar left: text, aligned left; numbers are aligned right.
    :ivar least: may be cut to this width when the table is too wide; 0 = never cut.
    """

    title: str
    left: bool = False
    least: int = 0


def table(
    columns: Sequence[Column], rows: Iterable[Sequence[Any]], width: int = WIDTH, indent: int = 0
) -> List[str]:
    """Aligned lines: a heading, then one per row.

    Columns whose cells are all None are left out. If the table is wider than ``width`` the
    columns that allow it are cut, the widest first; numbers are never cut.

    :param rows: cells as text, int or None; other values with ``str()``.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    shown = [
        at for at in range(len(columns)) if not cells or any(row[at] is not None for row in cells)
    ]
    columns = [columns[at] for at in shown]
    grid = [[MISSING if row[at] is None else str(row[at]) for at in shown] for row in cells]
    widths = [
        max([len(column.title)] + [len(row[at]) for row in grid])
        for at, column in enumerate(columns)
    ]
    _narrow(columns, widths, width - indent)
    lines = [_aligned([column.title for column in columns], columns, widths, indent)]
    lines += [_aligned(row, columns, widths, indent) for row in grid]
    return lines


def us(ns: Optional[float], decimals: int = 1) -> str:
    """Nanoseconds as microseconds with fixed decimals; ``-`` if not known."""
    return MISSING if ns is None else f"{ns / 1000:.{decimals}f}"


def number(value: Optional[int]) -> str:
    """A count in full below 100,000, else with three digits and ``k``, ``M``, ``G``, ``T``."""
    if value is None:
        return MISSING
    if abs(value) < 100000:
        return str(value)
    scaled = float(value)
    for suffix in "kMGT":
        scaled /= 1000
        if abs(scaled) < 999.5 or suffix == "T":
            break
    decimals = 0 if abs(scaled) >= 100 else 1
    return f"{scaled:.{decimals}f}{suffix}"


def share(part: Optional[float], whole: Optional[float], decimals: int = 1) -> str:
    """``part`` of ``whole`` in percent, without the sign; ``-`` if not known or of nothing."""
    if part is None or not whole:
        return MISSING
    return f"{100 * part / whole:.{decimals}f}"


def mean_us(hist: Histogram, decimals: int = 1) -> str:
    """Exact mean of a histogram of ns."""
    return us(hist.mean(), decimals)


def percentile_us(hist: Histogram, part: float, decimals: int = 1) -> str:
    """Estimate of a percentile of a histogram of ns, ``~123.4``; ``-`` with too few samples."""
    return approximate_us(hist.estimate(part), decimals)


def approximate_us(ns: Optional[float], decimals: int = 1) -> str:
    """A value that is not exact, in microseconds: ``~123.4``."""
    return MISSING if ns is None else "~" + us(ns, decimals)


def histogram_lines(hist: Histogram, indent: int = 0) -> List[str]:
    """A histogram of ns as operators know it: one row per power of two, bounds in us, a bar.

    Rows without samples between others are shown; under- and overflow have rows of their own.
    The last line has count, mean, percentiles and the maximum.
    """
    margin = " " * indent
    rows = _octaves(hist)
    lines = [f"{margin}{'us':>13}    {'':13} : {'count':<10} distribution"]
    most = max([times for _, _, times in rows] or [1])
    for low, high, times in rows:
        bar = "*" * ((times * _BAR + most - 1) // most)
        lines.append(f"{margin}{low:>13} -> {high:<13} : {number(times):<10} |{bar:<{_BAR}}|")
    lines.append(
        f"{margin}count {hist.count}, mean {mean_us(hist)}, p50 {percentile_us(hist, 0.5)}, "
        f"p90 {percentile_us(hist, 0.9)}, p99 {percentile_us(hist, 0.99)}, "
        f"max {us(hist.max)} us"
    )
    return lines


def loss_line(lost: Optional[Mapping[str, int]]) -> Optional[str]:
    """``lost: ring_full 312; the list is not complete``; None if nothing was lost."""
    causes = [(cause, count) for cause, count in (lost or {}).items() if count]
    if not causes:
        return None
    counts = ", ".join(f"{cause} {count}" for cause, count in causes)
    return f"lost: {counts}; {consequence([cause for cause, _ in causes])}"


def cost_line(rec: Mapping[str, Any]) -> Optional[str]:
    """What the run cost, from its summary; None if that was not measured."""
    cost = rec.get("cost") or {}
    if "bpf_pct" not in cost:
        return None
    used = 100.0 * cost["user_cpu_ns"] / rec["duration_ns"] if rec.get("duration_ns") else 0.0
    told = "" if cost["source"] == "kernel" else "~"
    return (
        "cost: {}{:.3f} % of all CPUs in the kernel ({} runs/s of {:.0f} ns), {:.1f} % of one here"
    ).format(told, cost["bpf_pct"], number(int(cost["bpf_runs_per_s"])), cost["bpf_run_ns"], used)


def governor_lines(rec: Mapping[str, Any]) -> List[str]:
    """What the safety model did, one line between the others; the figures are on stderr."""
    if rec["action"] == "gap":
        text = "stopped for {:.1f} s: nothing was counted meanwhile".format(rec["gap_ns"] / 1e9)
    else:
        text = "{} ({})".format(_DONE[rec["action"]].format(rec["sample"]), rec["cause"])
    return hint_lines("!", "safety: " + text, indent=0)


def attach_lines(header: Record) -> List[str]:
    """How each point was attached, what was refused before, and what is missing: ``--explain``."""
    lines = []
    for row in header["points"]:
        lines.append("{stage}: {attach} {target}".format(**row))
        for failed in row["candidates_failed"]:
            lines += wrap("not {attach} {target}: {text}".format(**failed), indent=2)
    for row in header["degraded"]:
        lines += wrap("{feature}: missing: {because}".format(**row))
    return lines


def wrap(text: str, width: int = WIDTH, indent: int = 0) -> List[str]:
    """Words of ``text`` in lines of at most ``width``; longer words get a line of their own."""
    lines: List[str] = []
    line = ""
    for word in text.split():
        if line and indent + len(line) + 1 + len(word) > width:
            lines.append(" " * indent + line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    if line:
        lines.append(" " * indent + line)
    return lines


def hint_lines(label: str, text: str, width: int = WIDTH, indent: int = 4) -> List[str]:
    """A labelled hint under a line: ``    why   queue full; see ...``, wrapped and aligned."""
    head = f"{label:<5} "
    lines = wrap(text, width, indent + len(head))
    if lines:
        lines[0] = " " * indent + head + lines[0].lstrip()
    return lines


class TextSink(Sink):
    """Shows records through a view.

    A view is an object with a method per record type it shows: ``header(rec)``, ``packet(rec)``,
    ``summary(rec)``... Each returns lines, or None for nothing. Record types without a method
    are not shown, but for ``governor``. Every line is made safe for terminals, and after the
    summary come what the run cost, and the loss line if anything was lost.
    """

    def __init__(self, view: object, stream: Optional[TextIO] = None) -> None:
        self._view = view
        self._lines = LineStream(sys.stdout if stream is None else stream)
        self._methods: Dict[str, Optional[Callable[[Record], Optional[Iterable[str]]]]] = {}

    @property
    def broken(self) -> bool:
        """Whether the reader of the stream has gone."""
        return self._lines.broken

    def record(self, rec: Record) -> None:
        """Show one record."""
        kind = rec["type"]
        if kind not in self._methods:
            own = governor_lines if kind == "governor" else None
            self._methods[kind] = getattr(self._view, kind, own)
        method = self._methods[kind]
        if method is not None:
            self._write(method(rec))

    def summary(self, rec: Record) -> None:
        """Show the summary and what was lost."""
        self.record(rec)
        cost = cost_line(rec)
        if cost is not None:
            self._write(wrap(cost))
        line = loss_line(rec.get("lost"))
        if line is not None:
            self._write(wrap(line))

    def _write(self, lines: Optional[Iterable[str]]) -> None:
        if lines is not None:
            self._lines.write([printable(line) for line in lines])


def _cell(value: Any) -> Optional[str]:
    if value is None:
        return None
    return printable(value if isinstance(value, str) else str(value))


def _narrow(columns: Sequence[Column], widths: List[int], width: int) -> None:
    excess = sum(widths) + _GAP * (len(widths) - 1) - width
    while excess > 0:
        spare = [
            (widths[at] - max(column.least, len(column.title)), at)
            for at, column in enumerate(columns)
            if column.least
        ]
        most, at = max(spare, default=(0, 0))
        if most <= 0:
            return
        widths[at] -= 1
        excess -= 1


def _aligned(
    row: Sequence[str], columns: Sequence[Column], widths: Sequence[int], indent: int
) -> str:
    parts = []
    for text, column, width in zip(row, columns, widths):
        if len(text) > width:
            text = text[: max(width - len(_CUT), 0)] + _CUT
        parts.append(text.ljust(width) if column.left else text.rjust(width))
    return " " * indent + (" " * _GAP).join(parts).rstrip()


def _octaves(hist: Histogram) -> List[Any]:
    """Rows of whole powers of two: bounds as text in us, count."""
    merged: Dict[int, int] = {}
    for slot, times in hist.slots.items():
        low = hist.lower(slot)
        octave = low.bit_length()
        merged[octave] = merged.get(octave, 0) + times
    low_end, high_end = hist.range()
    rows: List[Any] = []
    if hist.under:
        rows.append(("under", us(low_end, 3), hist.under))
    if merged:
        for octave in range(min(merged), max(merged) + 1):
            low = 1 << (octave - 1) if octave else 0
            high = (1 << octave) - 1
            rows.append((us(low, 3), us(high, 3), merged.get(octave, 0)))
    if hist.over:
        rows.append(("over", us(high_end, 3), hist.over))
    return rows


def rejection_lines(rec: Mapping[str, Any]) -> List[str]:
    """What was not followed, by step of the filter: ``--explain``."""
    explain = rec.get("explain")
    if not explain:
        return []
    lines = ["not followed, by filter step:"]
    return lines + ["  {:<18} {}".format(name, number(count)) for name, count in explain.items()]


#: Columns of :func:`time_cells`.
TIMES = tuple(Column(title) for title in ("count", "min", "avg", "p50", "p99", "max"))


def time_cells(hist: Histogram) -> List[str]:
    """A histogram of times as cells of a table, in microseconds."""
    return [
        number(hist.count),
        us(hist.min),
        mean_us(hist),
        percentile_us(hist, 0.5),
        percentile_us(hist, 0.99),
        us(hist.max),
    ]
