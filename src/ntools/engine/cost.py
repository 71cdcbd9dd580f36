# SPDX-License-Identifier: GPL-2.0-only
"""What a run costs: BPF run time, from the kernel's statistics a second at a time, and our own.

The statistics tax every BPF program of the host, so they are on for the first seconds and then
for a moment in every period. In between the last figures hold. Near the limit they stay on: a
decision must not rest on an old figure.
"""

import os
import resource
from typing import TYPE_CHECKING, Any, Callable, Dict, NamedTuple, Optional, Tuple

from ntools._loader import RunStatistics

if TYPE_CHECKING:
    from ntools._loader import BpfObject

__all__ = ["ADDEND_NS", "BpfCost", "CostMeter", "own_cpu_s"]

#: What the kernel spends to get into a program, which its statistics do not contain.
ADDEND_NS: Dict[str, int] = {
    "raw_tp": 20,
    "tp_btf": 20,
    "fentry": 20,
    "fexit": 20,
    "kprobe": 100,
    "kretprobe": 250,
    "uprobe": 1500,
    "uretprobe": 2500,
}
#: Where nothing can be measured: a run of a program, generously.
_TABLE_NS = 500
_FIRST_S = 3.0


class BpfCost(NamedTuple):
    """BPF cost as last measured.

    :ivar run_ns: mean of a run, without the way into the program.
    :ivar pct: of the time of all CPUs, with the way into the programs.
    """

    run_ns: float = 0.0
    runs_per_s: float = 0.0
    pct: float = 0.0


class _Reading(NamedTuple):
    at: float
    ns: int
    runs: int
    entry_ns: int  # the addends


class CostMeter:
    """Measures while it is told the time, about once a second.

    :param duty: (seconds on, of a period of so many seconds); 0 on: never.
    :param runs: programs run so far by the engine's own count, for kernels without statistics.
    :ivar source: "kernel" or "table".
    :ivar cost: as last measured, None before the first figure.
    """

    def __init__(
        self,
        obj: "BpfObject",
        duty: Tuple[float, float] = (1.0, 15.0),
        runs: Optional[Callable[[], int]] = None,
        statistics: Any = None,
        cpus: int = 0,
    ) -> None:
        self._obj = obj
        self._on_s, self._period_s = duty
        self._runs = runs
        self._statistics = statistics or RunStatistics()
        self._cpus = cpus or os.cpu_count() or 1
        self._addends = {
            row.point: ADDEND_NS.get(row.attach or "", 100) for row in obj.report if row.attach
        }
        self._foreign = False
        self._hold = False
        self._closes = self._opens = 0.0
        self._before: Optional[_Reading] = None
        self._ns = self._total_runs = self._pct_s = self._passed_s = 0.0
        self.source = "table"
        self.cost: Optional[BpfCost] = None

    def begin(self, now: float) -> None:
        """The run begins: measure its first seconds."""
        self._foreign = self._statistics.foreign
        if self._foreign or (self._on_s and self._statistics.start()):
            self.source = "kernel"
        self._closes = now + max(_FIRST_S, self._on_s)
        self._before = self._read(now)

    def tick(self, now: float, hold: bool = False) -> Optional[BpfCost]:
        """Take the figures of the time since the last call; the cost as last measured.

        :param hold: leave the statistics on, the figures decide about something.
        """
        before = self._before
        if before is None or now - before.at < 0.05:
            return self.cost
        measuring = self.source == "table" or self._foreign or self._statistics.on
        seen = self._before = self._read(now)
        passed = now - before.at
        if measuring:
            self._take(before, seen, passed)
        if self.cost is not None:
            self._ns += self.cost.run_ns * self.cost.runs_per_s * passed
            self._total_runs += self.cost.runs_per_s * passed
            self._pct_s += self.cost.pct * passed
            self._passed_s += passed
        if self.source == "kernel" and not self._foreign:
            self._switch(now, hold)
        return self.cost

    def close(self) -> None:
        """Give the switch back."""
        self._statistics.stop()

    def fields(self) -> Dict[str, Any]:
        """The BPF part of ``cost`` in records: of the run so far; empty before the first figure."""
        if not self._passed_s:
            return {}
        return {
            "source": self.source,
            "bpf_ns": int(self._ns),
            "runs": int(self._total_runs),
            "bpf_run_ns": round(self._ns / self._total_runs, 1) if self._total_runs else 0.0,
            "bpf_runs_per_s": round(self._total_runs / self._passed_s, 1),
            "bpf_pct": round(self._pct_s / self._passed_s, 4),
        }

    def _take(self, before: _Reading, seen: _Reading, passed: float) -> None:
        runs, ns = seen.runs - before.runs, seen.ns - before.ns
        self.cost = BpfCost(
            run_ns=ns / runs if runs else 0.0,
            runs_per_s=runs / passed,
            pct=100.0 * (ns + seen.entry_ns - before.entry_ns) / (passed * 1e9 * self._cpus),
        )

    def _switch(self, now: float, hold: bool) -> None:
        if self._statistics.on:
            if now >= self._closes - 0.05 and not hold:
                self._statistics.stop()
                self._opens = now + max(0.0, self._period_s - self._on_s)
        elif now >= self._opens - 0.05:
            self._statistics.start()
            self._closes = now + self._on_s
            self._before = self._read(now)

    def _read(self, now: float) -> _Reading:
        if self.source == "table":
            runs = self._runs() if self._runs else 0
            return _Reading(now, runs * _TABLE_NS, runs, runs * 100)
        rows = self._obj.programs()
        return _Reading(
            now,
            sum(row[1] for row in rows),
            sum(row[2] for row in rows),
            sum(row[2] * self._addends.get(row[0], 100) for row in rows),
        )


def own_cpu_s() -> float:
    """CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
