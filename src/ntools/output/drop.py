# SPDX-License-Identifier: GPL-2.0-only
"""Text of the drop engine's records: one packet, the rows of a report, the totals."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Set

from ..model.clock import wall_text
from ..model.flow import flow_text
from ..model.reasons import classify, explain
from .text import Column, attach_lines, hint_lines, number, table, wrap

__all__ = ["DropView", "event_lines", "report_lines", "summary_lines", "why_lines"]

_COLUMNS = (
    Column("packets"),
    Column("bytes"),
    Column("reason", left=True, least=12),
    Column("location", left=True, least=12),
    Column("device", left=True, least=6),
    Column("netns"),
    Column("class", left=True),
)
#: Frames in a line of text; records have all.
_FRAMES = 5


class DropView:
    """View of a run: a few lines per packet, or a table per report.

    :param netns_inum: namespace of the command: drops in it need none in their line.
    :param mark: name the class of packets that are dropped normally.
    :param verbose: whole stacks, CPU and task.
    :param explain: how the points were attached.
    """

    def __init__(self, netns_inum: int, mark: bool, verbose: bool, explain: bool) -> None:
        self._netns_inum, self._mark, self._verbose = netns_inum, mark, verbose
        self._explain = explain
        self._explained: Set[Any] = set()
        self._title = ""
        self._rows: List[Dict[str, Any]] = []
        self._stacks: Dict[str, Any] = {}

    def header(self, rec: Dict[str, Any]) -> List[str]:
        lines = ["Watching for dropped packets. Ctrl-C ends and prints the totals."]
        return lines + attach_lines(rec) if self._explain else lines

    def drop(self, rec: Dict[str, Any]) -> List[str]:
        lines = event_lines(rec, self._netns_inum, self._mark, self._verbose)
        key = (rec.get("reason"), rec["class"])
        if key not in self._explained:
            self._explained.add(key)
            lines += why_lines(rec)
        return lines

    def interval(self, rec: Dict[str, Any]) -> None:
        seconds = (rec["end_ns"] - rec["start_ns"]) / 1e9
        self._title = "{}  {:.1f} s".format(wall_text(rec["utc_ns"], 3), seconds)

    def stack(self, rec: Dict[str, Any]) -> None:
        self._stacks[rec["id"]] = rec["frames"]

    def drop_group(self, rec: Dict[str, Any]) -> Optional[List[str]]:
        self._rows.append(rec)
        if not rec.get("other"):
            return None
        rows, self._rows = self._rows, []
        title = "whole run" if rec["agg"] == "total" else self._title
        return report_lines(title, rows, self._stacks, self._verbose)

    def summary(self, rec: Dict[str, Any]) -> List[str]:
        return summary_lines(rec)


def event_lines(rec: Mapping[str, Any], netns_inum: int, mark: bool, verbose: bool) -> List[str]:
    """A packet: when, why, on which device, whose; below it the place and the stack.

    :param netns_inum: of the command: drops in it need no namespace in the line.
    :param mark: name the class of packets that are dropped normally.
    """
    when = wall_text(rec["utc_ns"], 6) + " "
    parts = [_reason(rec), _device(rec)]
    if rec.get("netns_inum") not in (None, netns_inum):
        parts.append("netns {}".format(rec["netns_inum"]))
    if "vlan_id" in rec:
        parts.append("vlan {}".format(rec["vlan_id"]))
    parts += [_flow(rec), "{}B".format(rec["len_bytes"])]
    if mark and rec["class"] != "drop":
        parts.append("({})".format(rec["class"]))
    lines = wrap(" ".join(parts), indent=len(when))
    lines[0] = when + lines[0].lstrip()
    lines += hint_lines("at", _stack_text(rec.get("stack"), verbose) or _caller(rec))
    if verbose:
        who = "cpu {} {}[{}] truesize {}".format(
            rec["cpu"], rec["comm"], rec["pid"], rec["truesize_bytes"]
        )
        lines += hint_lines("while", who)
    return lines


def why_lines(rec: Mapping[str, Any]) -> List[str]:
    """What the reason of a record means and what to look at next; nothing if nobody knows."""
    if rec["class"] != "drop":
        found = classify(rec.get("reason"), rec.get("caller"))
        return hint_lines("why", found.meaning) if found.name == rec["class"] else []
    text = explain(rec.get("reason") or "not_specified")
    if text is None:
        return []
    also = rec.get("reason_also")
    more = " (or {})".format(", ".join(also)) if also else ""
    return hint_lines("why", "{}{}; {}".format(text.meaning, more, text.next_step))


def report_lines(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    stacks: Mapping[str, Sequence[Any]],
    verbose: bool,
) -> List[str]:
    """The rows of one report, largest first; the last is the one of all others."""
    total = sum(row["drop_packets"] for row in rows)
    normal = sum(row["drop_packets"] for row in rows if row.get("class", "drop") != "drop")
    head = "{}: {} drops".format(title, number(total))
    if normal:
        head += ", {} of them normal".format(number(normal))
    shown = [row for row in rows if not row.get("other")]
    if not shown:
        return ["", head]
    lines = table(_COLUMNS, [_cells(row) for row in shown])
    found = ["", head, lines[0]]
    for row, line in zip(shown, lines[1:]):
        found.append(line)
        flow = _row_flow(row)
        if flow:
            found.append(" " * 9 + flow)
        found += wrap(_stack_text(stacks.get(row.get("stack_id", "")), verbose), indent=9)
    others = sum(row["drop_packets"] for row in rows if row.get("other"))
    if others:
        found.append("{:>7}  in all other rows".format(number(others)))
    return found


def summary_lines(rec: Mapping[str, Any]) -> List[str]:
    """Totals of the run, and with --explain where drops ended that were not wanted."""
    counts: Dict[str, int] = rec["counts"]
    text = "{:.1f} s: {} drops matched, {} shown".format(
        rec["duration_ns"] / 1e9, number(counts["matched"]), number(counts["shown"])
    )
    if counts["hidden"]:
        text += ", {} normal ones hidden".format(number(counts["hidden"]))
    if counts["after_count"]:
        text += ", {} after the last".format(number(counts["after_count"]))
    by_reason = sorted(rec["reasons"].items(), key=lambda item: -item[1])
    lines = ["", text]
    lines += wrap(", ".join("{} {}".format(name, number(n)) for name, n in by_reason), indent=2)
    explained = rec.get("explain")
    if explained:
        lines.append("seen, and not wanted by filter step:")
        lines += [
            "  {:<18} {}".format(name, number(count))
            for name, count in explained.items()
            if count or name == "seen"
        ]
    return lines


def _reason(rec: Mapping[str, Any]) -> str:
    return ("~" if rec.get("reason_derived") else "") + (rec.get("reason") or "-")


def _device(rec: Mapping[str, Any]) -> str:
    return rec.get("interface") or ("if{}".format(rec["ifindex"]) if "ifindex" in rec else "-")


def _flow(rec: Mapping[str, Any]) -> str:
    if rec.get("eth_type") == "arp" and rec.get("arp_op") == "request":
        return "arp who-has {} tell {}".format(rec.get("dst_ip"), rec.get("src_ip"))
    return flow_text(rec)


def _stack_text(stack: Optional[Sequence[Mapping[str, Any]]], whole: bool) -> str:
    frames = [_frame(frame) for frame in stack or ()]
    if len(frames) > _FRAMES and not whole:
        frames[_FRAMES:] = ["..."]
    return " < ".join(frames)


def _row_flow(row: Mapping[str, Any]) -> Optional[str]:
    if "fivetuple" in row["group_by"]:
        return _flow(row)
    if "port" in row["group_by"]:
        name = row.get("protocol") or row.get("eth_type") or "-"
        return "{} port {}".format(name, row["dst_port"]) if "dst_port" in row else str(name)
    return None


def _frame(frame: Mapping[str, Any]) -> str:
    if frame.get("function") is None:
        return str(frame["addr"])
    return "{}+{:#x}".format(frame["function"], frame["offset"])


def _caller(rec: Mapping[str, Any]) -> str:
    if rec.get("caller") is None:
        return "-"
    return "{}+{:#x}".format(rec["caller"], rec["caller_offset"])


def _cells(row: Mapping[str, Any]) -> List[Any]:
    by = row["group_by"]
    return [
        number(row["drop_packets"]),
        number(row["drop_bytes"]),
        _reason(row) if "reason" in by else None,
        row.get("caller", "-") if "location" in by else None,
        _device(row) if "device" in by else None,
        row.get("netns_inum", "-") if "netns" in by else None,
        row["class"],
    ]
