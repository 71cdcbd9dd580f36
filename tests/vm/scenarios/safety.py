# SPDX-License-Identifier: GPL-2.0-only
"""What keeps a run from costing more than it may: refusals, budget, heartbeat, governor."""

from __future__ import annotations

import re
import signal
import tempfile
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from lab.bpfsys import BpfObjects, objects_of, program_runs, run_statistics
from lab.drops import accounted, watch
from lab.expect import all_of, at_least, at_most, between, contains, equal, same_sum
from lab.latency import check_records, ends, follow, hists
from lab.netns import Namespace
from lab.scenario import scenario
from lab.tool import Result, Tool, bpf_leftovers, bpf_snapshot
from lab.topo import E_IP, HOST_IP, VM2_IP, VM_IP, Topo, bridge_topo
from lab.traffic import udp

_LO = "127.0.0.1"
_PORT = 7777
_FLOW = ("--direction", "rx", "--src-ip", VM_IP, "--dst-ip", E_IP)
_NOTHING = {"progs": 0, "maps": 0, "links": 0}


@contextmanager
def _flood(topo: Topo, dst: str, gap_us: int) -> Iterator[None]:
    """The machine sends in the background.

    No program may be attached or detached meanwhile: that patches code which packets run through,
    and two emulated CPUs have died of it.
    """
    topo.vm.send_udp(dst, _PORT, 100_000_000, gap_us=gap_us, wait_s=0)
    yield
    topo.vm.hush()
    time.sleep(0.3)


def _attached(tool: Tool) -> None:
    """Waits until the command has attached all its programs."""
    deadline = time.monotonic() + 60
    count, since = 0, time.monotonic()
    while time.monotonic() < deadline:
        now = len(objects_of(tool.pid).links)
        if now != count:
            count, since = now, time.monotonic()
        if count and time.monotonic() - since > 1:
            return
        time.sleep(0.05)
    raise AssertionError(f"{count} programs attached after a minute")


def _actions(records: Sequence[Dict[str, Any]]) -> List[Tuple[str, str, Optional[int]]]:
    return [
        (rec["action"], rec["cause"], rec.get("sample"))
        for rec in records
        if rec["type"] == "governor"
    ]


def _refused(result: Result, *parts: str) -> None:
    """Exit 5, one line with these parts behind what the admission test said, no record."""
    equal(result.status, 5, "exit status", result.stderr)
    equal(result.stdout, "", "stdout")
    last = result.stderr.splitlines()[-1]
    contains(last, "refused: ")
    for part in parts:
        contains(last, part)


def _until_sampled(tool: Tool) -> None:
    """Until the governor has sampled three times, and a second more."""
    tool.wait_for(lambda recs: sum(row[0] == "sample" for row in _actions(recs)) == 3, 60)
    time.sleep(1)


def _most_in_a_second(times_ns: Sequence[int]) -> int:
    ordered, first, most = sorted(times_ns), 0, 0
    for place, at in enumerate(ordered):
        while at - ordered[first] >= 10**9:
            first += 1
        most = max(most, place - first + 1)
    return most


@scenario(requires=("tun", "bridge"), timeout_s=150)
def refused_with_the_measured_rate(lab: Any) -> None:
    """Too many matches: exit 5 with rate, limit and flow; nothing stays in the kernel."""
    admit_s = 8.0
    limit = ("--max-events", "100", "--admit-s", str(admit_s))
    for dst in (E_IP, HOST_IP):
        with bridge_topo(static_neigh=True) as topo:
            before = bpf_snapshot()
            if dst == E_IP:
                command = follow(topo, "--details", *_FLOW, *limit, ready=False)
            else:
                command = watch(topo.h, *limit, ready=False)
            begun = topo.link("vnet0")["rx_packets"]
            with command as tool:
                _attached(tool)
                with _flood(topo, dst, 100):
                    time.sleep(2)
                result = tool.wait()
            sent = topo.link("vnet0")["rx_packets"] - begun
        lab.log(result.stderr, f"sent {sent}")
        _refused(result, "100/s (--max-events)", "--force", f"--dst-ip {dst}")
        told = re.search(r"refused: (\d+) events/s", result.stderr)
        assert told, result.stderr
        # Counted in a part of that time: never more than all that was sent while it ran.
        between(int(told.group(1)) * admit_s, 100 * admit_s, sent, "packets counted")
        contains(result.stderr, "hook runs/s")
        equal(bpf_leftovers(before, settle_s=20).counts(), _NOTHING, "left behind")


@scenario(requires=("tun", "bridge"), timeout_s=150)
def budget_of_packets(lab: Any) -> None:
    """A flood, forced: never more than the budget and a burst in a second, all accounted for."""
    with bridge_topo(static_neigh=True) as topo:
        with follow(
            topo, "--details", "--force", *_FLOW, "--max-events", "100", "--timeout-ms", "100"
        ) as tool:
            with _flood(topo, E_IP, 300):
                _until_sampled(tool)
            result = tool.stop()
    check_records(result)
    rec = ends(result, "rx")
    packets = result.of_type("packet")
    events, lost = result.summary["events"], result.summary["lost"]
    lab.log(rec, events, lost, _actions(result.records))
    same_sum(
        rec["started"],
        "packets followed",
        shown=len(packets),
        governor_dropped=lost["governor_dropped"],
        sampled_out=events["sampled_out"],
        switched_off=events["switched_off"],
        ring_full=lost.get("ring_full", 0) + lost.get("perf_lost", 0),
    )
    equal(events["wanted"], rec["started"], "packets that wanted a record")
    total = [one for one in hists(result, "rx") if one["labels"]["to"] == "total"]
    equal(sum(one["count"] for one in total), rec["completed"], "histograms have all")
    most = _most_in_a_second([one["ts_ns"] + one["total_ns"] for one in packets])
    at_most(most, 200, "packets in a second: the budget and a burst")
    at_least(len(packets), 100, "packets shown")
    sampled = [row for row in _actions(result.records) if row[0] == "sample"]
    equal(sampled[0], ("sample", "max_events", 2), "first step", sampled)
    for one in packets:
        equal(
            (one["stages"][0]["stage"], one["stages"][-1]["stage"]),
            ("dev.rx", "dev.xmit"),
            "a chosen packet has all stages",
            one,
        )
    equal((result.header["forced"], result.summary["forced"]), (True, True), "noted")
    equal(result.status, 0, "exit status", result.stderr)


@scenario(requires=("tun", "bridge"), timeout_s=150)
def budget_of_drops(lab: Any) -> None:
    with bridge_topo(static_neigh=True) as topo:
        with watch(topo.h, "--force", "--dst-port", str(_PORT), "--max-events", "100") as tool:
            with _flood(topo, HOST_IP, 300):
                _until_sampled(tool)
            result = tool.stop()
    check_records(result)
    counts = accounted(result)
    found = result.of_type("drop")
    lab.log(counts, result.summary["events"], result.summary["lost"], _actions(result.records))
    equal(result.summary["events"]["wanted"], counts["matched"], "drops that wanted a record")
    at_least(result.summary["lost"]["governor_dropped"], 1, "cut")
    at_most(_most_in_a_second([rec["ts_ns"] for rec in found]), 200, "drops in a second")
    at_least(len(found), 100, "drops shown")
    sampled = [row for row in _actions(result.records) if row[0] == "sample"]
    equal(sampled[0], ("sample", "max_events", 2), "first step", sampled)


@scenario(requires=("tun", "bridge"), timeout_s=300)
def stopped_and_continued(lab: Any) -> None:
    """SIGSTOP under load: after 10 s the programs sleep; after SIGCONT they go on; it adds up."""
    with bridge_topo(vms=2, static_neigh=True) as topo:
        tools: Dict[str, Tool] = {}
        programs: Dict[str, List[int]] = {}
        options = ("--vm-interface", "vnet0,vnet1", "--details", "--force", "--timeout-ms", "60000")
        with follow(topo, *options, "--max-events", "50") as one:
            programs["flight"] = list(objects_of(one.pid).progs)
            with watch(topo.h, "--force", "--dst-port", str(_PORT), "--max-events", "50") as two:
                programs["drop"] = list(objects_of(two.pid).progs)
                tools.update(flight=one, drop=two)
                topo.vms[1].stall()
                topo.udp(VM2_IP, count=20, wait_s=0)  # on their way into the machine
                with _flood(topo, HOST_IP, 300):
                    figures = _sleep_and_wake(tools, programs)
                    for tool in tools.values():
                        tool.wait_for(lambda recs: ("gap", "heartbeat", None) in _actions(recs), 60)
                    time.sleep(3)
                results = {name: tool.stop() for name, tool in tools.items()}
    for name, result in results.items():
        lab.log(name, figures[name], _actions(result.records), result.summary)
        check_records(result)
        gap = [rec for rec in result.of_type("governor") if rec["action"] == "gap"]
        equal(len(gap), 1, f"{name}: gaps")
        between(gap[0]["gap_ns"], 12e9, 40e9, f"{name}: gap")
        contains(result.stderr, "stopped for")
        at_least(result.summary["asleep_ns"], 1, f"{name}: slept")
        awake, asleep, slept, woken = figures[name]
        at_least(asleep[1], 10, f"{name}: runs while asleep")
        at_most(asleep[0], awake[0] / 2, f"{name}: ns per run asleep, half of awake")
        kind = {"flight": "packet", "drop": "drop"}[name]
        times = [rec["ts_ns"] for rec in result.of_type(kind)]
        equal([at for at in times if slept < at < woken], [], f"{name}: records while asleep")
        at_least(sum(at < slept for at in times), 1, f"{name}: records before")
        at_least(sum(at > woken for at in times), 1, f"{name}: records after")
    ends(results["flight"], "rx")
    unseen = [
        row["count"]
        for row in ends(results["flight"], "tx")["by"]
        if (row["end"], row["interface"]) == ("lost_track", "vnet1")
    ]
    equal(unseen, [20], "under way meanwhile")
    equal(results["flight"].summary["invariant"]["holds"], True, "invariant")
    accounted(results["drop"])


Figures = Tuple[Tuple[float, int], Tuple[float, int], int, int]


def _sleep_and_wake(tools: Dict[str, Tool], programs: Dict[str, List[int]]) -> Dict[str, Figures]:
    """Per tool: (ns per run, runs) awake and asleep, and between which times it slept."""
    with run_statistics():
        awake = _window(programs)
        for tool in tools.values():
            tool.send_signal(signal.SIGSTOP)
        stopped = time.monotonic_ns()
        time.sleep(11)
        asleep = _window(programs)
        woken = time.monotonic_ns()
        for tool in tools.values():
            tool.send_signal(signal.SIGCONT)
    slept = stopped + int(10.5e9)
    return {name: (awake[name], asleep[name], slept, woken) for name in tools}


def _window(programs: Dict[str, List[int]]) -> Dict[str, Tuple[float, int]]:
    before = {name: program_runs(ids) for name, ids in programs.items()}
    time.sleep(2)
    found = {}
    for name, ids in programs.items():
        ns, runs = (new - old for new, old in zip(program_runs(ids), before[name]))
        found[name] = (ns / max(runs, 1), runs)
    return found


@scenario()
def killed(lab: Any) -> None:
    """SIGKILL: no program, link or map is left, and the next run may begin at once."""
    with Namespace("h") as ns, tempfile.TemporaryDirectory() as locks:
        for mode in ((), ("--mode", "summary")):
            with watch(ns, *mode, env={"NTOOLS_RUN_DIR": locks}) as tool:
                udp(ns, _LO, _PORT, 5, wait_s=0.2)
                had = objects_of(tool.pid)
                at_least(len(had.progs), 1, "programs running")
                at_least(len(had.maps), 10, "maps")
                tool.kill()
            equal(_still_there(had), _NOTHING, f"left behind {mode}")
        with watch(ns, env={"NTOOLS_RUN_DIR": locks}) as tool:
            equal(tool.stop().status, 0, "exit status of the next run")


def _still_there(had: BpfObjects) -> Dict[str, int]:
    """How many of these the kernel has not freed, after some time to do it."""
    deadline = time.monotonic() + 20
    while True:
        now = bpf_snapshot()
        left = {kind: len(set(getattr(had, kind)) & set(getattr(now, kind))) for kind in _NOTHING}
        if left == _NOTHING or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


@scenario(requires=("tun", "bridge"))
def one_at_a_time(lab: Any) -> None:
    """The second run with events of an engine is refused; a summary or another engine is not."""
    with bridge_topo(static_neigh=True) as topo, tempfile.TemporaryDirectory() as locks:
        env = {"NTOOLS_RUN_DIR": locks}
        port = ("--dst-port", str(_PORT))
        with watch(topo.h, *port, env=env) as first:
            first.wait_for(lambda recs: [rec["overhead_class"] for rec in recs[:1]] == ["variable"])
            with watch(topo.h, *port, env=env, ready=False) as second:
                _refused(second.wait(), f"process {first.pid} (ntools-drop)", "--force")
            with (
                watch(topo.h, *port, "--mode", "summary", env=env) as table,
                watch(topo.h, *port, "--force", env=env) as forced,
                follow(topo, "--details", *_FLOW, env=env) as other,
            ):
                topo.udp(HOST_IP, _PORT, 7)
                results = [tool.stop() for tool in (table, forced, first)]
                equal(other.stop().status, 0, "other engine")
        for result in results:
            equal(result.status, 0, "exit status", result.stderr)
            equal(accounted(result)["matched"], 7, "drops")
        with watch(topo.h, *port, env=env) as again:
            equal(again.stop().status, 0, "exit status after the end of the first")


@scenario(requires=("tun", "bridge"))
def refusals(lab: Any) -> None:
    """Everybody's packets one by one, and maps larger than the host can bear."""
    cases = (
        (("--details",), 5, "--latency-ms"),
        (("--details", "--src-ip", VM_IP), 5, "--src-ip and --dst-ip"),
        (("--details", "--vm-ip", VM_IP), 5, "--force"),
        (("--max-flights", "50000000"), 5, "memory"),
        (("--details", "--dry-run"), 0, None),
        (("--details", "--latency-ms", "1", "--duration", "0.1"), 0, None),
        (("--details", "--vm-ip", VM_IP, "--dst-port", "53", "--duration", "0.1"), 0, None),
        (("--details", "--force", "--duration", "0.1"), 0, None),
    )
    with bridge_topo(static_neigh=True) as topo:
        for args, status, text in cases:
            before = bpf_snapshot()
            with Tool(
                topo.h, "ntools-vm-latency", ["--vm-interface", "vnet0", *args], ready=False
            ) as tool:
                result = tool.wait()
            equal(result.status, status, f"exit status of {args}", result.stderr)
            if text:
                _refused(result, text)
            equal(bpf_leftovers(before, settle_s=20).counts(), _NOTHING, f"left behind by {args}")


@scenario()
def stopped_by_the_governor(lab: Any) -> None:
    """A limit no process can keep: all steps in order, exit 6, the accounts still balance."""
    with Namespace("h") as ns:
        limits = ("--dst-port", str(_PORT), "--max-cpu", "0.001", "--duration", "60")
        with (
            watch(ns, *limits) as events,
            watch(ns, *limits, "--mode", "summary", "--strict") as table,
        ):
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                udp(ns, _LO, _PORT, 1, wait_s=0.1)
                time.sleep(0.05)
                if [rec["type"] for rec in events.records()[-1:]] == ["summary"]:
                    break
            results = events.wait(), table.wait()
    steps = [(action, sample) for action, _, sample in _actions(results[0].records)]
    expected = [("sample", 2), ("sample", 4), ("sample", 8), ("degrade", 8), ("stop", 8)]
    equal(steps, expected, "steps", results[0].stderr)
    equal([row[0] for row in _actions(results[1].records)], ["warn", "stop"], "steps of a table")
    for result in results:
        check_records(result)
        equal(result.status, 6, "exit status", result.stderr)
        equal(result.summary["end"], "governor", "end")
        contains(result.stderr, "stopped by the governor: own CPU time")
        all_of(result.of_type("governor"), "governor", cause="max_cpu", limit=0.001)
        accounted(result)
    at_least(results[0].summary["events"]["switched_off"], 1, "drops after events were off")


@scenario()
def chosen_by_identity(lab: Any) -> None:
    """--sample 1/4: two runs beside each other choose the same packets, and count all."""
    with Namespace("h") as ns:
        options = ("--dst-port", str(_PORT), "--sample", "1/4")
        with watch(ns, *options) as one, watch(ns, *options) as two:
            udp(ns, _LO, _PORT, 400, src_port=20000, new_port_each=True, wait_s=0.2)
            results = one.stop(), two.stop()
    chosen = []
    for result in results:
        check_records(result)
        counts = accounted(result)
        equal(counts["matched"], 400, "matched")
        between(counts["shown"], 50, 150, "shown: a quarter of the packets")
        equal(result.summary["lost"], {}, "sampling is no loss")
        equal(result.header["sample"], 4, "sample in the header")
        chosen.append({rec["src_port"] for rec in result.of_type("drop")})
    equal(chosen[0], chosen[1], "packets chosen")
