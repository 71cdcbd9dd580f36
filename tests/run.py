# SPDX-License-Identifier: GPL-2.0-only
"""Run the parts of the test suite this machine can run and add up the results.

usage: run.py [--kernel SERIES] [--all] [PART...]

Parts: unit (no root), object (compiler, no root), native (root, the running kernel), vm (QEMU,
every kernel of the support matrix). A part that cannot run here is named, with the reason, and
counts as one skipped test; with --all it is a failure. The last line is "N passed, N failed,
N skipped"; the exit status is 1 if anything failed or a part that was started ran nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent
REPORTS = TESTS.parent / "build" / "test"
TOTALS = re.compile(r"(\d+) passed, (\d+) failed, (\d+) skipped")

# Seconds after which a part is taken to hang.
LIMITS = {"unit": 300, "object": 1200, "native": 900, "vm": 4500}
# Seconds an interrupted part gets to take its namespaces and guests down.
GRACE_S = 60


@dataclass
class Result:
    """What came of one part; notes are lines for the reader."""

    part: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def fail(self, note: str) -> None:
        """Count a failure that no test stands for."""
        self.failed += 1
        self.notes.append(note)


def obstacle(part: str) -> str | None:
    """Why this machine cannot run the part at all, or None."""
    if part in ("native", "vm") and os.geteuid() != 0:
        return "needs root"
    if part == "vm" and not shutil.which("qemu-system-x86_64"):
        return "needs qemu-system-x86_64 ('make setup-test' installs it)"
    return None


def run_command(command: list[str], limit_s: int) -> tuple[int, str, bool]:
    """Run with the output passed on.

    :return: exit status, last line of the output, whether it had to be ended.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    hung = threading.Event()

    def end(number: int) -> None:
        hung.set()
        if process.poll() is None:
            os.killpg(process.pid, number)

    timers = [
        threading.Timer(limit_s, end, [signal.SIGINT]),
        threading.Timer(limit_s + GRACE_S, end, [signal.SIGKILL]),
    ]
    for timer in timers:
        timer.start()
    last = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
        status = process.wait()
    except KeyboardInterrupt:
        # The part is in a session of its own and has not seen the interrupt.
        os.killpg(process.pid, signal.SIGINT)
        process.wait(GRACE_S)
        raise
    finally:
        for timer in timers:
            timer.cancel()
    return status, last, hung.is_set()


def count_report(path: Path, result: Result) -> None:
    """Add the tests of a JUnit report; skipped ones leave their reasons as notes."""
    reasons: Counter[str] = Counter()
    for case in ElementTree.parse(path).iter("testcase"):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            result.failed += 1
        elif skip is not None:
            result.skipped += 1
            reasons[skip.get("message") or "no reason given"] += 1
        else:
            result.passed += 1
    result.notes += [f"skipped {count}: {reason}" for reason, count in reasons.most_common()]


def run_part(part: str, kernel: str | None) -> Result:
    """Run one part to its end."""
    result = Result(part)
    report = REPORTS / f"{part}.xml"
    report.unlink(missing_ok=True)
    if part == "vm":
        command = [sys.executable, str(TESTS / "vm" / "matrix.py")]
        command += ["--kernel", kernel] if kernel else []
    else:
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}"]
        command.append(str(TESTS / part))
    started = time.monotonic()
    status, last, hung = run_command(command, LIMITS[part])
    result.seconds = time.monotonic() - started

    totals = TOTALS.fullmatch(last)
    if part == "vm" and totals:
        result.passed, result.failed, result.skipped = map(int, totals.groups())
    elif report.exists():
        count_report(report, result)
    if hung:
        result.fail(f"ended after {LIMITS[part]} s")
    elif status != 0 and not result.failed:
        result.fail(f"exit status {status}")
    elif not result.passed and not result.failed:
        result.fail("ran nothing")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(LIMITS))
    parser.add_argument("--kernel", metavar="SERIES", help="one kernel of the vm part")
    parser.add_argument("--all", action="store_true", help="fail where a part cannot run")
    args = parser.parse_args()
    unknown = set(args.parts) - set(LIMITS)
    if unknown:
        parser.error("unknown part '{}'; there are {}".format(unknown.pop(), ", ".join(LIMITS)))

    REPORTS.mkdir(parents=True, exist_ok=True)
    results = []
    for part in args.parts or LIMITS:
        reason = obstacle(part)
        if reason is None:
            print(f"== {part}", flush=True)
            results.append(run_part(part, args.kernel))
        elif args.all:
            results.append(Result(part, failed=1, notes=[f"cannot run: {reason}"]))
        else:
            results.append(Result(part, skipped=1, notes=[f"not run: {reason}"]))

    print("\n{:8} {:>7} {:>7} {:>7} {:>8}".format("part", "passed", "failed", "skipped", "time"))
    for r in results:
        print(f"{r.part:8} {r.passed:7} {r.failed:7} {r.skipped:7} {r.seconds:6.0f} s")
    for r in results:
        for note in r.notes:
            print(f"{r.part}: {note}")
    failed = sum(r.failed for r in results)
    passed = sum(r.passed for r in results)
    skipped = sum(r.skipped for r in results)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
