# SPDX-License-Identifier: GPL-2.0-only
"""The safety model of one run: everything that keeps it from costing more than it may.

A run has it by being driven: :func:`ntools.engine.run.drive` makes a :class:`Guard` and calls it
at a few places. Refusals and the admission test come before the run; while it lasts, the guard
writes the heartbeat the programs live by, shares the budget of events out between CPUs, measures,
and carries out what the governor decides.
"""

import os
import select
import sys
import time
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple

from ntools.engine import admission, budget
from ntools.engine.admission import Admission, Memory, RunLock
from ntools.engine.cost import CostMeter, own_cpu_s
from ntools.engine.governor import Action, Ceilings, Governor, Load
from ntools.errors import SafetyRefusal

if TYPE_CHECKING:
    from ntools.engine.run import Engine, LiveSteps

__all__ = ["Guard", "Safety"]

_TICK_S = 1.0
#: NT_GUARD_PATIENCE_S, a little less: what is not certain counts as slept.
_PATIENCE_S = 9.95
#: Classes whose cost grows with the traffic.
_PER_EVENT = ("variable", "high")
#: Losses that mean the run cannot keep up. Not those that were chosen, nor those of other places.
_OVERRUN = ("ring_full", "perf_lost", "map_full", "user_dropped")
_SETTLE_S = 0.01

_UNITS = {
    "max_overhead": ("BPF run time", "bpf_pct", "%"),
    "max_cpu": ("own CPU time", "user_cpu_pct", "%"),
    "max_events": ("events", "events_per_s", "/s"),
    "lost": ("lost", "lost_pct", "%"),
    "memory": ("available memory", "memory_pct", "%"),
}


class Safety(NamedTuple):
    """What a run may cost, as asked for.

    :ivar overhead: class of the mode: none, low, variable or high.
    :ivar max_events: events per second, 0: no limit.
    :ivar max_overhead: BPF run time in percent of the time of all CPUs.
    :ivar max_cpu: own CPU time in percent of one CPU.
    :ivar sample_shift: events of one packet in ``2**sample_shift``.
    :ivar force: run what would be refused.
    :ivar admit_s: length of the admission test.
    :ivar stats_duty: (seconds, of so many seconds) with the kernel's BPF statistics on.
    :ivar command: who writes to stderr.
    :ivar advice: what else answers the question when a run is refused.
    """

    overhead: str = "low"
    max_events: int = 2000
    max_overhead: float = 1.0
    max_cpu: float = 5.0
    sample_shift: int = 0
    force: bool = False
    admit_s: float = 1.0
    stats_duty: Tuple[float, float] = (1.0, 15.0)
    command: str = "ntools"
    advice: str = ""


class Guard:
    """The guard of one run, used as a context manager.

    :ivar next_s: when :meth:`tick` is due, on the monotonic clock.
    """

    def __init__(self, engine: "Engine", safety: Safety) -> None:
        self._engine = engine
        self._obj = engine.obj
        self._safety = safety
        self._per_event = safety.overhead in _PER_EVENT
        self._lock: Optional[RunLock] = None
        self._meter: Optional[CostMeter] = None
        self._admission: Optional[Admission] = None
        self._governor = Governor(
            Ceilings(safety.max_overhead, safety.max_cpu, safety.max_events),
            self._per_event,
            safety.sample_shift,
        )
        self._cpus: List[bool] = []
        self._gates = budget.Gates()
        self._user_demand = 0
        self._cpu_s = self._at = 0.0
        self._matched = self._overrun = 0
        self._beat_s = 0.0
        self._asleep_s = 0.0
        self.next_s = float("inf")

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._meter is not None:
            self._meter.close()
        if self._lock is not None:
            self._lock.release()

    # -- before the run ------------------------------------------------------------------------

    def check(self) -> None:
        """Before anything is loaded: memory, and the lock of runs with events.

        :raises SafetyRefusal: unless forced.
        """
        try:
            maps = sum(row[2] for row in self._obj.map_bytes())
            admission.check_memory(Memory.now(), maps)
            if self._per_event:
                self._lock = RunLock(self._engine.name)
                if not self._lock.take(self._safety.command):
                    self._tell("warning: no place for a lock file, ignoring: another run may start")
        except SafetyRefusal:
            if not self._safety.force:
                raise

    def arm(self) -> None:
        """Programs are attached and not enabled yet: budgets and the first heartbeat."""
        flags = self._obj.types.enum("nt_guard_flag")
        self._count_only = flags["NT_GUARD_COUNT_ONLY"]
        self._no_events = flags["NT_GUARD_NO_EVENTS"]
        possible = len(self._obj.map("nt_gates").lookup(0) or [])
        try:
            with open("/sys/devices/system/cpu/online") as file:
                self._cpus = budget.online_cpus(file.read(), possible)
        except OSError:
            self._cpus = [True] * possible
        self._share_out([0] * (possible + 1))
        self._engine.gate.shift = self._safety.sample_shift
        self._beat(sample_shift=self._safety.sample_shift, flags=self._first_flags())

    def admit(self, interrupt: int) -> None:
        """Count for a moment what the run would do; then let it begin, or refuse.

        :param interrupt: descriptor that is readable when the user wants to end.
        :raises SafetyRefusal: above a limit, unless forced.
        """
        if not self._first_flags():
            return
        meter = CostMeter(self._obj, runs=self._engine.hooks)
        try:
            start = time.monotonic()
            meter.begin(start)
            select.select([interrupt], [], [], self._safety.admit_s)
            self._obj.configure(enabled=0)
            passed = time.monotonic() - start
            meter.tick(start + passed, hold=True)
        finally:
            meter.close()
        self._admission = self._estimate(meter, passed)
        for line in self._admission.lines():
            self._tell(line)
        limits = self._safety
        self._admission.judge(limits.max_events, limits.max_overhead, limits.advice)
        time.sleep(_SETTLE_S)  # a program that began before that has ended by now
        for name in ("nt_loss", *self._engine.counters):
            counters = self._obj.map(name)
            for index in range(counters.entries):
                counters.update(index, 0)
        self._engine.forget_missed()
        self._beat(flags=0)
        self._obj.configure(enabled=1)

    def _first_flags(self) -> int:
        return self._count_only if self._per_event and not self._safety.force else 0

    def _estimate(self, meter: CostMeter, passed: float) -> Admission:
        gates = budget.read_gates(self._obj)
        engine, cost = self._engine, meter.cost
        rate = gates.matches / passed
        match_pct = 100.0 * rate * engine.match_ns / (1e9 * (os.cpu_count() or 1))
        return Admission(
            hooks_per_s=cost.runs_per_s if cost else None,
            run_ns=cost.run_ns if cost else None,
            matches_per_s=rate,
            bpf_pct=(cost.pct if cost else 0.0) + match_pct,
            events_per_s=None if engine.has_threshold else rate / (1 << self._safety.sample_shift),
            flows=admission.busiest(self._obj.map("nt_flows").items(), gates.matches),
        )

    # -- the run -------------------------------------------------------------------------------

    def begin(self) -> None:
        """The run begins: measure from here."""
        now = time.monotonic()
        self._meter = CostMeter(self._obj, self._safety.stats_duty, self._engine.hooks)
        self._meter.begin(now)
        self._cpu_s, self._at = own_cpu_s(), now
        self._gates = budget.read_gates(self._obj)
        self._beat()
        self.next_s = now + _TICK_S

    def tick(self, live: "LiveSteps") -> bool:
        """Once a second: live on, share out, measure, govern. True: the run has to stop."""
        if not self.notice_gap(live):
            self._beat()
        now = time.monotonic()
        self.next_s = now + _TICK_S
        load = self._measure(now)
        stop = False
        for action in self._governor.observe(load):
            self._carry_out(action, load, live)
            stop = stop or action.name == "stop"
        return stop

    def finish(self) -> None:
        """Take the last figures, give the switch of statistics back."""
        if self._meter is not None:
            self._meter.tick(time.monotonic())
            self._meter.close()

    def notice_gap(self, live: "LiveSteps") -> bool:
        """Whether the programs have slept since the last heartbeat; if so, it is told."""
        gap = time.monotonic() - self._beat_s
        if gap <= _PATIENCE_S:
            return False
        self._wake(gap, live)
        return True

    def _beat(self, **values: int) -> None:
        self._beat_s = time.monotonic()
        fields = {"guard__" + name: value for name, value in values.items()}
        self._obj.configure(guard__heartbeat_ns=time.monotonic_ns(), **fields)

    def _wake(self, gap_s: float, live: "LiveSteps") -> None:
        """The programs have slept: packets under way meanwhile were not seen to their end."""
        live.resume()
        self._beat()
        self._asleep_s += gap_s - 10.0
        self._governor.forget()
        self._cpu_s, self._at = own_cpu_s(), time.monotonic()
        self._matched, self._overrun = self._counts()
        self._tell(
            "warning: stopped for {:.1f} s, ignoring: nothing was counted for the last {:.1f} s "
            "of it".format(gap_s, max(0.0, gap_s - 10.0))
        )
        live.record("governor", action="gap", cause="heartbeat", gap_ns=int(gap_s * 1e9))

    def _share_out(self, demand: List[int]) -> None:
        """Budgets of the next second. The last taker is this process, if it makes records."""
        limit = self._safety.max_events
        idle = [not online for online in self._cpus] + [not self._engine.makes_records]
        parts = budget.shares(limit, demand, idle)
        rates = [budget.rate_of(part, limit) for part in parts]
        self._obj.map("nt_rates").update(0, rates[:-1])
        self._engine.gate.change(parts[-1] if limit else float("inf"))

    def _measure(self, now: float) -> Load:
        passed = max(now - self._at, 1e-3)
        cpu_s = own_cpu_s()
        matched, overrun = self._counts()
        gates, user = budget.read_gates(self._obj), self._engine.gate.demand
        events = gates.demand - self._gates.demand + user - self._user_demand
        if self._per_event:
            before = self._gates.by_cpu or (0,) * len(gates.by_cpu)
            demand = [new - old for new, old in zip(gates.by_cpu, before)]
            self._share_out([*demand, user - self._user_demand])
        memory = Memory.now()
        load = Load(
            events_per_s=events / passed,
            bpf_pct=self._bpf_pct(now),
            user_cpu_pct=100.0 * (cpu_s - self._cpu_s) / passed,
            lost_pct=_percent(overrun - self._overrun, matched - self._matched),
            ring_pct=self._ring_pct(),
            memory_pct=memory.available_pct if memory else None,
        )
        self._gates, self._user_demand = gates, user
        self._cpu_s, self._at = cpu_s, now
        self._matched, self._overrun = matched, overrun
        return load

    def _counts(self) -> Tuple[int, int]:
        losses = self._engine.losses()
        return self._engine.matched(), sum(losses.get(cause, 0) for cause in _OVERRUN)

    def _bpf_pct(self, now: float) -> Optional[float]:
        meter = self._meter
        if meter is None:
            return None
        limit = self._safety.max_overhead
        near = meter.cost is not None and limit and meter.cost.pct > limit / 2
        cost = meter.tick(now, hold=bool(near) or not self._governor.calm)
        return cost.pct if cost else None

    def _ring_pct(self) -> float:
        channel = self._engine.channel()
        if channel is None or not channel.capacity:
            return 0.0
        return float(100.0 * channel.unread_bytes / channel.capacity)

    # -- what the governor decides -------------------------------------------------------------

    def _carry_out(self, action: Action, load: Load, live: "LiveSteps") -> None:
        gate = self._engine.gate
        gate.shift, gate.off = action.shift, not action.events
        if action.name != "warn":
            self._beat(sample_shift=action.shift, flags=0 if action.events else self._no_events)
        if action.name != "recover":
            self._tell(_stderr_text(action, load, self._safety))
        fields: Dict[str, Any] = {
            name: None if value is None else round(value, 3)
            for name, value in load._asdict().items()
        }
        live.record(
            "governor",
            action=action.name,
            cause=action.cause,
            limit=getattr(self._safety, action.cause, None),
            sample=1 << action.shift,
            events=action.events,
            **fields,
        )

    def _tell(self, text: str) -> None:
        sys.stderr.write("{}: {}\n".format(self._safety.command, text))
        sys.stderr.flush()

    # -- for the records -----------------------------------------------------------------------

    def header(self) -> Dict[str, Any]:
        """Fields of the header."""
        limits = self._safety
        fields: Dict[str, Any] = {
            "overhead_class": limits.overhead,
            "limits": {
                "max_events": limits.max_events or None if self._per_event else None,
                "max_overhead": limits.max_overhead or None,
                "max_cpu": limits.max_cpu or None,
            },
            "sample": 1 << limits.sample_shift,
        }
        if limits.force:
            fields["forced"] = True
        if self._admission is not None:
            fields["admission"] = self._admission.fields()
        return fields

    def cost(self) -> Dict[str, Any]:
        """The BPF part of ``cost``."""
        return self._meter.fields() if self._meter is not None else {}

    def totals(self) -> Dict[str, Any]:
        """Fields of the summary: what became of would-be events."""
        fields: Dict[str, Any] = {}
        if self._safety.force:
            fields["forced"] = True
        if self._asleep_s:
            fields["asleep_ns"] = int(self._asleep_s * 1e9)
        if self._per_event:
            fields["events"] = self._engine.event_totals()
        return fields


def _percent(part: int, of: int) -> float:
    return 100.0 * part / max(of, part) if part > 0 else 0.0


def _stderr_text(action: Action, load: Load, safety: Safety) -> str:
    what, field, unit = _UNITS[action.cause]
    told = "{} {:.3g} {}".format(what, getattr(load, field) or 0.0, unit).replace(" /s", "/s")
    limit = getattr(safety, action.cause, None)
    if limit:
        told += ", limit {:g}{} (--{})".format(limit, unit, action.cause.replace("_", "-"))
    done = {
        "warn": "warning: ",
        "sample": "warning: from now on events of 1 packet in {}: ".format(1 << action.shift),
        "degrade": "warning: no single events from now on: ",
        "stop": "stopped by the governor: ",
    }
    return done[action.name] + told
