#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Run the scenarios of tests/lab on the kernels of kernels.txt, one boot per kernel.

A guest that hangs or dies costs the scenario that was running (it counts as failed); it is
booted once more for the rest. Only what the emulator is to blame for runs again. A scenario
skipped for want of a capability which kernels.txt lists for that kernel counts as failed, and so
does a kernel on which nothing ran. Recordings that scenarios leave are replayed here, on another
kernel. On one kernel a further boot counts the instructions of our programs (instructions.py).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vm import armsite, common, elsewhere, fetch, instructions  # noqa: E402
from vm.common import Kernel, VmProblem  # noqa: E402
from vm.run import Guest, end_on_sigterm, new_out_dir  # noqa: E402

# A nested guest needs room.
MEMORY_MB = 3072
DEFAULT_BOOT_LIMIT_S = 1800
# What the kernel says when a CPU runs into a breakpoint that a patch of its code has removed
# meanwhile. Real CPUs see the end of a patch at once, emulated ones do not always.
_PATCHING = re.compile(r"Oops: int3: ")
_SPLAT = re.compile(r"\b(BUG|WARNING): |general protection fault|rcu: INFO: .* stall")


def say(text: str = "") -> None:
    print(text, flush=True)


class Follower:
    """Reads results.jsonl while the guest writes it and judges each scenario."""

    def __init__(self, kernel: Kernel, path: Path, rows: dict[str, dict]):
        self._kernel, self._path, self._rows = kernel, path, rows
        self._at = 0
        self._starts: dict[str, dict] = {}
        self._have: set[str] = set()
        self._missing: dict[str, str] = {}
        # Set by the first tick: before it, the runner may wait for another guest.
        self._give_up_at: float | None = None
        self.planned: list[str] = []
        self.running: str | None = None
        self.done = self.hung = False

    def tick(self) -> bool:
        """False when the guest has been silent for too long."""
        if self._path.exists():
            with self._path.open("rb") as source:
                source.seek(self._at)
                data = source.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._at += len(whole)
            for line in whole.splitlines():
                self._take(json.loads(line))
        if self._give_up_at is None:
            self._give_up_at = time.monotonic() + common.FIRST_LINE_S
        self.hung = time.monotonic() > self._give_up_at
        return not self.hung

    def _take(self, row: dict) -> None:
        limit = common.SCENARIO_TIMEOUT_S
        event = row["event"]
        if event == "caps":
            self.planned = row["scenarios"]
            self._have, self._missing = set(row["have"]), row["missing"]
            for name in sorted(self._kernel.required - self._have):
                say(f"  note: no {name}: {row['missing'].get(name)}")
        elif event == "start":
            self.running = row["name"]
            self._starts[row["name"]] = row
            limit = row["limit_s"] + common.HANG_GRACE_S
        elif event == "result":
            self.running = None
            self.settle(self._judge(row))
        elif event == "done":
            self.done = True
        self._give_up_at = time.monotonic() + limit

    def _judge(self, row: dict) -> dict:
        """A skip that should not have been one becomes a failure."""
        if row["result"] != "skipped":
            return row
        requires = set(self._starts.get(row["name"], {}).get("requires", ()))
        lacking = requires - self._have
        known = sorted(lacking & self._kernel.required)
        unknown = sorted(n for n in lacking if self._missing.get(n) == "unknown capability")
        if known:
            reason = f"skipped, but this kernel is known to have {', '.join(known)}"
        elif unknown:
            reason = f"requires the unknown capability {', '.join(unknown)}"
        else:
            return row
        return {**row, "result": "failed", "reason": f"{reason} ({row.get('reason')})"}

    def settle(self, row: dict) -> None:
        self._rows[row["name"]] = row
        say("  " + common.result_line(row))


@dataclass
class Outcome:
    """What one kernel gave."""

    kernel: Kernel
    rows: dict[str, dict] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, result: str) -> int:
        return sum(row["result"] == result for row in self.rows.values())

    def add_problem(self, text: str) -> None:
        self.problems.append(text)
        say(f"  {text}")

    @property
    def ok(self) -> bool:
        return not self.count("failed") and not self.problems and self.count("passed") > 0

    def totals(self) -> str:
        parts = [f"{self.count(r)} {r}" for r in ("passed", "failed", "skipped")]
        return ", ".join(parts)


def _splats(out: Path) -> list[str]:
    """Complaints of the guest's kernel."""
    log = out / ".dmesg"
    if not log.exists():
        return []
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if _SPLAT.search(line)]


def _boot(outcome: Outcome, chosen, timeout_s: float, last: bool = False) -> bool:
    """One guest for everything not yet settled; True when another boot makes sense.

    After the ``last`` boot whatever is left has failed.
    """
    k = outcome.kernel
    out = new_out_dir(k.name)
    here = common.HERE if k.arch == "amd64" else Path(common.GUEST_PROJECT) / "tests/vm"
    command = [common.guest_python(k.arch), str(here / "guest.py")]
    if k.arch == "arm64":
        command = [*armsite.environment(), *command]
    for pattern in chosen or k.scenarios:
        command += ["--scenario", pattern]
    for name in [*outcome.rows, *(() if chosen else k.excluded)]:
        command += ["--exclude", name]
    guest = Guest(k.name, command, out, MEMORY_MB)
    if k.debug_package:
        fetch.make_joined_btf(k.name, out / common.JOINED_BTF)
    follower = Follower(k, out / common.RESULTS, outcome.rows)
    say(f"{k.name}: {guest.tree.release}, results in {out}")
    status = guest.run(timeout_s, follower.tick)
    follower.tick()
    for line in _splats(out):
        say(f"  kernel log: {line.strip()}")
    if follower.done:
        for row in elsewhere.replay_kept(out):
            follower.settle(row)
        return False
    if (out / ".rc").exists():
        text = (out / "stderr").read_text(errors="replace").strip()[-1500:]
        outcome.add_problem(f"guest.py ended early with status {status}:\n{text}")
        return False
    what = "hung" if follower.hung or status == common.RC_TIMEOUT else "died"
    console = (out / "console").read_text(errors="replace")
    again = not last and bool(_PATCHING.search(console))
    if again:
        say(f"  {follower.running} runs again: two emulated CPUs and code that was being patched")
    elif follower.running:
        reason = f"the guest {what} while this ran; console in {out}"
        row = {"name": follower.running, "result": "failed", "reason": reason, "seconds": 0.0}
        follower.settle(row)
    say(f"  guest {what} ({status}); last words:\n{guest.last_words()}")
    rest = [name for name in follower.planned if name not in outcome.rows]
    if last:
        outcome.add_problem("the guest ended early twice")
        for name in rest:
            reason = "did not run: the guest ended early twice"
            follower.settle({"name": name, "result": "failed", "reason": reason, "seconds": 0.0})
    return not follower.planned or bool(rest)


def run_kernel(k: Kernel, globs, timeout_s: float) -> Outcome:
    """All scenarios on one kernel, with at most one restart of the guest."""
    outcome = Outcome(k)
    began = time.monotonic()
    try:
        if _boot(outcome, globs, timeout_s):
            say(f"{k.name}: guest restarted")
            _boot(outcome, globs, timeout_s, last=True)
    except VmProblem as problem:
        outcome.add_problem(str(problem))
    if not outcome.count("passed") and not outcome.count("failed") and not outcome.problems:
        outcome.add_problem("no scenario ran")
    outcome.seconds = time.monotonic() - began
    say(f"{k.name}: {outcome.totals()} in {outcome.seconds:.0f} s")
    return outcome


def count_instructions(k: Kernel) -> Outcome:
    """What our programs cost, against the table."""
    outcome = Outcome(replace(k, name=f"{k.name} count"))
    began = time.monotonic()
    say(f"{outcome.kernel.name}: instructions per packet")

    def settle(row: dict) -> None:
        outcome.rows[row["name"]] = row
        say("  " + common.result_line(row))

    instructions.check(settle)
    outcome.seconds = time.monotonic() - began
    return outcome


def report(outcomes: list[Outcome]) -> bool:
    """Print skips, failures and totals; True when everything is fine."""
    for result in ("skipped", "failed"):
        for o in outcomes:
            for row in o.rows.values():
                if row["result"] == result:
                    say(f"{result} {o.kernel.name} {row['name']}: {row.get('reason')}")
    for o in outcomes:
        for text in o.problems:
            say(f"problem {o.kernel.name}: {text.splitlines()[0]}")
    for o in outcomes:
        say(f"{o.kernel.name:<10} {o.totals()} in {o.seconds:.0f} s")
    totals = [sum(o.count(r) for o in outcomes) for r in ("passed", "failed", "skipped")]
    say("{} passed, {} failed, {} skipped".format(*totals))
    return bool(outcomes) and all(o.ok for o in outcomes)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", help="comma-separated names in kernels.txt")
    parser.add_argument("--scenario", action="append", default=[], metavar="GLOB")
    parser.add_argument("--timeout", type=float, default=DEFAULT_BOOT_LIMIT_S, metavar="S",
                        help="limit of one boot")  # fmt: skip
    options = parser.parse_args()
    end_on_sigterm()
    outcomes: list[Outcome] = []
    try:
        if options.kernel:
            chosen = [common.kernel(name) for name in options.kernel.split(",")]
        else:
            chosen = [k for k in common.kernels().values() if k.default]
        for k in chosen:
            outcomes.append(run_kernel(k, options.scenario, options.timeout))
            if k.name == instructions.KERNEL and not options.scenario:
                outcomes.append(count_instructions(k))
    except VmProblem as problem:
        fetch.say(str(problem))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        report(outcomes)
        return 1
    return 0 if report(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
