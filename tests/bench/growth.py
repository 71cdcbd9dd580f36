#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What the cost grows with: flows, devices, points attached, run time; and what bounds it.

Per case: nanoseconds per run of a program and per packet from the kernel's BPF statistics, CPU time
of the command per report, its memory, and the memory of its maps as it says itself. The filters
have a benchmark of their own, filters.py. Needs root. Writes build/bench/growth-PART.json for each
part.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Report, Sample, in_turn, options  # noqa: E402
from bench.flood import NO_BUDGET, Watched, ended, flood, start_flood  # noqa: E402
from lab.faults import NftDrop  # noqa: E402
from lab.topo import E_MAC, HOST_IP, PHY_MAC, VM_IP, VM_MAC, Topo, bridge_topo  # noqa: E402

_BIN = Path(sys.executable).parent
_DROP, _LATENCY = str(_BIN / "ntools-drop"), str(_BIN / "ntools-vm-latency")
_PORT, _SINK = 9009, 9
_FLOWS = (1, 10000, 1000000)
_PACKETS = 100000
#: The kernel's statistics for the whole run: what is measured here is what a run of a program
#: takes, and they are part of it everywhere.
_MEASURED = ("--stats-duty", "1/1", "--format", "json")
#: Seconds between reports when nothing is said: what a report takes is spread over them.
_DEFAULT_S = {_DROP: 10.0, _LATENCY: 5.0}
#: What the flight engine can attach to by tracepoint, in the order it is added here.
_POINTS = ("dev_rx", "vm_copied", "dev_xmit", "dev_queue", "free_drop", "dev_bklg")


def _reports(tool: Watched) -> int:
    return tool.count('{"type":"interval",')


def _await_reports(tool: Watched, count: int, limit_s: float = 90) -> None:
    """Until so many more reports are complete."""
    wanted, deadline = _reports(tool) + count, time.monotonic() + limit_s
    while _reports(tool) < wanted and time.monotonic() < deadline:
        time.sleep(0.1)


def run(
    topo: Topo, command: Sequence[str], traffic: Callable[..., dict[str, float]],
    interval_s: float = 0.5, reports: int = 2, **how: Any,
) -> Sample:  # fmt: skip
    """One run of a command: traffic, then some whole reports of what it has gathered."""
    line = [*command, *_MEASURED, "--interval", str(interval_s), *NO_BUDGET]
    begun = time.monotonic()
    with Watched(topo.h, line) as tool:
        ready_s, ready_cpu = time.monotonic() - begun, tool.cpu_s()
        sent = traffic(topo, **how)
        _await_reports(tool, 1)
        before, at, first = tool.cpu_s(), time.monotonic(), _reports(tool)
        _await_reports(tool, reports)
        passed, spent = time.monotonic() - at, tool.cpu_s() - before
        made = max(1, _reports(tool) - first)
        rss = tool.memory_mib()
        tool.stop()
        header, summary = tool.records("header")[0], tool.records("summary")[0]
    cost = summary["cost"]
    found: dict[str, float] = {
        "run_ns": cost.get("bpf_run_ns", 0.0),
        "packet_ns": cost.get("bpf_ns", 0) / sent["sent"],
        "runs_per_packet": cost.get("runs", 0) / sent["sent"],
        "report_ms": 1000 * spent / made,
        "rss_mib": rss,
        "peak_mib": cost["max_rss_bytes"] / (1 << 20),
        "maps_mib": sum(row["bytes"] for row in header["maps"]) / (1 << 20),
        "ready_s": ready_s,
        "ready_cpu_s": ready_cpu,
        "lost": sum(summary["lost"].values()),
        "asleep_s": summary.get("asleep_ns", 0) / 1e9,
    }
    every = _DEFAULT_S.get(command[0], 5.0)
    found["user_cpu_pct"] = 100 * spent / passed
    found["default_cpu_pct"] = 100 * spent / made / every
    return found


def _drops(topo: Topo, **how: Any) -> dict[str, float]:
    rule = NftDrop(topo.h, 1, "ingress:phy0", f"udp dport {_PORT}")
    try:
        return flood(topo.e, "wire0", E_MAC, PHY_MAC, HOST_IP, _PORT, **how)
    finally:
        rule.remove()


def _to_vm(topo: Topo, **how: Any) -> dict[str, float]:
    return flood(topo.e, "wire0", E_MAC, VM_MAC, VM_IP, _SINK, **how)


def _drop(topo: Topo, *args: str) -> list[str]:
    return [_DROP, "--netns", topo.h.name, "--dst-port", str(_PORT), *args]


def _latency(*args: str) -> list[str]:
    return [_LATENCY, "--direction", "tx", "--dst-port", str(_SINK), *args]


# -- flows -----------------------------------------------------------------------------------------


def flows(topo: Topo, report: Report, rounds: int) -> None:
    """Cost against the number of flows."""
    cases: dict[str, Callable[[], Sample]] = {}
    few = _drop(topo, "--mode", "summary")
    rows = _drop(topo, "--group-by", "fivetuple")
    most = [*rows, "--max-entries", str(1 << 20)]
    for count in _FLOWS:
        how = {"flows": count, "count": max(count, _PACKETS)}
        for name, command, traffic in (
            ("drop, rows by reason", few, _drops),
            ("drop, rows by flow", rows, _drops),
            ("vm-latency", _latency("--vm-interface", "vnet0"), _to_vm),
        ):
            cases[f"{name}: {count} flows"] = functools.partial(run, topo, command, traffic, **how)
    cases["drop, 1048576 rows by flow: 100000 flows"] = functools.partial(
        run, topo, most, _drops, 2.0, flows=100000, count=100000
    )
    for name, samples in in_turn(cases, rounds).items():
        report.add(name, samples)
    large = run(topo, most, _drops, 10.0, reports=1, flows=1000000, count=1000000)
    report.add("drop, 1048576 rows by flow: 1000000 flows", [large])
    report.notes.append("a million rows: one run only, for a report takes many seconds")


# -- devices ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _taps(topo: Topo, count: int) -> Any:
    """So many more taps on the bridge of the host, gone after."""
    names = [f"many{number}" for number in range(count)]
    topo.h.ip([f"tuntap add dev {name} mode tap" for name in names],
              [f"link set {name} master br0 up" for name in names])  # fmt: skip
    try:
        yield names
    finally:
        topo.h.ip([f"link del {name}" for name in names])


def devices(topo: Topo, report: Report, rounds: int) -> None:
    """Cost against devices that are there, and devices that are chosen."""
    samples: dict[str, list[Sample]] = {}
    for count in (1, 8, 64, 512):
        with _taps(topo, count - 1) as names:
            chosen = 1 if count > 64 else count
            taps, ports = ",".join(["vnet0", *names][:chosen]), ",".join(["phy0", *names][:chosen])
            cases = {
                f"drop, {chosen} of {count} devices": functools.partial(
                    run, topo, _drop(topo, "--mode", "summary", "--interface", ports), _drops,
                    count=_PACKETS),
                f"vm-latency, {chosen} of {count} devices": functools.partial(
                    run, topo, _latency("--vm-interface", taps), _to_vm, count=_PACKETS),
            }  # fmt: skip
            samples.update(in_turn(cases, rounds))
            if count > 64:
                for command in (
                    _drop(topo, "--interface", ",".join(["phy0", *names]), "--mode", "summary"),
                    _latency("--vm-interface", ",".join(["vnet0", *names])),
                ):
                    process = topo.h.popen(command, own_sys=True, stderr=subprocess.PIPE,
                                           stdout=subprocess.DEVNULL)  # fmt: skip
                    text = process.communicate(timeout=60)[1].decode().strip()
                    report.notes.append(f"512 devices chosen: status {process.returncode}, {text}")
    for name, found in samples.items():
        report.add(name, found)


# -- points ----------------------------------------------------------------------------------------


def points(topo: Topo, report: Report, rounds: int) -> None:
    """Cost against the number of points; a packet passes every one of them."""
    cases: dict[str, Callable[[], Sample]] = {}
    for count in range(2, len(_POINTS) + 1):
        command = [sys.executable, __file__, "--points", ",".join(_POINTS[:count])]
        line = [*command, *_latency("--vm-interface", "vnet0")[1:]]
        cases[f"vm-latency, {count} points"] = functools.partial(
            run, topo, line, _to_vm, count=_PACKETS
        )
    for name, samples in in_turn(cases, rounds).items():
        report.add(name, samples)


def _with_points(names: Sequence[str], rest: Sequence[str]) -> int:
    """ntools-vm-latency, but it knows these points only."""
    from ntools import _loader
    from ntools.tools import vm_latency

    want, need = _loader.BpfObject.want, _loader.BpfObject.need
    _loader.BpfObject.want = lambda obj, *found: want(  # type: ignore[method-assign]
        obj, *(one for one in found if one in names)
    )
    _loader.BpfObject.need = lambda obj, *found: need(  # type: ignore[method-assign]
        obj, *(one for one in found if one in names)
    )
    return vm_latency.main(list(rest))


# -- run time --------------------------------------------------------------------------------------


def steady(topo: Topo, command: Sequence[str], to_vm: bool, seconds: float) -> Sample:
    """Memory of a command at a quarter of its run and at its end, under even traffic."""
    where = (VM_MAC, VM_IP, _SINK) if to_vm else (PHY_MAC, HOST_IP, _PORT)
    rule = NftDrop(topo.h, 1, "ingress:phy0", f"udp dport {_PORT}")
    line = [*command, "--format", "json", "--max-cpu", "100", "--max-overhead", "100", "--force"]
    try:
        with Watched(topo.h, line) as tool:
            sender = start_flood(topo.e, "wire0", E_MAC, *where, seconds=seconds, rate=5000.0,
                                 flows=5000)  # fmt: skip
            time.sleep(seconds / 4)
            first, reports = tool.memory_mib(), _reports(tool)
            sent = ended(sender)
            last, peak = tool.memory_mib(), tool.memory_mib("VmHWM")
            found = {"reports": float(_reports(tool) - reports)}
            tool.stop()
    finally:
        rule.remove()
    found.update(sent=sent["sent"], rss_first_mib=first, rss_last_mib=last, peak_mib=peak)
    found["grown_kib"] = 1024 * (last - first)
    return found


def time_(topo: Topo, report: Report, rounds: int, seconds: float = 8.0) -> None:
    """Memory against run time: many reports, many events."""
    often = ("--interval", "0.1")
    cases = {
        name: functools.partial(steady, topo, command, command[0] == _LATENCY, seconds)
        for name, command in (
            ("drop, rows by flow, run time", _drop(topo, "--group-by", "fivetuple", *often)),
            ("drop, events, run time", _drop(topo, "--mode", "event")),
            ("vm-latency, run time", _latency("--vm-interface", "vnet0", *often)),
            ("vm-latency, details, run time", _latency("--vm-interface", "vnet0", "--details")),
        )
    }
    for name, samples in in_turn(cases, rounds).items():
        report.add(name, samples)


PARTS = {"flows": flows, "devices": devices, "points": points, "time": time_}


def main() -> int:
    """Measures and prints; no figure makes it fail."""
    if sys.argv[1:2] == ["--points"]:
        return _with_points(sys.argv[2].split(","), sys.argv[3:])
    parser = options(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--only", choices=PARTS)
    args = parser.parse_args()
    with bridge_topo(static_neigh=True, vm_options={"sink_ports": [_SINK]}) as topo:
        for name, part in PARTS.items():
            if args.only not in (None, name):
                continue
            report = Report(f"growth-{name}", args.rounds)
            report.notes.append(f"commands run on CPU 1 of {os.cpu_count()}, the sender on CPU 0")
            report.notes.append("default_cpu_pct: report_ms spread over the default interval")
            part(topo, report, args.rounds)
            print(report.write())
    return 0


if __name__ == "__main__":
    sys.exit(main())
