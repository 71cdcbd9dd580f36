# SPDX-License-Identifier: GPL-2.0-only
"""ntools-path-merge: given what two hosts recorded of the same path, who lost the packets?"""

import argparse
import contextlib
import importlib
import io
import sys
from typing import Any, Dict, List, Optional, Sequence

from ntools.cli import app, options
from ntools.cli.commands import COMMANDS
from ntools.cli.path import LOSS as STATUS
from ntools.errors import RecordingProblem, UsageProblem
from ntools.model.merge import (
    ECHO_VERDICTS,
    LOST,
    POINTS,
    UNIT_VERDICTS,
    Host,
    Merge,
    Unit,
    Way,
    count,
    merge,
)

EXAMPLES = """\
examples:
  ntools-path-merge --a sender.ntrec --b receiver.ntrec
      recordings (--record) of ntools-icmp-path, -tcp-path or -udp-path on both hosts
  ntools-path-merge --a sender.jsonl --b receiver.jsonl --format json
      or what they printed with -v --format json
"""
#: Compared packet by packet; and by what they count.
_TOOLS = ("ntools-icmp-path", "ntools-udp-path", "ntools-tcp-path")
_COUNTING = "ntools-tcp-path"
_EXAMPLES = 5


def parser() -> argparse.ArgumentParser:
    """The command line; needs neither libbpf nor root."""
    made = app.Parser(
        prog="ntools-path-merge",
        description="Given what two hosts recorded of the same path: who lost the packets?",
        epilog=EXAMPLES,
    )
    add = made.add_argument
    add("--a", metavar="FILE", required=True, help="recording of the host of the sender")
    add("--b", metavar="FILE", required=True, help="recording of the host of the receiver")
    add("--guard-ms", type=options.milliseconds, default=2000.0, metavar="MS",
        help="packets so near to an edge of a recording are not judged (default 2000)")  # fmt: skip
    add("--max-skew-ms", type=options.milliseconds, default=1000.0, metavar="MS",
        help="largest difference of the clocks that is believed (default 1000)")  # fmt: skip
    add("--min-units", type=options.positive, default=20, metavar="N",
        help="packets both saw, from which on the clocks are compared (default 20)")  # fmt: skip
    add("--format", choices=("text", "json"), default="text",
        help="text for people, json: one record per line")  # fmt: skip
    add("--exit-code", action="store_true", help="status 10 when anything was lost")
    add("-v", "--verbose", action="count", default=0, help="also each packet (json)")
    return made


def run(args: argparse.Namespace) -> int:
    """Read both, put them together, tell."""
    a, b = _read(args.a), _read(args.b)
    if a["tool"] != b["tool"]:
        raise UsageProblem(
            "'{}' is of {}, '{}' of {}. Record the same command on both hosts.".format(
                args.a, a["tool"], args.b, b["tool"]
            )
        )
    hosts = (_host(a, args.a), _host(b, args.b))
    if a["tool"] == _COUNTING:
        return _compare(a, b, hosts, args)
    found = merge(hosts[0], hosts[1], guard_ns=int(args.guard_ms * 1e6))
    notes = _notes(found, args)
    if args.format == "json":
        _tell_json(found, hosts, notes, args)
    else:
        _tell_text(found, hosts, notes)
    return STATUS if args.exit_code and any(found.counts[name] for name in LOST) else 0


def main(argv: Optional[List[str]] = None) -> int:
    """Entry point of the command."""
    return app.run(parser, run, argv)


MANUAL = {
    "DESCRIPTION": "Two hosts have recorded the packets between the same two ends: A is the host "
    "of the sender, B that of the receiver. What both saw is put together by what the packets say: "
    "addresses, identifier and sequence of an echo; addresses, ports, length and identification of "
    "a datagram. Packets of TCP are cut and merged on their way, so what both hosts counted is "
    "compared: run both while the connection begins and ends. Needs no root and no BPF.",
    "OUTPUT": "How many packets got through, and how many were lost where: inside A, between A and "
    "B, inside B, behind B; the first five of each. Undecided is what a side may have failed to "
    "record; edge, what was too near to the beginning or the end of a recording. Times inside each "
    "host need no common clock. The clock of B against that of A is known as well as the fastest "
    "packets of both directions tell, for none arrives before it was sent.",
    "OVERHEAD": "None on the hosts: it reads two files.",
    "LIMITS": "A packet of UDP without an identification is told from others of "
    "its length by its turn only. Of UDP the clocks cannot be compared: it is not answered.",
    "SEE ALSO": "ntools-icmp-path(8), ntools-udp-path(8), ntools(8)",
}


# -- reading -------------------------------------------------------------------------------------


def _read(path: str) -> Dict[str, Any]:
    """Records of a run, and its tool: printed ones, or those a recording is shown as.

    :raises RecordingProblem: neither.
    """
    try:
        with open(path, "rb") as stream:
            first = stream.read(1)
            text = (first + stream.read()).decode("utf-8") if first == b"{" else ""
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text in UTF-8"
        raise RecordingProblem("cannot read '{}': {}.".format(path, why)) from None
    if not text:
        text = _replayed(path)
    import json

    records: List[Dict[str, Any]] = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    if not records or records[0].get("type") != "header" or "epoch_offset_ns" not in records[0]:
        raise RecordingProblem(
            "'{}' is no recording, and does not begin with a header record.".format(path)
        )
    if records[0].get("tool") not in _TOOLS:
        raise RecordingProblem(
            "'{}' is of {}: only runs of {} can be merged.".format(
                path, records[0].get("tool"), " and ".join(_TOOLS)
            )
        )
    return {"tool": records[0]["tool"], "records": records}


def _replayed(path: str) -> str:
    """What the command that made a recording shows of it."""
    from ntools.engine.tape import Playback
    from ntools.output.recording import Recording

    playback = Playback(Recording(path))
    tool = str(playback.header.get("tool"))
    if tool not in _TOOLS:
        raise RecordingProblem(
            "'{}' is of {}: only runs of {} can be merged.".format(path, tool, " and ".join(_TOOLS))
        )
    command = COMMANDS[tool[len("ntools-") :]]
    module = importlib.import_module(command.module)
    # Counts alone are kept by the first of several objects: it cannot show packets.
    packets = playback.layouts.get("object") == command.objects[-1]
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        status = module.main(["--replay", path, "--format", "json", *(["-v"] if packets else [])])
    if status:
        last = said.getvalue().strip().splitlines()[-1:] or ["it cannot be shown"]
        raise RecordingProblem("'{}': {}".format(path, last[0]))
    return out.getvalue()


def _host(found: Dict[str, Any], path: str) -> Host:
    records = found["records"]
    header, last = records[0], records[-1]
    units = [unit for unit in map(_unit, records) if unit is not None]
    stats = [rec for rec in records if rec.get("type") == "path_stats" and rec["agg"] == "total"]
    named = "complete" if found["tool"] == "ntools-icmp-path" else "completed"
    told = 0 if found["tool"] == _COUNTING else sum(rec[named] for rec in stats)
    shown = sum(unit.get("status", unit.get("end")) in ("complete", "completed") for unit in units)
    if shown < told and not any(rec.get("type") == "governor" for rec in records):
        raise UsageProblem(
            "'{}' names {} of {} packets that got through. Record, or print, with -v.".format(
                path, shown, told
            )
        )
    offset = int(header["epoch_offset_ns"])
    begun = int(header["start_ns"]) + offset
    lost = dict(last["lost"]) if last.get("type") == "summary" else {"cut": 1}
    return Host(units, offset, begun, int(last.get("utc_ns", begun)), lost)


def _unit(rec: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """A record of one packet, with the stages by the names of an echo's."""
    kind = rec.get("type")
    if kind == "echo":
        return rec
    if kind == "packet" and rec.get("direction") == "forward":
        hops = rec["stages"]
        stages = {"req_rx": hops[0]}
        if rec["end"] == "completed":
            stages["req_tx"] = hops[-1]
    elif kind == "datagram" and rec.get("direction") == "forward":
        stages = {"req_rx": {"ts_ns": rec["ts_ns"]}}
        if rec["status"] == "complete":
            stages["req_tx"] = {"ts_ns": rec["ts_ns"] + rec["total_ns"]}
    else:
        return None
    return {**rec, "stages": stages}


# -- counts of flows ------------------------------------------------------------------------------


def _compare(a: Any, b: Any, hosts: Sequence[Host], args: argparse.Namespace) -> int:
    """Tell what two hosts counted of the same connections."""
    ways = count(_counted(a, args.a), _counted(b, args.b))
    if not ways:
        raise UsageProblem("'{}' and '{}' are of different directions.".format(args.a, args.b))
    notes = []
    for name, begun in (("begin", 1), ("end", 0)):
        first, second = (host.begun_ns if begun else host.ended_ns for host in hosts)
        if abs(first - second) > 1e9:
            notes.append(
                "the runs {} {:.1f} s apart: what passed meanwhile seems to be lost, or to be too "
                "much".format(name, abs(first - second) / 1e9)
            )
    if args.format == "json":
        for way in ways:
            _write({"type": "merge_counts", **way._asdict()})
        _write(
            {"type": "merge_summary", "lost": [dict(host.lost) for host in hosts], "notes": notes}
        )
    else:
        _tell_ways(ways, hosts, notes)
    lost = any(n > 0 for way in ways for n in (*way.lost_segs.values(), *way.lost_bytes.values()))
    return STATUS if args.exit_code and lost else 0


def _counted(found: Dict[str, Any], path: str) -> List[Dict[str, Any]]:
    stats = [rec for rec in found["records"] if rec.get("type") == "path_stats"]
    totals = [rec for rec in stats if rec.get("agg") == "total"]
    if not totals:
        raise RecordingProblem("'{}' has no totals: the run was cut off.".format(path))
    return totals


def _tell_ways(ways: Sequence[Way], hosts: Sequence[Host], notes: Sequence[str]) -> None:
    from ntools.output.text import Column, number, table, wrap

    columns = (Column("", left=True), *(Column(point.replace("_", " ")) for point in POINTS))
    rows = [
        [way.direction + what, *(number(counted[point]) for point in POINTS)]
        for way in ways
        for what, counted in ((" segments", way.segs), (" bytes", way.bytes))
    ]
    lines = table(columns, rows)
    places = {"a_internal": "inside A", "network": "between A and B", "b_internal": "inside B"}
    for way in ways:
        for leg, place in places.items():
            segs, octets = way.lost_segs[leg], way.lost_bytes[leg]
            if segs > 0 or octets > 0:
                text = "{}: {} segments, {} bytes were lost {}"
            elif segs < 0 or octets < 0:
                text = "{}: {} segments, {} bytes too many {}"
            else:
                continue
            lines += wrap(text.format(way.direction, abs(segs), abs(octets), place))
    if len(lines) == len(rows) + 1:
        lines.append("nothing was lost")
    _print_lines(lines, hosts, notes)


# -- telling -------------------------------------------------------------------------------------


def _notes(found: Merge, args: argparse.Namespace) -> List[str]:
    """What the reader should know before he believes it."""
    notes = []
    both = sum(unit.a is not None and unit.b is not None for unit in found.units)
    offset = found.clock.offset_ns
    if both < args.min_units:
        notes.append("{} packets were seen by both: too few to compare the clocks".format(both))
    elif offset is not None and abs(offset) > args.max_skew_ms * 1e6:
        notes.append("the clocks differ by more than --max-skew-ms: are these the same packets?")
    if found.counts["only_b"] > len(found.units) / 2:
        notes.append("most packets were seen by B only: are --a and --b the wrong way round?")
    return notes


def _believed(found: Merge, args: Any = None) -> bool:
    return sum(unit.a is not None and unit.b is not None for unit in found.units) >= (
        args.min_units if args else 1
    )


def _parts(found: Merge, hosts: Sequence[Host]) -> Dict[str, List[int]]:
    """Times by part of the way, as far as they need one clock; outside, both ways together."""
    parts: Dict[str, List[int]] = {"a": [], "network": [], "b": [], "beyond_b": []}
    for unit in found.units:
        if unit.verdict != "complete" or unit.a is None or unit.b is None:
            continue
        near = {name: stage["ts_ns"] for name, stage in unit.a["stages"].items()}
        far = {name: stage["ts_ns"] for name, stage in unit.b["stages"].items()}
        inside_a = near["req_tx"] - near["req_rx"]
        inside_b = far["req_tx"] - far["req_rx"]
        if found.echoes:
            inside_a += near["rep_tx"] - near["rep_rx"]
            inside_b += far["rep_tx"] - far["rep_rx"]
            beyond = far["rep_rx"] - far["req_tx"]
            outside = near["rep_rx"] - near["req_tx"]
            parts["beyond_b"].append(beyond)
            parts["network"].append(max(0, outside - (far["rep_tx"] - far["req_rx"])))
        parts["a"].append(inside_a)
        parts["b"].append(inside_b)
    return parts


def _tell_json(found: Merge, hosts: Sequence[Host], notes: List[str], args: Any) -> None:
    out = []
    if args.verbose:
        out += [_verdict(unit) for unit in found.units]
    clock = found.clock
    out.append(
        {
            "type": "merge_summary",
            "units": len(found.units),
            "counts": {name: found.counts[name] for name in _names(found)},
            "clock_offset_ns": clock.offset_ns if _believed(found, args) else None,
            "clock_error_ns": clock.error_ns if _believed(found, args) else None,
            "lost": [dict(host.lost) for host in hosts],
            "notes": notes,
        }
    )
    for record in out:
        _write(record)


def _verdict(unit: Unit) -> Dict[str, Any]:
    shown = unit.a if unit.a is not None else unit.b
    assert shown is not None
    kept = ("ts_ns", "utc_ns", "family", "protocol", "src_ip", "dst_ip", "src_port", "dst_port",
            "icmp_id", "icmp_seq", "ip_id")  # fmt: skip
    fields = {name: shown[name] for name in kept if name in shown}
    return {"type": "merge_verdict", "verdict": unit.verdict, **fields}


def _names(found: Merge) -> Dict[str, str]:
    return ECHO_VERDICTS if found.echoes else UNIT_VERDICTS


def _tell_text(found: Merge, hosts: Sequence[Host], notes: List[str]) -> None:
    from ntools.model.clock import utc_text

    lines = ["{} packets".format(len(found.units))]
    for name, meaning in _names(found).items():
        count = found.counts[name]
        if not count:
            continue
        share = 100 * count / len(found.units)
        lines.append("{:>8} {:5.1f} %  {:<18} {}".format(count, share, name.upper(), meaning))
        if name == "complete":
            continue
        units = [unit for unit in found.units if unit.verdict == name]
        for unit in units[:_EXAMPLES]:
            shown = unit.a if unit.a is not None else unit.b
            assert shown is not None
            what = "id {} seq {}".format(shown.get("icmp_id"), shown.get("icmp_seq"))
            if not found.echoes:
                what = "port {} id {}".format(shown.get("dst_port"), shown.get("ip_id"))
            lines.append(" " * 18 + "{} {}".format(utc_text(shown["utc_ns"], 3), what))
    for name, values in _parts(found, hosts).items():
        if values:
            values.sort()
            lines.append(
                "us {:<10} min {:.1f}  p50 {:.1f}  max {:.1f}".format(
                    name.replace("_", " "), values[0] / 1e3, values[len(values) // 2] / 1e3,
                    values[-1] / 1e3,
                )
            )  # fmt: skip
    clock = found.clock
    if clock.offset_ns is not None and clock.error_ns is not None:
        lines.append(
            "clock of B: {:+.3f} ms against A, known to {:.3f} ms".format(
                clock.offset_ns / 1e6, clock.error_ns / 1e6
            )
        )
    _print_lines(lines, hosts, notes)


def _print_lines(lines: List[str], hosts: Sequence[Host], notes: Sequence[str]) -> None:
    from ntools.output.stream import printable
    from ntools.output.text import wrap

    for side, host in zip("AB", hosts):
        if host.lost:
            causes = ", ".join("{} {}".format(n, name) for name, n in host.lost.items())
            lines += wrap("recording {} has lost {}: what it does not show is undecided".format(
                side, causes))  # fmt: skip
    for note in notes:
        lines += wrap("note: " + note)
    sys.stdout.write("".join(printable(line) + "\n" for line in lines))


def _write(record: Dict[str, Any]) -> None:
    import json

    sys.stdout.write(json.dumps(record) + "\n")
