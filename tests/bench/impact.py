#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What a command takes from the traffic it watches: latency, throughput, packets per second.

::

    namespace E            namespace H, "the host"            namespace G, "the guest"
    10.9.0.1 wire0 ==veth== phy0 -- br0 -- vnet0 ... relay ... eth0 10.9.0.2

The relay (impact_relay.c) is the virtual machine: it passes frames between the tap and a second
one, whose namespace has the TCP of the guest. Every slice of load beside a command, ours or
tcpdump, has one without right before or after; cases run in turn, in rounds that begin with
another one each. What is printed is the ratio of such pairs; a case that is no command either
says what is noise.

E and G run on this kernel too, and programs run for their packets as for those of H: of 18 runs
per TCP transaction 7 belong to H. A real host has neither, and a slower wire. Each part writes
build/bench/impact-PART.json. Needs root.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import guest, reference  # noqa: E402
from bench.common import REPORTS, Report, Sample, in_turn, options  # noqa: E402
from bench.impact_site import (  # noqa: E402
    ECHO,
    FEW,
    NOBODY,
    SINK,
    Command,
    Site,
    program,
    site,
)
from lab import bpfsys  # noqa: E402
from lab.faults import NftDrop  # noqa: E402
from lab.netns import CommandFailed  # noqa: E402

_BIN = Path(sys.executable).parent

#: No governor: it would change what is measured. Without statistics, which tax every program and
#: are on for a fifteenth of the time; a case of its own has them on.
FREE = ("--max-cpu", "100", "--max-overhead", "100")
QUIET = (*FREE, "--stats-duty", "0/1")
BARE, NOISE = "no tool", "no tool, again"


@dataclass(frozen=True)
class Case:
    """A command beside the traffic; none without words."""

    name: str
    words: Sequence[str] = ()
    ready: str = "ready:"
    env: Mapping[str, str] = field(default_factory=dict)


def _latency(name: str, *words: str, free: Sequence[str] = QUIET) -> Case:
    command = [str(_BIN / "ntools-vm-latency"), "--vm-interface", "vnet0", "--format", "json"]
    return Case(f"vm-latency {name}", [*command, *free, *words])


def _drop(name: str, *words: str) -> Case:
    command = [str(_BIN / "ntools-drop"), "--format", "json", "--force"]
    return Case(f"drop {name}", [*command, *QUIET, *words])


def _tcpdump(name: str, *words: str, dev: str = "vnet0") -> Case:
    command = ["tcpdump", "-n", "-p", "-Z", "root", "-i", dev, "-w", "/dev/null"]
    return Case(f"tcpdump {name}", [*command, *words], "listening on")


_LITTLE = ("--dst-port", FEW, "--bidir")
_PORTS = f"port {ECHO + 1} or port {SINK + 1}"
DROPS = (
    _drop("events, filter: nothing", "--dst-ip", NOBODY),
    _drop("events, no filter"),
    _drop("summary, no filter", "--mode", "summary"),
)
LATENCY = (
    _latency("summary, filter: nothing", "--src-ip", NOBODY),
    _latency("summary, filter: 1 in 64", *_LITTLE),
    _latency("summary, no filter"),
    _latency("summary, to the VM only", "--direction", "tx"),
    _latency("summary, with statistics", free=FREE),
    _latency("details, filter: 1 in 64", "--details", "--force", *_LITTLE),
    _latency("details, no filter", "--details", "--force"),
)
WITNESS = (
    _tcpdump("filter: nothing", f"host {NOBODY}"),
    _tcpdump("filter: 1 in 64", _PORTS),
    _tcpdump("no filter"),
    _tcpdump("no filter, all devices", dev="any"),
)


class Beside:
    """A load beside the command of a case, and the same load without, right before or after.

    :ivar samples: beside it, with the CPU time it took.
    :ivar bare: without, one for each.
    """

    def __init__(self, place: Site, case: Case, load: Callable[[], Dict[str, float]]) -> None:
        self._place, self._case, self._load = place, case, load
        self.bare: List[Sample] = []

    def __call__(self) -> Sample:
        """One pair; by turns the load without comes first and last."""
        if len(self.bare) % 2:
            sample = self._loaded()
            self.bare.append(self._load())
        else:
            self.bare.append(self._load())
            sample = self._loaded()
        return sample

    def _loaded(self) -> Sample:
        if not self._case.words:
            return {**self._load(), "tool_cpu_pct": 0.0}
        case = self._case
        with Command(self._place.topo.h, case.words, case.ready, case.env) as command:
            before, begun = command.cpu_s(), time.monotonic()
            found = self._load()
            passed = time.monotonic() - begun
            return {**found, "tool_cpu_pct": 100 * (command.cpu_s() - before) / passed}


def rr_load(place: Site, slice_ms: int) -> Dict[str, float]:
    """Latency, and transactions per second."""
    found = {}
    for protocol in ("tcp", "udp"):
        seen = place.transactions(protocol, slice_ms)
        found[f"{protocol}_rtt_us"] = seen["p50_ns"] / 1e3
        found[f"{protocol}_per_s"] = seen["count"] / seen["ns"] * 1e9
        found[f"{protocol}_cpu_us"] = seen["cpu_ns"] / seen["count"] / 1e3
    return found


def stream_load(place: Site, slice_ms: int) -> Dict[str, float]:
    """Throughput, both directions, one stream and four."""
    found = {}
    for to_vm in (True, False):
        for count in (1, 4):
            seen = place.streams(to_vm, count, slice_ms)
            name = f"{'to' if to_vm else 'from'}_vm_{count}_gbit_per_s"
            found[name] = 8 * seen["bytes"] / seen["ns"]
            found[name.replace("gbit_per_s", "cpu_ms_per_gbit")] = (
                seen["cpu_ns"] / seen["bytes"] / 8e-3
            )
    return found


def pps_load(place: Site, slice_ms: int) -> Dict[str, float]:
    """Packets per second: taken by the VM, and sent by it."""
    to_vm, from_vm = place.flood(True, slice_ms), place.flood(False, slice_ms)
    return {
        "to_vm_pkts_per_s": to_vm["copied"] / to_vm["ns"] * 1e9,
        "to_vmcpu_ns": to_vm["cpu_ns"] / to_vm["count"],
        "from_vm_pkts_per_s": from_vm["count"] / from_vm["ns"] * 1e9,
        "from_vmcpu_ns": from_vm["cpu_ns"] / from_vm["count"],
    }


def timed(place: Site, part: str, cases: Sequence[Case], rounds: int, slice_ms: int) -> None:
    """One part: all cases in turn, a row per figure and case."""
    jobs = {one.name: Beside(place, one, lambda: TIMED[part](place, slice_ms)) for one in cases}
    for job in jobs.values():
        job()  # programs and pages are warm
        job.bare.clear()
    samples = in_turn(jobs, rounds)
    report = Report(f"impact-{part}", rounds)
    bare = [one for job in jobs.values() for one in job.bare]
    for figure in bare[0]:
        report.add(BARE, [{figure: one[figure]} for one in bare])
        for name, found in samples.items():
            few = [{one: sample[one] for one in (figure, "tool_cpu_pct")} for sample in found]
            report.add(name, few, BARE, jobs[name].bare, figure)
    report.notes += [
        f"slices of {slice_ms} ms; ratios are to the slice with no tool right before or after",
        f"{NOISE}: no tool either; its ratio is what this machine cannot tell apart",
        "cpu: CPU time of senders, servers and relay, the kernel's work for them included, per "
        "transaction, packet or Gbit: what a busy machine does besides is not in it",
        "tool_cpu_pct: CPU time of the command, user and system, in percent of one CPU",
    ]
    report.write()


# -- drops ---------------------------------------------------------------------------------------


#: What the host drops, as the packet filter says it.
DROPPED = {"few": f"udp dport {SINK + 1}", "all": "meta l4proto udp"}


def can_drop(place: Site) -> bool:
    """Whether this kernel filters packets of bridges."""
    try:
        NftDrop(place.topo.h, 1, "bridge-forward").remove()
    except (CommandFailed, OSError):
        print("impact: no packet filter for bridges: no drops", file=sys.stderr)
        return False
    return True


def drop_load(place: Site, slice_ms: int) -> Dict[str, float]:
    """Packets per second the sender gets rid of while few, or all, are dropped by the host."""
    found = {}
    for name, match in DROPPED.items():
        rule = NftDrop(place.topo.h, 1, "bridge-forward", match)
        try:
            seen = place.flood(True, slice_ms)
        finally:
            rule.remove()
        found[f"{name}_dropped_pkts_per_s"] = seen["count"] / seen["ns"] * 1e9
        found[f"{name}_droppedcpu_ns"] = seen["cpu_ns"] / seen["count"]
    return found


# -- share seen ----------------------------------------------------------------------------------


def everything(place: Site, slice_ms: int) -> Dict[str, int]:
    """Every load once; the few packets of the UDP part, by direction."""
    few = {"to_vm": 0, "from_vm": 0}
    place.transactions("tcp", slice_ms)
    few["to_vm"] = few["from_vm"] = place.transactions("udp", slice_ms)["few"]
    for to_vm in (True, False):
        for count in (1, 4):
            place.streams(to_vm, count, slice_ms)
        few["to_vm" if to_vm else "from_vm"] += place.flood(to_vm, slice_ms)["few"]
    return few


def share(place: Site, rounds: int, slice_ms: int) -> None:
    """Packets by an oracle and by the command; the CPU time it takes under every load in turn."""
    jobs: Dict[str, Callable[[], Sample]] = {}
    said: List[str] = []
    for case in LATENCY:
        if "1 in 64" in case.name:
            # Of TCP the oracle knows transactions, not packets.
            udp = Case(f"{case.name}, udp", [*case.words, "--protocol", "udp"])
            jobs[udp.name] = lambda one=udp: _share_of_flights(place, one, slice_ms, True, said)
        elif case.name.endswith("no filter"):
            jobs[case.name] = lambda one=case: _share_of_flights(place, one, slice_ms, False, said)
    if can_drop(place):
        for case in DROPS[1:]:
            for name, match in DROPPED.items():
                jobs[f"{case.name}, {name} dropped"] = lambda one=case, rule=match: _share_of_drops(
                    place, one, slice_ms, rule, said
                )
    report = Report("impact-share", rounds)
    for name, samples in in_turn(jobs, rounds).items():
        report.add(name, samples)
    report.notes += [
        "missed: sent, by the counters of devices, relay and traffic, and not seen by the command",
        "lost, skipped: packets, and runs of programs, that the command says it lost",
        "unlike: packets that arrived by the oracle and not by the command",
        "unlisted: events sampled out, off, above the budget or without room, all counted; "
        "unaccounted: neither shown nor unlisted",
        *sorted(set(said)),
    ]
    report.write()


#: Events that were counted and not shown; programs that did not run. Other causes: packets.
_UNLISTED = ("ring_full", "perf_lost", "governor_dropped", "user_dropped")
_SKIPPED = ("prog_missed",)


def _losses(summary: dict) -> Dict[str, float]:
    """What the command says it lost."""
    lost, events = summary["lost"], summary.get("events") or {}
    unlisted = sum(lost.get(cause, 0) for cause in _UNLISTED)
    return {
        "lost": sum(lost.values()) - sum(lost.get(one, 0) for one in (*_UNLISTED, *_SKIPPED)),
        "skipped": sum(lost.get(cause, 0) for cause in _SKIPPED),
        "unlisted": unlisted + events.get("sampled_out", 0) + events.get("switched_off", 0),
    }


def _governed(case: str, command: Command) -> List[str]:
    """What its governor said, if it had to act."""
    words = ("from now on", "stopped", "refused")
    return [
        f"{case}: {line}" for line in command.said.splitlines() if any(w in line for w in words)
    ]


def _share_of_flights(place: Site, case: Case, slice_ms: int, few: bool, said: List[str]) -> Sample:
    with Command(place.topo.h, case.words, case.ready) as command:
        before, cpu, begun = place.oracle(), command.cpu_s(), time.monotonic()
        expected = everything(place, slice_ms)
        after, passed = place.oracle(), time.monotonic() - begun
        cpu_pct = 100 * (command.cpu_s() - cpu) / passed
        time.sleep(1.3)  # what did not arrive is swept
        records = command.stop()
    said += _governed(case.name, command)
    moved = {name: after[name] - before[name] for name in after}
    sample: Dict[str, float] = {"cpu_pct": cpu_pct}
    for one in records:
        if one["type"] != "ends" or one["agg"] != "total":
            continue
        to_vm = one["direction"] == "tx"
        way = "to_vm" if to_vm else "from_vm"
        sent = expected[way] if few else moved["arrived" if to_vm else "sent"]
        sample[f"{way}_sent"] = sent
        sample[f"{way}_missed"] = sent - one["started"]
        if not few:
            sample[f"{way}_unlike"] = moved["copied" if to_vm else "left"] - one["completed"]
    summary = records[-1]
    sample.update(_losses(summary))
    if "events" in summary:
        shown = sum(one["type"] == "packet" for one in records)
        sample["unaccounted"] = summary["events"]["wanted"] - sample["unlisted"] - shown
    return sample


def _share_of_drops(place: Site, case: Case, slice_ms: int, match: str, said: List[str]) -> Sample:
    words = [*case.words, "--netns", place.topo.h.name, "--protocol", "udp"]
    rule = NftDrop(place.topo.h, 1, "bridge-forward", match)
    try:
        with Command(place.topo.h, words, case.ready) as command:
            before, cpu, begun = place.oracle(), command.cpu_s(), time.monotonic()
            for _ in range(4):
                place.flood(True, slice_ms)
                place.flood(False, slice_ms)
            after, passed = place.oracle(), time.monotonic() - begun
            cpu_pct = 100 * (command.cpu_s() - cpu) / passed
            time.sleep(0.3)
            summary = command.stop()[-1]
    finally:
        rule.remove()
    said += _governed(case.name, command)
    # Everything that arrived and did not go on, by the rule or in the ring of the tap.
    moved = {name: after[name] - before[name] for name in after}
    sent = moved["arrived"] - moved["copied"] + moved["sent"] - moved["left"]
    seen, losses = summary["counts"]["matched"], _losses(summary)
    return {
        "cpu_pct": cpu_pct, "sent": sent, "missed": sent - seen, **losses,
        "unaccounted": seen - losses["unlisted"] - summary["counts"]["shown"],
        "drops_per_s": sent / passed,
    }  # fmt: skip


# -- profile -------------------------------------------------------------------------------------


def _by_program(pid: int) -> Dict[str, List[int]]:
    """Run time in ns and runs of the programs of a process, by name."""
    names = bpfsys.bpf_snapshot().progs
    mine = sorted(bpfsys.objects_of(pid).progs)
    return {names[one]: list(bpfsys.program_runs([one])) for one in mine if one in names}


def profile(place: Site, rounds: int, slice_ms: int) -> None:
    """Runs of each program per packet and nanoseconds per run, by the kernel's statistics.

    What the statistics themselves take, two reads of a clock, is in the run time.
    """
    loads: Dict[str, Callable[[], int]] = {
        "tcp transactions": lambda: place.transactions("tcp", slice_ms)["count"],
        "packets to the VM": lambda: place.flood(True, slice_ms)["count"],
        "packets from the VM": lambda: place.flood(False, slice_ms)["count"],
    }
    report = Report("impact-profile", rounds)
    for case in LATENCY:
        if not case.name.endswith(("no filter", "filter: nothing")):
            continue
        found: Dict[str, Dict[str, List[List[float]]]] = {}
        with Command(place.topo.h, case.words, case.ready) as command, bpfsys.run_statistics():
            for _ in range(rounds):
                for name, load in loads.items():
                    before = _by_program(command.pid)
                    count = load()
                    after = _by_program(command.pid)
                    for prog, (ns, runs) in after.items():
                        ns, runs = ns - before[prog][0], runs - before[prog][1]
                        if runs > count / 100:
                            found.setdefault(name, {}).setdefault(prog, []).append(
                                [ns / runs, runs / count, ns / count]
                            )
        for name, progs in found.items():
            for prog, values in sorted(progs.items()):
                samples = [dict(zip(("run_ns", "runs_each", "ns_each"), one)) for one in values]
                report.add(f"{case.name}: {name}: {prog}", samples)
            totals = [sum(v[i][2] for v in progs.values() if i < len(v)) for i in range(rounds)]
            report.add(f"{case.name}: {name}: all", [{"ns_each": one} for one in totals])
    report.notes.append("ns_each: per transaction or packet, on all three sides of the lab")
    report.write()


# -- command line --------------------------------------------------------------------------------


def of_reference(checkout: Path, headers: str) -> List[Case]:
    """The tools of the reference: the drop monitor matches nothing, the latency summary all."""
    found = reference.tools(checkout, reference.headers(headers), watch=("--direction", "rx"))
    return [Case(one.name, one.command, one.ready, one.env) for one in found.values()]


def in_guest(args: argparse.Namespace) -> int:
    """The same in a guest; its reports are kept under names with that of the kernel."""
    for name in ("impact_relay", "impact_traffic"):
        program(name)
    command = [
        "env", f"NTOOLS_BENCH_OUT={guest.OUT}", sys.executable, str(Path(__file__).resolve()),
        "--inside", args.kernel, "--rounds", str(args.rounds), "--parts", args.parts,
        "--slice-ms", str(args.slice_ms), "--only", args.only,
    ]  # fmt: skip
    if args.reference:
        reference.headers(args.kernel)
        command += ["--reference", str(args.reference.resolve())]
    with guest.guest(args.kernel, command, args.timeout) as (out, status):
        left = sorted(out.glob("impact-*.json"))
        for path in left:
            found = json.loads(path.read_text())
            found["name"] += f"-{args.kernel}"
            REPORTS.mkdir(parents=True, exist_ok=True)
            (REPORTS / f"{found['name']}.json").write_text(json.dumps(found, indent=1) + "\n")
    if not left:
        print(f"impact: the guest left nothing (status {status})", file=sys.stderr)
    return 0 if left else 1


TIMED = {"rr": rr_load, "stream": stream_load, "pps": pps_load, "drops": drop_load}
PARTS = (*TIMED, "share", "profile")


def main() -> int:
    """Measures and prints; no figure makes it fail."""
    parser = options(__doc__.splitlines()[0], rounds=7)
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--slice-ms", type=int, default=700, help="of one load (default 700)")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases beside 'no tool'")
    parser.add_argument("--cpus", default="0,1", help="senders, relay (default 0,1)")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=COMMAND",
                        help="one more case, run in the namespace of the host")  # fmt: skip
    parser.add_argument("--reference", type=Path, metavar="DIR",
                        help="checkout of the reference tool set")  # fmt: skip
    parser.add_argument("--kernel", metavar="NAME", help="in a guest with this kernel")
    parser.add_argument("--timeout", type=float, default=3600, metavar="S", help="of the guest")
    parser.add_argument("--inside", metavar="NAME", help="for the guest's own side")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error("parts are " + ", ".join(PARTS))
    also = [Case(name, shlex.split(words), "")
            for name, _, words in (one.partition("=") for one in args.also)]  # fmt: skip
    if args.kernel:
        return in_guest(args)
    if args.reference and reference.has_kprobes():
        also += of_reference(args.reference, args.inside or reference.ANY_HEADERS)
    witness = WITNESS if shutil.which("tcpdump") else ()
    if not witness:
        print("impact: no tcpdump: left out", file=sys.stderr)

    with site([int(one) for one in args.cpus.split(",")]) as place:
        everything(place, 50)
        for part in parts:
            if part == "share":
                share(place, args.rounds, args.slice_ms)
            elif part == "profile":
                profile(place, args.rounds, args.slice_ms)
            elif part != "drops" or can_drop(place):
                candidates = DROPS if part == "drops" else (*DROPS, *LATENCY, *witness)
                cases = [one for one in (*candidates, *also) if re.search(args.only, one.name)]
                timed(place, part, [Case(NOISE), *cases], args.rounds, args.slice_ms)
    return 0


if __name__ == "__main__":
    sys.exit(main())
