#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run the scenarios of tests/lab on this kernel, one after the other.

In a VM guest started by matrix.py, or with --native on the machine itself (fewer
capabilities, more skips). Writes JSON lines to OUT/results.jsonl as things happen.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import importlib.util
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vm import common  # noqa: E402
from vm.common import GUEST_OUT, RESULTS, SCENARIO_TIMEOUT_S  # noqa: E402

# Nothing loads these on demand in a guest without udev (the device nodes of the first three
# appear with their modules); the others save the time inside a scenario.
MODULES = (
    "tun vhost_net kvm_amd openvswitch bridge veth 8021q bonding dummy vxlan geneve macvtap "
    "sch_netem sch_tbf sch_ingress cls_u32 act_mirred act_gact nf_tables nft_ct nf_conntrack "
    "virtio_net"
).split()

_SO_TIMESTAMP = 29  # not in Python's socket module


class Report:
    """The results file; one line is one write, so a reader never sees half of one."""

    def __init__(self, path: Path):
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def add(self, event: str, **fields) -> dict:
        row = {"event": event, "time_s": round(time.monotonic(), 2), **fields}
        os.write(self._fd, (json.dumps(row) + "\n").encode())
        return row


@contextlib.contextmanager
def _statistics_held():
    """Somebody has them on all the time: no command switches them."""
    from lab import bpfsys

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # before 5.8
            stack.enter_context(bpfsys.run_statistics())
        yield


def warm_up() -> None:
    """Load the page cache before anything is timed: the first Python start is slow."""
    for name in ("ntools", "ntools._loader", "ntools.engine", "pyroute2"):
        try:
            importlib.import_module(name)
        except Exception as error:  # the scenarios will say it better
            print(f"warm-up: {name}: {error}", file=sys.stderr)
    subprocess.run([sys.executable, "-c", "pass"], check=False)


def select(scenarios, globs, exclude):
    """Scenarios by name patterns, without those that fit a pattern of ``exclude``."""

    def fits(name, patterns):
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return [s for s in scenarios if fits(s.name, globs or ["*"]) and not fits(s.name, exclude)]


def run_guarded(module, scenario, have, out: Path) -> dict:
    """One scenario; run_one() enforces its time limit and catches what it raises."""
    began = time.monotonic()
    try:
        return module.run_one(scenario, have, out)
    except Exception as error:  # a fault of the laboratory must not end the run of the others
        with (out / f"{scenario.name}.log").open("a", errors="backslashreplace") as log:
            traceback.print_exc(file=log)
        reason = f"run_one: {type(error).__name__}: {error}"
        return {"result": "failed", "reason": reason, "seconds": time.monotonic() - began}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--native", action="store_true", help="on this machine, no modules loaded")
    parser.add_argument("--out", type=Path, help="results directory")
    parser.add_argument("--scenario", action="append", default=[], metavar="GLOB")
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    options = parser.parse_args()
    src = str(common.PROJECT / "src")
    if importlib.util.find_spec("ntools") is None:
        sys.path.append(src)
        os.environ["PYTHONPATH"] = src

    from lab import caps as lab_caps
    from lab import scenario as lab_scenario

    chosen = select(lab_scenario.load_all(), options.scenario, set(options.exclude))
    if options.list:
        print("\n".join(f"{s.name:<32} {' '.join(s.requires)}" for s in chosen))
        return 0
    if options.out:
        out = options.out
    else:
        out = Path(tempfile.mkdtemp(prefix="ntools-native-")) if options.native else Path(GUEST_OUT)
    out.mkdir(parents=True, exist_ok=True)
    report = Report(out / RESULTS)
    if not options.native:
        subprocess.run(["modprobe", "-a", *MODULES], stderr=subprocess.DEVNULL, check=False)
    # Switching packet time stamps on and off patches kernel code, and two emulated CPUs have
    # been seen to trip over that: one socket keeps them on for the whole run.
    held = contextlib.ExitStack()
    stamps = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stamps.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)
    if not options.native:  # the same goes for the run statistics of BPF programs
        held.enter_context(_statistics_held())
    warm_up()
    have = lab_caps.capabilities()
    wanted = {name for s in chosen for name in s.requires}
    if os.environ.get("NTOOLS_VM_KERNEL"):
        wanted |= common.kernel(os.environ["NTOOLS_VM_KERNEL"]).required
    report.add(
        "caps",
        kernel=platform.release(),
        have=sorted(have),
        missing={name: lab_caps.why_not(name) for name in sorted(wanted - have)},
        scenarios=[s.name for s in chosen],
    )
    failed = 0
    for s in chosen:
        report.add(
            "start",
            name=s.name,
            requires=list(s.requires),
            limit_s=s.timeout_s or SCENARIO_TIMEOUT_S,
        )
        outcome = run_guarded(lab_scenario, s, have, out)
        row = report.add("result", **{**outcome, "name": s.name})
        failed += row["result"] == "failed"
        if options.native:
            print(common.result_line(row), flush=True)
    report.add("done")
    stamps.close()
    held.close()
    if options.native:
        print(f"{len(chosen)} scenarios, {failed} failed; results in {out}")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
