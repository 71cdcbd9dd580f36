#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What a start costs: from exec to ready, wall time, CPU time and memory.

Every command and mode in turn with a bare interpreter, a C program that loads the same object with
the same programs and map sizes (the floor), bpftrace at the same points, and the reference's tools.
Natively, or in a guest (--kernel): under emulation only ratios mean anything. Needs root.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Mapping, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import guest, reference  # noqa: E402
from bench.common import REPORTS, Report, Sample, in_turn, options, paired  # noqa: E402
from lab import build  # noqa: E402
from lab.netns import stop_process  # noqa: E402
from lab.topo import Topo, bridge_topo  # noqa: E402

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
#: After ready, until the memory is looked at again.
SETTLE_S = 2.0
_LIMIT_S = 400.0
_EPOLL = {"232", "281", "441"}  # epoll_wait, epoll_pwait, epoll_pwait2 on x86_64

#: Command, options, object, tool of the reference that answers the same. A run of single packets
#: watches for a second what it would cost before it is ready (--admit-s): nothing a CPU does, so
#: here the shortest that is possible; other traffic of this machine must not refuse it.
_ADMIT = ("--admit-s", "0.1", "--max-overhead", "100")
OURS = (
    ("ntools-drop", ("--dst-ip", "192.0.2.1", *_ADMIT), "drop", "drop"),
    ("ntools-drop", ("--mode", "summary"), "drop", "drop"),
    ("ntools-vm-latency", ("--vm-interface", "vnet0"), "flight", "latency"),
    (
        "ntools-vm-latency",
        ("--vm-interface", "vnet0", "--details", "--src-ip", "10.9.0.1", "--dst-ip", "10.9.0.2",
         *_ADMIT),
        "flight_detail", "latency",
    ),
)  # fmt: skip
NAMES = (
    "ntools-drop, events", "ntools-drop, summary",
    "ntools-vm-latency, summary", "ntools-vm-latency, details",
)  # fmt: skip
HELP = {"ntools-drop --help": "ntools-drop", "ntools-vm-latency --help": "ntools-vm-latency"}
BARE, BOTH = "bare interpreter", "floor and interpreter"

#: Ratio of what to what at most, by figure.
GOAL_FLOOR, GOAL_CPU, GOAL_MEMORY = 1.5, 0.1, 0.25


@dataclass(frozen=True)
class Case:
    """A process to start.

    :ivar ready: how the line begins that says it is; empty: it waits for events (bpftrace says
        nothing), None: it ends.
    """

    name: str
    command: Sequence[str]
    ready: str | None = "ready:"
    env: Mapping[str, str] = field(default_factory=dict)


class NotReady(Exception):
    """A case that did not become ready, with its last words."""


def cpu_s(pid: int) -> float:
    """CPU time of a process with all its threads, and of the children it waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    children = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(~pid << 3 | 2) + children  # the clock of clock_getcpuclockid(3)


def memory_mib(pid: int, name: str) -> float:
    """VmHWM or VmRSS of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise NotReady("it ended when it was ready")


def start(topo: Topo, case: Case) -> Sample:
    """One start in namespace H, ended when its memory has settled."""
    begun = time.monotonic()
    process = topo.h.popen(
        case.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **case.env},
    )  # fmt: skip
    try:
        if case.ready is None:
            return _whole(process, begun)
        _until_ready(process, case, begun + _LIMIT_S)
        found = {"wall_s": time.monotonic() - begun, "cpu_s": cpu_s(process.pid)}
        time.sleep(SETTLE_S)
        found["peak_mib"] = memory_mib(process.pid, "VmHWM")
        found["steady_mib"] = memory_mib(process.pid, "VmRSS")
        return found
    finally:
        stop_process(process)


def _whole(process: subprocess.Popen, begun: float) -> Sample:
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {"wall_s": time.monotonic() - begun, "cpu_s": usage.ru_utime + usage.ru_stime}


def _until_ready(process: subprocess.Popen, case: Case, deadline: float) -> None:
    said = b""
    wanted = case.ready.encode()
    while time.monotonic() < deadline:
        more = bool(select.select([process.stdout], [], [], 0.002 if not wanted else 1.0)[0])
        if more:
            new = os.read(process.stdout.fileno(), 65536)
            said += new
            if not new:
                raise NotReady(said.decode(errors="replace").strip()[-300:])
        if wanted and any(line.startswith(wanted) for line in said.splitlines()):
            return
        if not wanted and _waits_for_events(process.pid):
            return
    raise NotReady(f"not within {_LIMIT_S:g} s")


def _waits_for_events(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] in _EPOLL
    return False


def floor_binary() -> Path:
    """The C floor."""
    return build.binary("floor", home=HERE, flags=("-O2", "-Wall", "-Wextra"), libraries=("-lbpf",))


def header_of(topo: Topo, command: Sequence[str]) -> dict:
    """The header record of a short run: what it attached, and its maps."""
    done = topo.h.run([*command, "--duration", "0.1", "--format", "json"])
    return json.loads(done.stdout.splitlines()[0])


def floor_of(header: Mapping, engine: str) -> Sequence[str]:
    """A command that loads what a run has loaded: same object, programs and sizes of maps."""
    from ntools._loader import BpfObject
    from ntools.model import stages

    with BpfObject(engine) as obj:
        chosen = {(row["stage"], row["attach"], row["target"]) for row in header["points"]}
        programs = [
            candidate.program
            for point, known in obj.points.items()
            for candidate in known.candidates
            if (stages.from_symbol(point), candidate.mechanism, candidate.target) in chosen
        ]
        sizes = [f"{row['name']}={row['entries']}" for row in header["maps"]]
        options = [part for size in sizes for part in ("-m", size)]
        return [str(floor_binary()), str(obj.path), *options, *programs]


def bpftrace_of(header: Mapping) -> tuple[list[str], int]:
    """bpftrace at the same points, counting; and how many of them it cannot have here.

    Tracepoints by name of their perf event, functions as functions.
    """
    categories = {
        path.name: path.parent.name for path in Path("/sys/kernel/tracing/events").glob("*/*")
    }
    kinds = {"fentry": "kfunc", "fexit": "kretfunc", "kprobe": "kprobe", "kretprobe": "kretprobe"}
    probes, missing = [], 0
    for row in header["points"]:
        target = row["target"].rpartition("/")[2]
        if row["attach"] in kinds:
            probes.append(f"{kinds[row['attach']]}:{target}")
        elif target in categories:
            probes.append(f"tracepoint:{categories[target]}:{target}")
        else:
            missing += 1
    script = "".join(f"{probe} {{ @[{n}] = count(); }}\n" for n, probe in enumerate(probes))
    return (["bpftrace", "-e", script] if probes else []), missing


def cases_of(topo: Topo, checkout: Path | None, headers: str, report: Report) -> list[Case]:
    """Every process to start here; what cannot run is noted."""
    waiting = "import sys, time; sys.stderr.write('ready:\\n'); time.sleep(9999)"
    cases = [Case(BARE, [sys.executable, "-c", waiting])]
    traced = set()
    for name, (command, args, engine, _) in zip(NAMES, OURS):
        line = [str(BIN / command), *args]
        header = header_of(topo, line)
        cases.append(Case(name, line))
        cases.append(Case(f"floor: {name}", floor_of(header, engine)))
        points = f"{len(header['points'])} points"
        if engine not in traced and not shutil.which("bpftrace"):
            report.notes.append(f"bpftrace is not installed: not compared ({name}).")
        elif command not in traced:
            traced.add(command)
            probes, missing = bpftrace_of(header)
            if not probes:
                report.notes.append(
                    f"bpftrace has none of the {points} of {name} on this kernel: not compared."
                )
            else:
                cases.append(Case(f"bpftrace: {command}", probes, ""))
                if missing:
                    report.notes.append(f"bpftrace has not {missing} of the {points} of {name}.")
        report.notes.append(f"{name}: {points} attached, '{shlex.join([command, *args])}'.")
    cases += [Case(name, [str(BIN / command), "--help"], None) for name, command in HELP.items()]
    if checkout is None:
        report.notes.append("no --reference DIR: the reference is not compared.")
    elif not reference.has_bcc():
        report.notes.append("no Python has BCC: the reference is not compared.")
    else:
        for tool in reference.tools(checkout, reference.headers(headers)).values():
            cases.append(Case(tool.name, tool.command, tool.ready, tool.env))
        if not reference.has_kprobes():
            report.notes.append(
                "this kernel has no kprobes: the reference compiles, loads and verifies, but its "
                "attach is left out, which makes it look cheaper than it is."
            )
    return cases


def measure(
    checkout: Path | None,
    headers: str,
    rounds: int,
    report: Report,
    keep: Callable[[dict[str, list[Sample]]], None] | None = None,
) -> dict[str, list[Sample]]:
    """Samples of every case that works here, by name; each has run once before, to be warm.

    :param keep: called after each round with all samples so far, for a guest that may be ended.
        The reference runs cold there: a start takes it minutes under emulation.
    """
    with bridge_topo(static_neigh=True) as topo:
        cases = cases_of(topo, checkout, headers, report)
        warm = [one for one in cases if keep is None or not one.name.startswith("reference")]
        broken = [case for case in warm if not _starts(topo, case, report)]

        def one(case: Case) -> Callable[[], Sample]:
            return lambda: start(topo, case)

        ready = {case.name: one(case) for case in cases if case not in broken}
        if keep is None:
            return in_turn(ready, rounds)
        return _kept(topo, ready, rounds, report, keep)


def _starts(topo: Topo, case: Case, report: Report) -> bool:
    begun = time.monotonic()
    try:
        start(topo, case)
    except NotReady as problem:
        _note_broken(case.name, problem, report)
        return False
    print(f"{case.name}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
    return True


def _note_broken(name: str, problem: NotReady, report: Report) -> None:
    why = str(problem).splitlines()[-1] if str(problem) else "it ended"
    report.notes.append(f"{name} does not start on this kernel: {why}")


def _kept(
    topo: Topo,
    ready: dict[str, Callable[[], Sample]],
    rounds: int,
    report: Report,
    keep: Callable[[dict[str, list[Sample]]], None],
) -> dict[str, list[Sample]]:
    """Rounds, each kept as soon as it is complete; who fails in one is left out."""
    samples: dict[str, list[Sample]] = {name: [] for name in ready}
    for turn in range(rounds):
        found: dict[str, Sample] = {}
        for name in [*list(ready)[turn % len(ready) :], *list(ready)[: turn % len(ready)]]:
            try:
                found[name] = ready[name]()
            except NotReady as problem:
                _note_broken(name, problem, report)
                del ready[name], samples[name]
        for name, sample in found.items():
            samples[name].append(sample)
        keep(samples)
    return samples


def _sum(*parts: Sequence[Sample]) -> list[Sample]:
    return [
        {figure: sum(one[figure] for one in row) for figure in ("wall_s", "cpu_s")}
        for row in zip(*parts)
    ]


def fill(report: Report, samples: Mapping[str, Sequence[Sample]]) -> None:
    """Rows of the report: each case, and what the goals speak of."""
    bare = samples[BARE]
    for name, found in samples.items():
        report.add(name, found, *(() if name == BARE else (BARE, bare, "cpu_s")))
    for name, (_, _, _, theirs) in zip(NAMES, OURS):
        if name not in samples:
            continue
        both = _sum(bare, samples[f"floor: {name}"])
        ours = samples[name]
        _goal(report, name, ours, BOTH, both, "cpu_s", GOAL_FLOOR)
        for case, found in samples.items():
            if case.startswith("reference:") and theirs in case.replace("VM latency", "latency"):
                _goal(report, name, ours, case, found, "cpu_s", GOAL_CPU)
                _goal(report, name, ours, case, found, "peak_mib", GOAL_MEMORY)


def _goal(report: Report, case: str, ours: Sequence[Sample], to: str, of: Sequence[Sample],
          figure: str, most: float) -> None:  # fmt: skip
    report.rows.append({"case": case, "ratio": paired(ours, of, figure), "to": to,
                        "figure": figure, "goal": most})  # fmt: skip


def in_guest(args) -> int:
    """The same in a guest: boot it, run there, keep what it leaves in the shared directory."""
    floor_binary()
    if args.reference:
        reference.headers(args.kernel)
    inside = [sys.executable, str(Path(__file__).resolve()), "--inside", args.kernel,
              "--rounds", str(args.rounds)]  # fmt: skip
    inside += ["--reference", str(args.reference)] if args.reference else []
    with guest.guest(args.kernel, inside, args.timeout) as (out, status):
        left = out / f"start-{args.kernel}.json"
        if not left.exists():
            print(f"start: the guest left nothing (status {status})", file=sys.stderr)
            return 1
        return _keep(json.loads(left.read_text()), args)


def _leave(name: str, report: Report, samples: dict[str, list[Sample]]) -> None:
    """In the guest: put what is complete into the shared directory."""
    left = {"samples": samples, "notes": report.notes, "machine": report.machine()}
    new = guest.OUT / "start.new"
    new.write_text(json.dumps(left))
    new.rename(guest.OUT / f"start-{name}.json")


def _keep(left: Mapping, args) -> int:
    """Write the report of a guest's samples, with those of earlier boots if asked."""
    raw = REPORTS / "raw" / f"start-{args.kernel}.json"
    samples = {name: list(rows) for name, rows in left["samples"].items()}
    if args.more and raw.exists():
        before = json.loads(raw.read_text())
        samples = {n: before[n] + rows for n, rows in samples.items() if n in before}
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_text(json.dumps(samples) + "\n")
    rounds = len(samples[BARE])
    report = Report(f"start-{args.kernel}", rounds, notes=left["notes"])
    report.machine = lambda: left["machine"]  # type: ignore[method-assign]
    fill(report, samples)
    report.write()
    return 0


def main() -> int:
    """Measures and prints; no figure makes it fail."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, metavar="DIR",
                        help="checkout of the reference tool set")  # fmt: skip
    parser.add_argument("--kernel", metavar="NAME", help="in a guest with this kernel")
    parser.add_argument("--more", action="store_true",
                        help="with --kernel: add to the rounds of the last run")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=3600, metavar="S", help="of the guest")
    parser.add_argument("--inside", metavar="NAME", help="for the guest's own side")
    args = parser.parse_args()
    # A run of single packets somewhere else on the machine must not refuse ours.
    os.environ.setdefault("NTOOLS_RUN_DIR", str(REPORTS / "run"))
    if args.reference:
        args.reference = args.reference.resolve()
    if args.kernel:
        return in_guest(args)
    report = Report("start", args.rounds)
    keep = functools.partial(_leave, args.inside, report) if args.inside else None
    samples = measure(
        args.reference, args.inside or reference.ANY_HEADERS, args.rounds, report, keep
    )
    if args.inside:
        return 0
    fill(report, samples)
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
