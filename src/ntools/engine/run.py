# SPDX-License-Identifier: GPL-2.0-only
"""One run of an engine, from the first attach to the summary.

The engine knows its object and makes the records; the run knows when: it announces readiness,
waits for events, asks for sweeps and reports in time, ends on a signal, a deadline or a count, and
accounts for everything lost.
"""

import functools
import os
import resource
import select
import signal
import sys
import time
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Tuple,
)

from ntools._loader import BpfObject, library
from ntools.engine.budget import Bucket, RecordedBucket, read_gates
from ntools.engine.guard import Guard, Safety
from ntools.engine.lookups import HostLookups, Lookups
from ntools.host import about
from ntools.model import loss, stages
from ntools.model.clock import ClockChange

if TYPE_CHECKING:  # the engine makes records; who writes and keeps them is the command's business
    from ntools.engine.tape import Playback, Tape
    from ntools.model.filter import PacketFilter
    from ntools.output.jsonl import Writer

__all__ = ["Engine", "Limits", "LiveSteps", "drive", "ready_line", "replay"]

_NEVER = float("inf")
_SETTLE_S = 0.5
_GATHER_MS = 50
_ROOMY = 1 << 20


class Limits(NamedTuple):
    """When a run reports and ends.

    :ivar interval_s: seconds between reports, 0: only at the end.
    :ivar duration_s: seconds, 0: until a signal.
    :ivar count: reports, or events where the engine has events; 0: no limit.
    :ivar strict: exit status 4 when anything was lost.
    """

    interval_s: float = 0.0
    duration_s: float = 0.0
    count: int = 0  # type: ignore[assignment]  # hides tuple.count, which nobody needs
    strict: bool = False


class Engine:
    """What a run drives; one subclass per BPF object.

    :cvar sweep_s: seconds between calls of :meth:`sweep`, 0: never.
    :cvar counts_events: ``--count`` means events, not reports.
    :cvar match_ns: BPF time of one more packet that matches, beyond what counting it costs.
    :cvar counters: per-CPU counters that the admission test leaves dirty.
    :ivar makes_records: single records are also made on this side, and pass :attr:`gate`.
    :ivar has_threshold: only some of the packets that match become events.
    :ivar gate: bucket of the records made on this side.
    """

    sweep_s = 0.0
    counts_events = False
    match_ns = 2000
    counters: Tuple[str, ...] = ()
    makes_records = False
    has_threshold = False

    #: Monotonic time of the step that is going on, on the host of the run.
    now_ns = 0

    def __init__(self, obj: Any, lookups: Optional[Lookups] = None) -> None:
        self.obj = obj
        self.lookups = HostLookups(obj.kernel) if lookups is None else lookups
        self.gate = Bucket()
        self._narrow: "Optional[PacketFilter]" = None
        self._loss_names: List[str] = []
        self._missed_before = 0

    @property
    def name(self) -> str:
        """Of the engine; several objects may be builds of it."""
        return str(self.obj.name).partition("_")[0]

    def header(self) -> Dict[str, Any]:
        """Fields of the header record that only this engine knows."""
        return {}

    def begin(self) -> None:
        """After the attach, before the first event: fill maps, let the programs work."""
        self.obj.configure(enabled=1)

    def channel(self) -> Optional[Any]:
        """The channel to poll, None when everything is aggregated."""
        return None

    def take(self, records: Iterable[Any], writer: "Writer") -> int:
        """Turn raw events into records; how many were shown."""
        return 0

    def sweep(self, writer: "Writer") -> None:
        """Periodic work between reports."""

    def report(self, writer: "Writer", last: bool) -> None:
        """Emit the records of one interval; ``last``: of the whole run."""

    def stop(self) -> None:
        """Take no new work, and wait a moment for what is under way. Not called at replay."""
        self.obj.configure(enabled=0)

    def settled(self) -> bool:
        """Whether everything that was under way has arrived. Not called at replay."""
        return True

    def finish(self, writer: "Writer") -> None:
        """Emit the records of what has no end; nothing new comes any more."""

    def narrow(self, flt: "PacketFilter") -> None:
        """Show only these packets: at replay, where the kernel has filtered already.

        :raises UsageProblem: what was recorded are counts, or lacks what the filter asks for.
        """
        self._narrow = flt

    def totals(self) -> Dict[str, Any]:
        """Further fields of the summary."""
        return {}

    def state(self) -> Dict[str, Any]:
        """What the engine itself has counted so far, as JSON can carry it."""
        return {"missed_before": self._missed_before, "gate": self.gate.counts()}

    def restore(self, state: Dict[str, Any]) -> None:
        """Go on counting from a :meth:`state`: a recording may begin in the middle of a run."""
        self._missed_before = int(state["missed_before"])
        self.gate.restore(state["gate"])

    def resume(self, writer: "Writer") -> None:
        """The programs have slept and still do: give up what they should have seen."""

    def matched(self) -> int:
        """Packets so far that passed the filter."""
        return 0

    def hooks(self) -> int:
        """Runs of the programs so far as far as they count themselves."""
        return self.matched()

    def forget_missed(self) -> None:
        """What the kernel has skipped until now does not concern the run."""
        self._missed_before = sum(row[3] for row in self.obj.programs())

    def event_totals(self) -> Dict[str, int]:
        """What became of would-be events before the channel."""
        gates = read_gates(self.obj)
        return {
            "wanted": gates.wanted + self.gate.wanted,
            "sampled_out": gates.sampled_out + self.gate.sampled_out,
            "switched_off": gates.off + self.gate.switched_off,
        }

    def losses(self) -> Dict[str, int]:
        """Loss so far, by cause; only causes that occurred."""
        if not self._loss_names:
            numbers = self.obj.types.enum("nt_loss")
            ordered = sorted(numbers, key=lambda name: numbers[name])
            self._loss_names = [loss.from_symbol(name) for name in ordered]
        found = {
            name: count
            for name, count in zip(self._loss_names, self.obj.map("nt_loss").sums())
            if count
        }
        channel = self.channel()
        if channel is not None and channel.lost > found.get("ring_full", 0):
            # Since v5.2 the helper reports what the kernel counts, and the program counts it too.
            found["perf_lost"] = channel.lost - found.get("ring_full", 0)
        if self.gate.cut:
            found["governor_dropped"] = found.get("governor_dropped", 0) + self.gate.cut
        missed = sum(row[3] for row in self.obj.programs()) - self._missed_before
        if missed:
            found["prog_missed"] = missed
        return found


def drive(
    engine: Engine,
    writer: "Writer",
    limits: Limits,
    args: Dict[str, Any],
    safety: Safety,
    tape: "Optional[Tape]" = None,
    recorder: Optional[Callable[[Dict[str, Any]], Any]] = None,
) -> int:
    """Start the engine, run it to its end, write header, records and summary.

    :param args: header fields of the command (``args``, ``filters``...).
    :param safety: what the run may cost.
    :param tape: notes what the run sees.
    :param recorder: makes what keeps the tape, from the header record.
    :return: exit status: 0, 6 when the governor ended it, 1 when the recording failed, or 4 when
        something was lost and the run is strict.
    :raises SafetyRefusal: the run may not begin.
    """
    live = LiveSteps(engine, writer, tape)
    with _Signals() as signals, Guard(engine, safety) as guard:
        guard.check()
        engine.obj.start()
        engine.channel()  # without a reader in place, perf pages refuse every event
        guard.arm()
        engine.begin()
        guard.admit(signals.fd)
        header = writer.draft_header(**_header(engine, guard, limits, args))
        if tape is not None and recorder is not None:
            tape.begin(functools.partial(recorder, header), engine.state)
            engine.gate.note = tape.decision
        writer.emit_header(header)
        guard.begin()
        sys.stderr.write(ready_line(engine.obj) + "\n")
        sys.stderr.flush()
        end = _loop(live, guard, limits, signals)
        guard.notice_gap(live)  # a signal may come before the tick that would have told
        guard.finish()
        engine.stop()
        live.do("take")
        deadline = time.monotonic() + _SETTLE_S
        while not engine.settled() and time.monotonic() < deadline:
            time.sleep(0.005)
            live.do("take")
        live.do("finish")
        live.do("report", index=0, start_ns=0, cost={}, last=True)
        live.do("summary", end=end, cost=_cost(guard), more=guard.totals())
        writer.close()
        if tape is not None:
            tape.close()
        if not writer.broken:
            sys.stdout.flush()
    if end == "governor":
        return 6
    if tape is not None and tape.failed:
        return 1
    return 4 if limits.strict and writer.lost else 0


def replay(engine: Engine, writer: "Writer", playback: "Playback", strict: bool = False) -> int:
    """Show a recorded run again: the same records, made by the same code.

    What is no run of this engine ends in any of the errors that damaged data lead to.

    :return: exit status: 0, or 4 when something was lost or cut off and ``strict``.
    """
    steps = _Steps(engine, writer)
    engine.gate = RecordedBucket(engine.obj.decision)
    engine.begin()
    writer.repeat_header(playback.header)
    engine.restore(playback.fact("state"))
    for step in playback.steps():
        engine.obj.feed(step)
        steps.run(step.name, step.now_ns, step.info)
        if writer.broken:
            break
    writer.close()
    return 4 if strict and (writer.lost or playback.cut) else 0


class _Steps:
    """What a run does, step by step; live and at replay."""

    def __init__(self, engine: Engine, writer: "Writer") -> None:
        self._engine = engine
        self._writer = writer

    def run(self, name: str, now_ns: int, info: Mapping[str, Any]) -> int:
        """Do one step; how many events it showed."""
        if name not in _STEP_NAMES:
            raise ValueError("no step '{}'".format(name))
        self._engine.now_ns = self._writer.now_ns = now_ns
        return int(getattr(self, "_" + name)(**info) or 0)

    def _take(self) -> int:
        channel = self._engine.channel()
        return 0 if channel is None else self._engine.take(channel.read(), self._writer)

    def _sweep(self) -> None:
        self._engine.sweep(self._writer)

    def _report(self, index: int, start_ns: int, cost: Dict[str, Any], last: bool) -> None:
        engine, writer = self._engine, self._writer
        if not last:
            writer.lost = engine.losses()
            writer.record(
                "interval", index=index, start_ns=start_ns, end_ns=engine.now_ns, cost=cost
            )
        engine.report(writer, last)

    def _baseline(self) -> None:
        """The last report before the recording begins: differences are taken from there."""
        self._writer.muted = True
        self._engine.report(self._writer, False)
        self._writer.muted = False

    def _finish(self) -> None:
        self._engine.finish(self._writer)

    def _clock(self, offset_ns: int, error_ns: int, step_ns: int) -> None:
        self._writer.set_clock(ClockChange(self._engine.now_ns, offset_ns, error_ns, step_ns))

    def _record(self, type: str, fields: Dict[str, Any]) -> None:
        """A record that is not made from what the kernel gave."""
        self._writer.record(type, **fields)

    def _resume(self) -> None:
        self._engine.resume(self._writer)

    def _summary(self, end: str, cost: Dict[str, Any], more: Dict[str, Any]) -> None:
        self._writer.lost = self._engine.losses()
        self._writer.summary(end, cost=cost, **more, **self._engine.totals())


_STEP_NAMES = (
    "take",
    "sweep",
    "report",
    "baseline",
    "finish",
    "clock",
    "record",
    "resume",
    "summary",
)


class LiveSteps:
    """Steps taken now, and put on tape if there is one."""

    def __init__(self, engine: Engine, writer: "Writer", tape: "Optional[Tape]") -> None:
        self.engine = engine
        self.writer = writer
        self._tape = tape
        self._steps = _Steps(engine, writer)

    def do(self, name: str, **info: Any) -> int:
        """Take a step; how many events it showed."""
        now_ns = time.monotonic_ns()
        if self._tape is None:
            return self._steps.run(name, now_ns, info)
        self._tape.step(name, now_ns, info)
        shown = self._steps.run(name, now_ns, info)
        self._tape.end_step()
        return shown

    def record(self, kind: str, **fields: Any) -> None:
        """A step with nothing but a record."""
        self.do("record", type=kind, fields=fields)

    def resume(self) -> None:
        """The step of :meth:`Engine.resume`."""
        self.do("resume")

    def watch_clock(self) -> None:
        """A step when the wall clock was set, and once a minute."""
        change = self.writer.clock.poll()
        if change is not None:
            self.do(
                "clock",
                offset_ns=change.offset_ns,
                error_ns=change.error_ns,
                step_ns=change.step_ns,
            )


def ready_line(obj: BpfObject) -> str:
    """``ready: 7 points attached (5 tp_btf, 2 kprobe), 2 not observable here``."""
    rungs: Dict[str, int] = {}
    missing = 0
    for row in obj.report:
        if row.attach:
            rungs[row.attach] = rungs.get(row.attach, 0) + 1
        else:
            missing += 1
    parts = ", ".join("{} {}".format(count, name) for name, count in sorted(rungs.items()))
    line = "ready: {} points attached ({})".format(sum(rungs.values()), parts)
    if missing:
        line += ", {} not observable here (--explain tells why)".format(missing)
    return line


def _loop(live: "LiveSteps", guard: Guard, limits: Limits, signals: "_Signals") -> str:
    """Poll until the end; returns why it ended."""
    engine = live.engine
    start = time.monotonic()
    deadline = start + limits.duration_s if limits.duration_s else _NEVER
    next_report = start + limits.interval_s if limits.interval_s else _NEVER
    next_sweep = start + engine.sweep_s if engine.sweep_s else _NEVER
    shown = reports = 0
    channel = engine.channel()
    poller = select.poll()
    poller.register(signals.fd, select.POLLIN)
    gather = select.poll()
    gather.register(signals.fd, select.POLLIN)
    if channel is not None:
        poller.register(channel.fd, select.POLLIN)
    while True:
        now = time.monotonic()
        if now >= deadline:
            return "duration"
        wake = min(deadline, next_report, next_sweep, guard.next_s)
        ready = poller.poll(max(0.0, wake - now) * 1000.0 + 1.0)
        if ready and channel is not None and not signals.caught:
            # The kernel wakes us for every event that finds its channel empty, which costs more
            # than the event: let some gather.
            gather.poll(_GATHER_MS if channel.capacity >= _ROOMY else _GATHER_MS / 5)
        if signals.caught:
            return "signal"
        live.watch_clock()
        if channel is not None and channel.unread_bytes:
            shown += live.do("take")
        if time.monotonic() >= guard.next_s and guard.tick(live):
            return "governor"
        now = time.monotonic()
        if now >= next_sweep:
            live.do("sweep")
            next_sweep = now + engine.sweep_s
        if now >= next_report:
            start_ns = int((next_report - limits.interval_s) * 1e9)
            live.do("report", index=reports, start_ns=start_ns, cost=_cost(guard), last=False)
            reports += 1
            next_report += limits.interval_s * max(1, int((now - next_report) // limits.interval_s))
        if limits.count and (shown if engine.counts_events else reports) >= limits.count:
            return "count"
        if live.writer.broken:
            return "signal"


def _header(engine: Engine, guard: Guard, limits: Limits, args: Dict[str, Any]) -> Dict[str, Any]:
    obj = engine.obj
    fields: Dict[str, Any] = vars(about.about()).copy()
    fields.update(args)
    fields["points"] = [
        {
            "stage": stages.from_symbol(row.point),
            "attach": row.attach,
            "target": row.target,
            "candidates_failed": [
                {
                    "attach": refusal.mechanism,
                    "target": refusal.target,
                    "errno": refusal.errno,
                    "text": refusal.text,
                }
                for refusal in row.failed
            ],
        }
        for row in obj.report
        if row.attach
    ]
    fields["degraded"] = [
        {
            "feature": stages.from_symbol(row.point),
            "because": "; ".join(
                "{}/{}: {}".format(refusal.mechanism, refusal.target, refusal.text)
                for refusal in row.failed
            ),
        }
        for row in obj.report
        if not row.attach
    ]
    fields["maps"] = [
        {"name": name, "entries": entries, "bytes": size} for name, entries, size in obj.map_bytes()
    ]
    fields["build"] = obj.build_id
    fields["libbpf"] = library().version_text
    if limits.interval_s:
        fields["interval_s"] = limits.interval_s
    fields.update(guard.header())
    fields.update(engine.header())
    return fields


def _cost(guard: Guard) -> Dict[str, Any]:
    """What the run has used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "user_cpu_ns": int((usage.ru_utime + usage.ru_stime) * 1e9),
        "max_rss_bytes": usage.ru_maxrss * 1024,
    }
    cost.update(guard.cost())
    return cost


class _Signals:
    """SIGINT and SIGTERM as something to poll for; the handlers of before come back at the end."""

    def __enter__(self) -> "_Signals":
        self.caught = False
        self.fd, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer)
        self._before = {
            number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _catch(self, _number: int, _frame: Any) -> None:
        self.caught = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.fd)
        os.close(self._writer)
