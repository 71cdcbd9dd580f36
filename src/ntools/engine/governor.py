# SPDX-License-Identifier: GPL-2.0-only
"""When a run costs too much, and what is done about it: pure policy.

Fed with one :class:`Load` per second; answers with actions, which :mod:`ntools.engine.guard`
carries out. Steps up: warn at half of a limit, three steps of sampling, events off, stop. Steps
down: one at a time after half a minute of calm, three times at most, so that a run near a limit
comes to rest.

Demand for events leads no further than sampling: the bucket in the kernel already holds what goes
out to the budget, and a list that is cut is worth more than none. Events off and stop are for what
the bucket does not bound.
"""

from typing import List, NamedTuple, Optional, Set, Tuple

__all__ = ["Action", "Ceilings", "Governor", "Load"]

_WARN_AT = 0.5
_CALM_BELOW = 0.3
_CALM_S = 30
_EXCEEDED_S = 2
#: Without events there is nothing to sample or switch off: what is left is to wait and to stop.
_EXCEEDED_WITHOUT_EVENTS_S = 10
_LOST_PCT, _LOST_S = 10.0, 10
_LEAST_MEMORY_PCT = 3.0
_SAMPLE_STEPS = 3
_MOST_SHIFT = 6
_RECOVERIES = 3
#: Kept by the bucket.
_BOUNDED = "max_events"


class Ceilings(NamedTuple):
    """The limits of a run; 0: none.

    :ivar max_overhead: BPF run time in percent of the time of all CPUs.
    :ivar max_cpu: own CPU time in percent of one CPU.
    :ivar max_events: events per second.
    """

    max_overhead: float = 1.0
    max_cpu: float = 5.0
    max_events: float = 2000.0


class Load(NamedTuple):
    """What was measured in one second.

    :ivar bpf_pct: as last measured, None if it cannot be.
    :ivar lost_pct: share of what matched that did not reach the user against his will.
    :ivar memory_pct: available memory, None if not known.
    """

    events_per_s: float = 0.0
    bpf_pct: Optional[float] = None
    user_cpu_pct: float = 0.0
    lost_pct: float = 0.0
    ring_pct: float = 0.0
    memory_pct: Optional[float] = None


class Action(NamedTuple):
    """Something to do.

    :ivar name: warn, sample, degrade, stop or recover.
    :ivar cause: name of a limit, or lost, memory, calm.
    :ivar shift: one packet in ``2**shift`` has events from now on.
    :ivar events: whether there are events from now on.
    """

    name: str
    cause: str
    shift: int
    events: bool


class Governor:
    """The state of one run.

    :param has_events: the run emits single events.
    :param base_shift: sampling the user asked for.
    """

    def __init__(self, ceilings: Ceilings, has_events: bool, base_shift: int = 0) -> None:
        self._ceilings = ceilings
        self._has_events = has_events
        self._base = base_shift
        self._level = 0  # 1 to 3: sampled, 4: events off
        self._recoveries = 0
        self._warned: Set[str] = set()
        self.forget()

    @property
    def shift(self) -> int:
        """Sampling in force."""
        steps = min(self._level, _SAMPLE_STEPS)
        return min(self._base + steps, max(self._base, _MOST_SHIFT))

    @property
    def events(self) -> bool:
        """Whether events are on."""
        return self._level <= _SAMPLE_STEPS

    @property
    def calm(self) -> bool:
        """Whether nothing has been done that is not undone."""
        return not self._level

    def forget(self) -> None:
        """Start to watch anew: the seconds before say nothing about those to come."""
        self._half = self._over = self._hard = self._lost = self._calm = 0

    def observe(self, load: Load) -> List[Action]:
        """Judge one second."""
        ratios = self._ratios(load)
        exceeded = [name for ratio, name in ratios if ratio > 1.0]
        hard = [name for name in exceeded if name != _BOUNDED]
        worst, name = ratios[0] if ratios else (0.0, "")
        self._over = self._over + 1 if exceeded else 0
        self._hard = self._hard + 1 if hard else 0
        self._half = self._half + 1 if worst >= _WARN_AT else 0
        self._calm = self._calm + 1 if worst < _CALM_BELOW else 0
        self._lost = self._lost + 1 if load.lost_pct > _LOST_PCT else 0
        if load.memory_pct is not None and load.memory_pct < _LEAST_MEMORY_PCT:
            return [self._action("stop", "memory")]
        if self._lost >= _LOST_S:
            return [self._action("stop", "lost")]
        if not self._has_events:
            if self._hard >= _EXCEEDED_WITHOUT_EVENTS_S:
                return [self._action("stop", hard[0])]
        elif self._over >= _EXCEEDED_S:
            taken = self._step(exceeded, hard)
            if taken:
                return [taken]
        if self._half >= _EXCEEDED_S and name not in self._warned:
            self._warned.add(name)
            return [self._action("warn", name)]
        if self._calm >= _CALM_S:
            return self._recover()
        return []

    def _ratios(self, load: Load) -> List[Tuple[float, str]]:
        pairs = (
            ("max_overhead", load.bpf_pct, self._ceilings.max_overhead),
            ("max_cpu", load.user_cpu_pct, self._ceilings.max_cpu),
            (_BOUNDED, load.events_per_s, self._ceilings.max_events),
        )
        found = [(value / limit, name) for name, value, limit in pairs if value and limit]
        return sorted(found, reverse=True)

    def _step(self, exceeded: List[str], hard: List[str]) -> Optional[Action]:
        before = self.shift
        while self._level < _SAMPLE_STEPS:
            self._level += 1
            if self.shift != before:
                self.forget()
                return self._action("sample", exceeded[0])
        if self._hard < _EXCEEDED_S:
            return None
        self.forget()
        if self._level == _SAMPLE_STEPS:
            self._level += 1
            return self._action("degrade", hard[0])
        return self._action("stop", hard[0])

    def _recover(self) -> List[Action]:
        self._calm = 0
        self._warned.clear()
        if not self._level or self._recoveries >= _RECOVERIES:
            return []
        before = self.shift, self.events
        while self._level and (self.shift, self.events) == before:
            self._level -= 1
        if (self.shift, self.events) == before:
            return []
        self._recoveries += 1
        return [self._action("recover", "calm")]

    def _action(self, name: str, cause: str) -> Action:
        return Action(name, cause, self.shift, self.events)
