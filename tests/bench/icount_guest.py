#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Guest instructions our programs add to a packet, by path and mechanism; runs in a guest.

Under instruction counting (tests/vm/run.py --count) the clock of the guest goes on by a nanosecond
per instruction, so what the clock says between two packets is what was executed for them: the same
in each boot, whatever the machine does besides. The smallest of many short batches has no timer
interrupt in it. The command is stopped meanwhile: what it does with the figures is not per packet.

Prints one JSON object per line: {"path", "mechanism", "instructions", "carrier"} per packet, with
--bodies also {"path", "mechanism", "point", "body", "runs"} per run of a program. --reference adds
the public reference tools (BCC) on the same packets; what does not start there is a "note".
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import firing_paths as paths  # noqa: E402
from lab import bpfsys  # noqa: E402
from lab.tool import Tool  # noqa: E402

BATCHES, PACKETS = 40, 50
_ORDER = ("tp_btf", "raw_tp", "fentry", "kprobe")
#: Without --mechanisms: what the table of the test suite has, in little time.
_TABLE = (
    *(("tp_btf+fentry", name) for name in paths.RUNS),
    *(("raw_tp+kprobe", name) for name in ("drop, summary", "latency, summary")),
)


def put(**row: object) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def carried(traffic: paths.Traffic) -> float:
    """Instructions per packet, without what interrupts add."""
    traffic.send(PACKETS)
    return min(traffic.send(PACKETS) for _ in range(BATCHES)) / PACKETS


def bodies(traffic: paths.Traffic, points: dict[str, list[int]]) -> dict[str, tuple[float, float]]:
    """By point: (instructions of a run, runs per packet); the smallest of all batches."""
    found: dict[str, list[tuple[float, float]]] = {}
    numbers = [number for group in points.values() for number in group]
    traffic.send(PACKETS)
    for _ in range(BATCHES // 2):
        before = paths.runs_of(numbers)
        traffic.send(PACKETS)
        after = paths.runs_of(numbers)
        for point, group in points.items():
            runs = sum(after[number][1] - before[number][1] for number in group)
            took = sum(after[number][0] - before[number][0] for number in group)
            if runs:
                found.setdefault(point, []).append((took / runs, runs / PACKETS))
    return {point: min(rows) for point, rows in found.items()}


def stopped(tool: Tool) -> None:
    """Stops the command and waits until it stands."""
    tool.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{tool.pid}/stat")
    while stat.read_text().rsplit(")", 1)[1].split()[0] != "T":
        time.sleep(0.01)


def measure(topo, traffic, run: paths.Run, mechanism: str, base: dict[str, float],
            with_bodies: bool) -> None:  # fmt: skip
    """One start of a command, every path it has."""
    with paths.start(topo, run, mechanism) as tool:
        header = tool.wait_for(lambda records: records)[0]
        kinds = {point["attach"] for point in header["points"] if point["attach"]}
        name = "+".join(sorted(kinds, key=_ORDER.index))
        stopped(tool)
        for path, kind in run.paths.items():
            counted = carried(traffic[kind])
            put(path=path, mechanism=name, instructions=round(counted - base[kind], 1),
                carrier=round(base[kind], 1))  # fmt: skip
        if with_bodies:
            with bpfsys.run_statistics(), paths.attached_empty("kfree_skb", "netif_rx") as empty:
                points: dict[str, list[int]] = {}
                for number, program in paths.programs_of(tool.pid).items():
                    points.setdefault(program.partition("__")[0], []).append(number)
                points["empty"] = empty
                for path, kind in run.paths.items():
                    rows = bodies(traffic[kind], points)
                    nothing = rows.pop("empty")[0]
                    for point, (body, runs) in sorted(rows.items()):
                        put(path=path, mechanism=name, point=point, body=round(body - nothing, 1),
                            runs=runs)  # fmt: skip
        tool.send_signal(signal.SIGCONT)
        result = tool.stop()
    if result.status or result.summary["lost"]:
        put(path=next(iter(run.paths)), problem=f"{result.summary['lost']} {result.stderr[-300:]}")


#: Tools of the reference: script, options, how the line begins that says it runs, paths.
_REFERENCE = {
    "drop": ("measurement-tools/linux-network-stack/packet-drop/eth_drop.py",
             ("--type", "ipv4", "--dst-port", str(paths.PORT)), "Starting packet drop",
             {"reference drop: rejected by filter": "drop, other port",
              "reference drop: event with stack": "drop"}),
    "latency": ("measurement-tools/performance/vm-network/vm_network_latency_summary.py",
                ("--vm-interface", "vnet0", "--phy-interface", "phy0", "--direction", "rx",
                 "--protocol", "udp", "--dst-port", str(paths.PORT)), "Collecting adjacent",
                {"reference latency: other devices": "loopback",
                 "reference latency: rejected by filter, to VM": "to VM, other port",
                 "reference latency: followed, to VM": "to VM"}),
}  # fmt: skip


def measure_reference(topo, traffic, name: str, base: dict[str, float], options) -> None:
    """One tool of the reference, with its default of kprobes and raw tracepoints."""
    script, args, ready, kinds = _REFERENCE[name]
    process = topo.h.popen(
        [options.interpreter, "-u", str(options.reference / script), *args], own_sys=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env={**os.environ, "BCC_KERNEL_SOURCE": str(options.headers)},
    )  # fmt: skip
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith(ready):
                break
        else:
            put(note=f"reference {name} does not run here: {''.join(said)[-300:].strip()}")
            return
        # From its ready line to its first wait it still does something.
        time.sleep(1)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        for path, kind in kinds.items():
            put(path=path, mechanism="kprobe", instructions=round(
                carried(traffic[kind]) - base[kind], 1), carrier=round(base[kind], 1))  # fmt: skip
    finally:
        process.kill()
        process.wait()


def _wanted(mechanisms: str | None) -> list[tuple[str, str]]:
    """(mechanism, run) to measure; the drop tracer has no functions, so half of them differ."""
    if not mechanisms:
        return list(_TABLE)
    found = {}
    for mechanism in mechanisms.split(",") if mechanisms != "none" else ():
        for name, run in paths.RUNS.items():
            drop = run.command == "ntools-drop"
            kind = mechanism.partition("+")[0] if drop else mechanism
            found.setdefault((kind, name), (mechanism, name))
    return list(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bodies", action="store_true", help="single programs, too")
    parser.add_argument("--mechanisms", help=f"none, or of {', '.join(paths.MECHANISMS)}")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of the reference")
    parser.add_argument("--tools", default=",".join(_REFERENCE), help="of it, by comma")
    parser.add_argument("--headers", type=Path, help="kernel headers for it, one tree")
    parser.add_argument("--interpreter", help="the Python that has BCC")
    options = parser.parse_args()
    modules = ["tun", "veth", "bridge", *(["openvswitch"] if options.reference else [])]
    subprocess.run(["modprobe", "-a", *modules], check=False)
    with paths.laboratory() as (topo, traffic):
        base = {kind: carried(one) for kind, one in traffic.items()}
        for mechanism, name in _wanted(options.mechanisms):
            measure(topo, traffic, paths.RUNS[name], mechanism, base, options.bodies)
        for name in options.tools.split(",") if options.reference else ():
            measure_reference(topo, traffic, name, base, options)
        for kind, one in traffic.items():
            put(carrier_of=kind, first=base[kind], last=carried(one))
    put(done=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
