#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What a start costs: CPU seconds and wall time from exec to ready, and peak memory.

Every command is started in turn with a bare interpreter, so that both meet the same machine;
medians and spreads of at least five such pairs are printed, and written to build/bench/start.json.
Needs root. CPU time and VmHWM are the kernel's own figures of the process, read at the ready line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.topo import Topo, bridge_topo  # noqa: E402

_REPORT = Path(__file__).resolve().parents[2] / "build" / "bench" / "start.json"
_TICKS = os.sysconf("SC_CLK_TCK")
Sample = Dict[str, float]


def _cpu_s(pid: int) -> float:
    """User and system time of a process so far, to the scheduler's precision where it tells."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


def _peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _until_ready(topo: Topo, command: List[str]) -> Sample:
    """One start in namespace H, ended as soon as it is ready."""
    begun = time.monotonic()
    process = topo.h.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        for line in process.stderr:
            if line.startswith(b"ready:"):
                return {
                    "wall_s": time.monotonic() - begun,
                    "cpu_s": _cpu_s(process.pid),
                    "peak_mib": _peak_mib(process.pid),
                }
        raise RuntimeError(f"{command[0]} did not become ready")
    finally:
        process.terminate()
        process.wait()


def _whole(topo: Topo, command: List[str]) -> Sample:
    """A command that ends by itself, with the kernel's account of it."""
    begun = time.monotonic()
    process = topo.h.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {"wall_s": time.monotonic() - begun, "cpu_s": usage.ru_utime + usage.ru_stime}


def _summary(samples: List[Sample]) -> Dict[str, Dict[str, float]]:
    found = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        found[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return found


def main() -> int:
    """Measures and prints; no figure makes it fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9, help="at least 5 (default 9)")
    pairs = max(5, parser.parse_args().pairs)
    bin_dir = Path(sys.executable).parent
    latency, drop = str(bin_dir / "ntools-vm-latency"), str(bin_dir / "ntools-drop")
    cases: List[Tuple[str, List[str], Callable[[Topo, List[str]], Sample]]] = [
        ("vm-latency", [latency, "--vm-interface", "vnet0"], _until_ready),
        (
            "vm-latency --details",
            [latency, "--vm-interface", "vnet0", "--details", "--force"],
            _until_ready,
        ),
        ("drop", [drop, "--dst-ip", "192.0.2.1", "--force"], _until_ready),
        ("drop --mode summary", [drop, "--mode", "summary"], _until_ready),
        ("vm-latency --help", [latency, "--help"], _whole),
        ("drop --help", [drop, "--help"], _whole),
    ]
    bare = [sys.executable, "-c", "pass"]
    results: Dict[str, List[Sample]] = {name: [] for name, _, _ in cases}
    base: List[Sample] = []
    with bridge_topo(static_neigh=True) as topo:
        for _, command, measure in cases:
            measure(topo, command)  # warm the page cache
        for _ in range(pairs):
            for name, command, measure in cases:
                base.append(_whole(topo, bare))
                results[name].append(measure(topo, command))
    load = os.getloadavg()[0]
    print(
        f"kernel {platform.release()}, Python {platform.python_version()}, {pairs} rounds, "
        f"load {load:.1f}; median (min to max)"
    )
    report = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pairs": pairs,
        "load": load,
        "bare interpreter": _summary(base),
    }
    base_cpu = report["bare interpreter"]["cpu_s"]["median"]
    for name, samples in [("bare interpreter", base), *results.items()]:
        row = report[name] = _summary(samples)
        parts = [
            f"{row['cpu_s']['median']:.3f} CPU s ({row['cpu_s']['min']:.3f} to "
            f"{row['cpu_s']['max']:.3f}), {row['cpu_s']['median'] / base_cpu:.1f} x bare",
            f"{row['wall_s']['median'] * 1000:.0f} ms wall",
        ]
        if "peak_mib" in row:
            parts.append(f"{row['peak_mib']['median']:.1f} MiB peak")
        print(f"{name:<22} " + ", ".join(parts))
    _REPORT.parent.mkdir(parents=True, exist_ok=True)
    _REPORT.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
