# SPDX-License-Identifier: GPL-2.0-only
"""One run of an engine, from the first attach to the summary.

The engine knows its object and makes the records; the run knows when: it announces readiness,
waits for events, asks for sweeps and reports in time, ends on a signal, a deadline or a count, and
accounts for everything lost.
"""

import os
import resource
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, NamedTuple, Optional

from ntools._loader import BpfObject, library
from ntools.host import about
from ntools.model import loss, stages

if TYPE_CHECKING:  # the engine makes records; who writes them is the command's business
    from ntools.output.jsonl import Writer

__all__ = ["Engine", "Limits", "drive", "filter_config", "ready_line"]

_NEVER = float("inf")


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
    """

    sweep_s = 0.0
    counts_events = False

    def __init__(self, obj: BpfObject) -> None:
        self.obj = obj
        self._loss_names: List[str] = []

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

    def finish(self, writer: "Writer") -> None:
        """Stop accepting new work; the programs are still attached."""
        self.obj.configure(enabled=0)

    def totals(self) -> Dict[str, Any]:
        """Further fields of the summary."""
        return {}

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
        missed = sum(row[3] for row in self.obj.programs())
        if missed:
            found["prog_missed"] = missed
        return found


def drive(engine: Engine, writer: "Writer", limits: Limits, args: Dict[str, Any]) -> int:
    """Start the engine, run it to its end, write header, records and summary.

    :param args: header fields of the command (``args``, ``filters``...).
    :return: exit status: 0, or 4 when something was lost and the run is strict.
    """
    with _Signals() as signals:
        engine.obj.start()
        engine.channel()  # without a reader in place, perf pages refuse every event
        engine.begin()
        writer.header(**_header(engine, limits, args))
        sys.stderr.write(ready_line(engine.obj) + "\n")
        sys.stderr.flush()
        end = _loop(engine, writer, limits, signals)
        engine.finish(writer)
        _drain(engine, writer)
        engine.report(writer, True)
        writer.lost = engine.losses()
        writer.summary(end, cost=_cost(engine), **engine.totals())
        writer.close()
        if not writer.broken:
            sys.stdout.flush()
    return 4 if limits.strict and writer.lost else 0


def filter_config(criteria: Mapping[str, Any], numbers: Mapping[str, int]) -> Dict[str, Any]:
    """Config fields (``filter__...``) of packet criteria, for ``struct nt_filter``.

    :param criteria: values by field; ``used`` holds names of ``enum nt_filter_use``.
    :param numbers: that enum in the object in use.
    """
    config = {"filter__" + name: value for name, value in criteria.items() if name != "used"}
    config["filter__used"] = sum(numbers[name] for name in criteria["used"])
    return config


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


def _loop(engine: Engine, writer: "Writer", limits: Limits, signals: "_Signals") -> str:
    """Poll until the end; returns why it ended."""
    start = time.monotonic()
    deadline = start + limits.duration_s if limits.duration_s else _NEVER
    next_report = start + limits.interval_s if limits.interval_s else _NEVER
    next_sweep = start + engine.sweep_s if engine.sweep_s else _NEVER
    shown = reports = 0
    channel = engine.channel()
    poller = select.poll()
    poller.register(signals.fd, select.POLLIN)
    if channel is not None:
        poller.register(channel.fd, select.POLLIN)
    while True:
        now = time.monotonic()
        if now >= deadline:
            return "duration"
        wake = min(deadline, next_report, next_sweep, now + 60.0)
        poller.poll(max(0.0, wake - now) * 1000.0 + 1.0)
        if signals.caught:
            return "signal"
        shown += _drain(engine, writer)
        writer.tick()
        now = time.monotonic()
        if now >= next_sweep:
            engine.sweep(writer)
            next_sweep = now + engine.sweep_s
        if now >= next_report:
            writer.lost = engine.losses()
            writer.record(
                "interval",
                index=reports,
                start_ns=int((next_report - limits.interval_s) * 1e9),
                end_ns=int(now * 1e9),
                cost=_cost(engine),
            )
            engine.report(writer, False)
            reports += 1
            next_report += limits.interval_s * max(1, int((now - next_report) // limits.interval_s))
        if limits.count and (shown if engine.counts_events else reports) >= limits.count:
            return "count"
        if writer.broken:
            return "signal"


def _drain(engine: Engine, writer: "Writer") -> int:
    channel = engine.channel()
    return engine.take(channel.read(), writer) if channel is not None else 0


def _header(engine: Engine, limits: Limits, args: Dict[str, Any]) -> Dict[str, Any]:
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
    fields.update(engine.header())
    return fields


def _cost(engine: Engine) -> Dict[str, int]:
    """What the run itself has used so far; BPF time only while the kernel's statistics are on."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cost = {
        "user_cpu_ns": int((usage.ru_utime + usage.ru_stime) * 1e9),
        "max_rss_bytes": usage.ru_maxrss * 1024,
    }
    rows = engine.obj.programs()
    runs = sum(row[2] for row in rows)
    if runs:
        cost["bpf_ns"] = sum(row[1] for row in rows)
        cost["runs"] = runs
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
