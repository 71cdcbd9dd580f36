#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The share of packets a command sees: sent = seen + lost by cause, at the highest rate there is.

What was sent is known from the sender and from counters of the kernel that have nothing to do with
the commands: an nft rule, the interfaces, the fake machine. The accounts are no timing: one that
does not add up is said loudly, and is the only thing that makes this program fail.

Then how many records a second each channel carries, as the command prints them and as they come
out of its pages, and the rate from which on events are lost; bpftrace does the same job beside it,
where it is installed. Needs root. Writes build/bench/share.json and build/bench/drain.json.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import Report, Sample, in_turn, options  # noqa: E402
from bench.flood import NO_BUDGET, Watched, ended, flood, start_flood, tracing  # noqa: E402
from lab.faults import NftDrop  # noqa: E402
from lab.netns import Namespace  # noqa: E402
from lab.topo import E_IP, E_MAC, HOST_IP, PHY_MAC, VM_IP, VM_MAC, Topo, bridge_topo  # noqa: E402

_BIN = Path(sys.executable).parent
_DROP, _LATENCY = str(_BIN / "ntools-drop"), str(_BIN / "ntools-vm-latency")
_PORT, _SINK = 9009, 9
_PERF = {"NTOOLS_REFUSE": "ringbuf"}
#: Causes that end a packet before it is counted as matched, and those that end an event after.
_UNSEEN = ("prog_missed", "map_full", "read_failed", "unparsed")
_UNSHOWN = ("ring_full", "perf_lost", "governor_dropped", "user_dropped")
_SETTLE_S = 0.3
#: Rates of the search for the first loss: half an octave apart.
_RATES = [round(1000 * 2 ** (step / 2)) for step in range(20)]


class Accounts:
    """Accounts of all runs; what does not add up is said at once and kept.

    :ivar wrong: lines that say which.
    """

    def __init__(self) -> None:
        self.checked = 0
        self.wrong: list[str] = []

    def check(self, case: str, what: str, expected: int, **parts: int) -> int:
        """Expected = sum of the parts; what is missing, or too much where negative."""
        self.checked += 1
        missing = expected - sum(parts.values())
        if missing:
            text = " + ".join(f"{value} {name}" for name, value in parts.items() if value)
            self.wrong.append(f"{case}: {what}: {expected} is not {text}: {missing} missing")
            print(f"!!! ACCOUNT WRONG: {self.wrong[-1]}", file=sys.stderr, flush=True)
        return missing

    def end(self, report: Report) -> None:
        """Say it in the report too."""
        report.notes.append(f"{self.checked} accounts checked, {len(self.wrong)} wrong")
        report.notes += [f"WRONG: {line}" for line in self.wrong]


def _causes(summary: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    found = {name: summary["lost"].get(name, 0) for name in names}
    return {name: count for name, count in found.items() if count}


def _gates(summary: Mapping[str, Any]) -> dict[str, int]:
    """Events that were not asked of the channel."""
    events = summary.get("events", {})
    return {name: events[name] for name in ("sampled_out", "switched_off") if events.get(name)}


def _cost(tool: Watched, summary: Mapping[str, Any], before: float) -> float:
    """CPU seconds of a command since a :meth:`Watched.cpu_s`, by its own last account."""
    return max(summary["cost"]["user_cpu_ns"] / 1e9 - before, 1e-6)


# -- drops -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _dropping(ns: Namespace, hook: str = "ingress:phy0") -> Iterator[NftDrop]:
    rule = NftDrop(ns, 1, hook, f"udp dport {_PORT}")
    try:
        yield rule
    finally:
        rule.remove()


def drops(
    topo: Topo, accounts: Accounts, case: str, args: Sequence[str], env: Mapping[str, str] = {},
    crossed: bool = False, **how: Any,
) -> Sample:  # fmt: skip
    """One run of ntools-drop while an nft rule drops and counts what is sent.

    :param crossed: the host itself sends, too, from the CPU that is interrupted by the packets of
        the wire: programs meet themselves.
    """
    command = [_DROP, "--netns", topo.h.name, "--dst-port", str(_PORT), "--format", "json"]
    with contextlib.ExitStack() as stack:
        rules = [stack.enter_context(_dropping(topo.h))]
        if crossed:
            rules.append(stack.enter_context(_dropping(topo.h, "output")))
            stack.enter_context(_steered(topo.h, "phy0"))
        full = topo.link("phy0")["rx_dropped"]
        place = None if crossed else 1
        tool = Watched(topo.h, [*command, *NO_BUDGET, *args], place, env)
        stack.enter_context(tool)
        before = tool.cpu_s()
        other = _own_traffic(topo.h, how["seconds"]) if crossed else None
        sent = flood(topo.e, "wire0", E_MAC, PHY_MAC, HOST_IP, _PORT, **how)
        during = tool.cpu_s() - before
        own = ended(other)["sent"] if other else 0
        time.sleep(_SETTLE_S)
        by_nft = sum(rule.counter() for rule in rules)
        full = topo.link("phy0")["rx_dropped"] - full
        tool.stop()
        summary, rows = tool.records("summary")[0], tool.records("drop_group")
        printed = tool.count('{"type":"drop",')
    counts, unseen = summary["counts"], _causes(summary, _UNSEEN)
    packets = int(sent["sent"] + own)
    missing = accounts.check(case, "sent", packets, dropped_by_nft=by_nft, queue_full=full)
    missing += accounts.check(case, "sent", packets, matched=counts["matched"], **unseen)
    figures = {"rate_per_s": packets / sent["seconds"]}
    if rows:
        seen = sum(row["drop_packets"] for row in rows if row["agg"] == "total")
        unshown = _causes(summary, ["group_full"])
    else:
        seen = printed
        unshown = {**_causes(summary, _UNSHOWN), **_gates(summary)}
        figures["drain_per_s"] = seen / _cost(tool, summary, before)
    missing += accounts.check(case, "matched", counts["matched"], seen=seen, **unshown)
    lost = sum(unseen.values()) + sum(unshown.values())
    figures.update(sent=packets, seen=seen, lost=lost, missing=missing)
    figures["user_cpu_pct"] = 100 * during / sent["seconds"]
    return figures


def _own_traffic(ns: Namespace, seconds: float) -> Any:
    """The host sends the same flow through its own stack, on CPU 1."""
    return start_flood(ns, "-", E_MAC, PHY_MAC, E_IP, _PORT, seconds=seconds, cpu=1)


@contextlib.contextmanager
def _steered(ns: Namespace, dev: str) -> Iterator[None]:
    """Packets of a device are handled on CPU 1, which they interrupt, where the kernel can."""
    path = f"/sys/class/net/{dev}/queues/rx-0/rps_cpus"
    for mask in ("2", "0"):
        ns.popen(["sh", "-c", f"echo {mask} > {path}"], own_sys=True).wait()
        if mask == "2":
            yield


# -- latency ---------------------------------------------------------------------------------------


def latency(
    topo: Topo, accounts: Accounts, case: str, args: Sequence[str], env: Mapping[str, str] = {},
    **how: Any,
) -> Sample:  # fmt: skip
    """One run of ntools-vm-latency while datagrams go through the bridge to the fake machine."""
    command = [_LATENCY, "--vm-interface", "vnet0", "--direction", "tx", "--format", "json",
               "--dst-port", str(_SINK)]  # fmt: skip
    vm, link = topo.vm.counters()["udp_sunk"], topo.link("vnet0")
    with Watched(topo.h, [*command, *NO_BUDGET, *args], env=env) as tool:
        before = tool.cpu_s()
        received = topo.link("phy0")["rx_packets"]
        sent = flood(topo.e, "wire0", E_MAC, VM_MAC, VM_IP, _SINK, **how)
        during = tool.cpu_s() - before
        time.sleep(_SETTLE_S)
        received = topo.link("phy0")["rx_packets"] - received
        vm = topo.vm.counters()["udp_sunk"] - vm
        dropped = topo.link("vnet0")["tx_dropped"] - link["tx_dropped"]
        tool.stop()
        summary, ends = tool.records("summary")[0], tool.records("ends")
        printed = tool.count('{"type":"packet",')
    packets = int(sent["sent"])
    total = next(one for one in ends if one["agg"] == "total")
    unseen = _causes(summary, _UNSEEN)
    missing = accounts.check(case, "sent", packets, phy0=received)
    missing += accounts.check(case, "sent, by its end", packets, vm=vm, tap_dropped=dropped)
    missing += accounts.check(case, "sent", packets, started=total["started"], **unseen)
    figures: dict[str, float] = {"rate_per_s": packets / sent["seconds"]}
    ways = {
        name: total[name]
        for name in ("dropped", "elsewhere", "timed_out", "stale", "lost_track", "merged", "open")
    }
    seen, unshown = total["completed"] + sum(ways.values()), {}
    if "--details" in args:
        seen = printed
        unshown = {**_causes(summary, (*_UNSHOWN, "group_full")), **_gates(summary)}
        figures["drain_per_s"] = seen / _cost(tool, summary, before)
    missing += accounts.check(case, "started", total["started"], seen=seen, **unshown)
    if not unseen:
        missing += accounts.check(case, "taken by the VM", vm, completed=total["completed"])
        missing += accounts.check(case, "dropped at the tap", dropped,
                                  **{name: n for name, n in ways.items() if n})  # fmt: skip
    lost = sum(unseen.values()) + sum(unshown.values())
    figures.update(sent=packets, seen=seen, lost=lost, missing=missing, completed=vm)
    figures["user_cpu_pct"] = 100 * during / sent["seconds"]
    return figures


# -- bpftrace --------------------------------------------------------------------------------------

_HEAD = """
tracepoint:skb:kfree_skb {
  $skb = (struct sk_buff *)args->skbaddr;
  $ip = (struct iphdr *)($skb->head + $skb->network_header);
  $udp = (struct udphdr *)($skb->head + $skb->network_header + 20);
  if (args->protocol == 0x800 && $ip->protocol == 17 && $udp->dest == %d) {
""" % ((_PORT & 0xFF) << 8 | _PORT >> 8)  # fmt: skip
_TAIL = '}\n}\nBEGIN { printf("ready\\n"); }\n'
_COUNT = _HEAD + "@seen[args->reason, args->location, $skb->dev->ifindex] = count();" + _TAIL
_EVENT = (
    _HEAD + 'printf("drop %llu %d %s %s %s:%d > %s:%d %d{}\\n", nsecs, args->reason, '
    "ksym(args->location), $skb->dev->name, ntop($ip->saddr), $udp->source, ntop($ip->daddr), "
    "$udp->dest, $skb->len{});" + _TAIL
)
PROGRAMS = {
    "summary": _COUNT,
    "events": _EVENT.replace("{}", "", 1).replace("{}", "", 1),
    "events with stack": _EVENT.replace("{}", " %s", 1).replace("{}", ", kstack(32)", 1),
}


def bpftrace(topo: Topo, program: str, **how: Any) -> Sample:
    """The same job by bpftrace: its own count of what it saw and lost."""
    command = [*tracing(), "bpftrace", "-e", program]
    with _dropping(topo.h) as rule:
        with Watched(topo.h, command, ready="ready", ready_on_stdout=True) as tool:
            before = tool.cpu_s()
            sent = flood(topo.e, "wire0", E_MAC, PHY_MAC, HOST_IP, _PORT, **how)
            during = tool.cpu_s() - before
            time.sleep(_SETTLE_S)
            dropped = rule.counter()
            last = _drained(tool)
            tool.stop()
            text = tool.out.read_text(errors="replace") + tool.err.read_text(errors="replace")
    lost = sum(map(int, re.findall(r"^Lost (\d+) events", text, re.M)))
    figures = {"rate_per_s": sent["sent"] / sent["seconds"]}
    if program == _COUNT:
        seen = sum(map(int, re.findall(r"^@seen\[.*\]: (\d+)$", text, re.M)))
    else:
        seen = len(re.findall(r"^drop ", text, re.M))
        figures["drain_per_s"] = seen / max(last - before, 1e-6)
    figures.update(sent=dropped, seen=seen, lost=lost, missing=dropped - seen - lost)
    figures["user_cpu_pct"] = 100 * during / sent["seconds"]
    return figures


def _drained(tool: Watched) -> float:
    """CPU time of a command that goes on printing, when it has nothing more to do."""
    before, deadline = -1.0, time.monotonic() + 30
    while time.monotonic() < deadline:
        now = tool.cpu_s()
        if now - before < 0.005:
            break
        before = now
        time.sleep(0.2)
    return tool.cpu_s()


def bpftrace_works() -> str:
    """Why bpftrace is not measured, "" if it is."""
    if not shutil.which("bpftrace"):
        return "bpftrace is not installed: no row"
    try:
        with Watched(None, [*tracing(), "bpftrace", "-e", _COUNT], ready="ready",
                     ready_on_stdout=True):  # fmt: skip
            return ""
    except RuntimeError as problem:
        return f"bpftrace cannot do this here: {str(problem)[-200:]}"


# -- the channel -----------------------------------------------------------------------------------


def pages(topo: Topo, refuse: Sequence[str], decode: bool) -> Sample:
    """A full channel, emptied at once without making records: what the pages can carry."""
    from ntools._loader import BpfObject
    from ntools.engine.drop import DropEngine, DropOptions

    with BpfObject("drop", refuse=frozenset(refuse)) as obj:
        obj.need("free_drop")
        options_ = DropOptions(netns=topo.h.inode, stacks=True)
        if not refuse:
            obj.resize("events", 32 << 20)
        engine = DropEngine(obj, options_)
        obj.start()
        channel = engine.channel()
        obj.configure(guard__heartbeat_ns=time.monotonic_ns())
        engine.begin()
        with _dropping(topo.h):
            flood(topo.e, "wire0", E_MAC, PHY_MAC, HOST_IP, _PORT, count=50000)
        begun = time.process_time()
        if decode:
            count = sum(1 for _ in channel.read())
        else:
            count = sum(len(batch) // channel.stride for batch in channel.batches())
        spent = time.process_time() - begun
    return {"records": count, "drain_per_s": count / spent, "us": 1e6 * spent / count}


# -- where loss starts -----------------------------------------------------------------------------


class FirstLoss:
    """The highest rate without loss, found by halving; the next search begins where one ended.

    :param run: one run at a rate.
    """

    def __init__(self, run: Callable[..., Sample], seconds: float) -> None:
        self._run, self._seconds = run, seconds
        self._at: int | None = None

    def __call__(self) -> Sample:
        low, high = -1, len(_RATES)
        while high - low > 1:
            at = (low + high) // 2 if self._at is None else self._at
            if low < at < high:
                clean = not self._run(rate=float(_RATES[at]), seconds=self._seconds)["lost"]
                low, high = (at, high) if clean else (low, at)
            self._at = low + 1 if self._at == low else (low if self._at == high else None)
        self._at = max(low, 0)
        return {"no_loss_per_s": float(_RATES[low]) if low >= 0 else 0.0}


# -- all of it -------------------------------------------------------------------------------------


def share(topo: Topo, rounds: int, seconds: float) -> int:
    """Accounts at full rate; how many were wrong."""
    accounts, report = Accounts(), Report("share", rounds)
    summary, event = ["--mode", "summary"], ["--mode", "event"]
    details = ["--details"]

    def of(kind: Callable[..., Sample], name: str, *rest: Any, **how: Any) -> None:
        how = {"seconds": seconds, **how}
        cases[name] = functools.partial(kind, topo, accounts, name, *rest, **how)

    cases: dict[str, Callable[[], Sample]] = {}
    of(drops, "drop, summary", summary)
    of(drops, "drop, summary, 10000 flows", ["--group-by", "fivetuple"], flows=10000)
    of(drops, "drop, summary, 20000 flows, rows full", ["--group-by", "fivetuple"], flows=20000)
    of(drops, "drop, summary, programs meet", summary, crossed=True)
    of(drops, "drop, events", event)
    of(drops, "drop, events, perf", event, _PERF)
    of(latency, "vm-latency, summary", [])
    of(latency, "vm-latency, summary, 20000/s", [], rate=20000.0)
    of(latency, "vm-latency, details", [*details])
    of(latency, "vm-latency, details, perf", [*details], _PERF)
    problem = bpftrace_works()
    if problem:
        report.notes.append(problem)
    else:
        for name in ("summary", "events"):
            cases["bpftrace, " + name] = functools.partial(
                bpftrace, topo, PROGRAMS[name], seconds=seconds
            )
    _no_tool(topo, report, seconds)
    for name, samples in in_turn(cases, rounds).items():
        report.add(name, samples)
    report.notes.append(
        "programs meet: drops of the host's own sender are interrupted by drops of the wire; what "
        "the kernel skips for recursion is lost as prog_missed"
    )
    accounts.end(report)
    print(report.write())
    return len(accounts.wrong)


def _no_tool(topo: Topo, report: Report, seconds: float) -> None:
    """What the sender reaches alone."""
    with _dropping(topo.h):
        alone = [flood(topo.e, "wire0", E_MAC, PHY_MAC, HOST_IP, _PORT, seconds=seconds)
                 for _ in range(3)]  # fmt: skip
    report.add("no tool, dropped by nft", [{"rate_per_s": one["rate_per_s"]} for one in alone])
    alone = [flood(topo.e, "wire0", E_MAC, VM_MAC, VM_IP, _SINK, seconds=seconds) for _ in range(3)]
    report.add("no tool, to the tap", [{"rate_per_s": one["rate_per_s"]} for one in alone])


def drain(topo: Topo, rounds: int, seconds: float) -> int:
    """Channel and first loss; how many accounts were wrong."""
    accounts, report = Accounts(), Report("drain", rounds)
    event, plain = ["--mode", "event"], ["--mode", "event", "--no-stack-trace"]
    runs: dict[str, Callable[..., Sample]] = {
        name: functools.partial(drops, topo, accounts, name, args, env)
        for name, args, env in (
            ("drop, ring", event, {}),
            ("drop, ring, without stack", plain, {}),
            ("drop, perf", event, _PERF),
        )
    }
    for name, env in (("vm-latency, ring", {}), ("vm-latency, perf", _PERF)):
        runs[name] = functools.partial(latency, topo, accounts, name, ["--details"], env)
    problem = bpftrace_works()
    if problem:
        report.notes.append(problem)
    else:
        for name in ("events", "events with stack"):
            runs["bpftrace, " + name] = functools.partial(bpftrace, topo, PROGRAMS[name])
    cases: dict[str, Callable[[], Sample]] = {
        "pages of the ring, decoded": functools.partial(pages, topo, (), True),
        "pages of the ring": functools.partial(pages, topo, (), False),
        "pages of perf, decoded": functools.partial(pages, topo, ("ringbuf",), True),
    }
    for name, run in runs.items():
        if not name.startswith("vm-latency"):  # there the machine loses packets first
            cases[name + ": first loss"] = FirstLoss(run, seconds)
        cases[name + ": saturated"] = functools.partial(_saturated, run, seconds)
    for name, samples in in_turn(cases, rounds).items():
        report.add(name, samples)
    report.notes.append("drain_per_s: records per second of CPU time, while more came than could")
    accounts.end(report)
    print(report.write())
    return len(accounts.wrong)


def _saturated(run: Callable[..., Sample], seconds: float) -> Sample:
    found = run(seconds=seconds)
    names = ("rate_per_s", "seen", "lost", "missing", "drain_per_s", "user_cpu_pct")
    return {name: found[name] for name in names}


def main() -> int:
    """Measures and prints; 1 when an account was wrong."""
    parser = options(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--only", choices=("share", "drain"))
    parser.add_argument("--seconds", type=float, default=2.0, help="of traffic per run (2)")
    args = parser.parse_args()
    wrong = 0
    with bridge_topo(static_neigh=True, vm_options={"sink_ports": [_SINK]}) as topo:
        for name, part in (("share", share), ("drain", drain)):
            if args.only in (None, name):
                wrong += part(topo, args.rounds, args.seconds)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
