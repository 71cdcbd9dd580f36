# SPDX-License-Identifier: GPL-2.0-only
"""Softirqs and the kernel threads that run them: how long each waited, where it ran, how long.

The kernel counts and keeps histograms on the CPU where something runs; only a wait that is not
over is read from the state of its thread. Two sums always hold: the runs of threads are the waits
plus those whose beginning nobody saw, and the same goes for the entries of vectors.
"""

import struct
import time
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from ntools._loader import BpfObject
from ntools.engine.lookups import Lookups
from ntools.engine.run import Engine
from ntools.engine.words import by_number
from ntools.host.cpus import Cpus
from ntools.model.hist import Histogram, KernelHistogram

if TYPE_CHECKING:
    from ntools.output.jsonl import Writer

__all__ = ["CONTEXTS", "THREADS", "TIMES", "SoftirqEngine", "SoftirqOptions"]

#: Class of threads -> who that is.
THREADS: Dict[str, str] = {
    "ksoftirqd": "ksoftirqd/N, takes over when softirqs come too often",
    "napi": "napi/..., a device polled by a thread of its own",
    "backlog": "backlog_napi/N, the backlog of a CPU polled by a thread",
    "rcuc": "rcuc/N, callbacks of RCU",
}
#: On top of what a vector ran -> what that means.
CONTEXTS: Dict[str, str] = {
    "idle": "on an idle CPU, at the end of an interrupt",
    "ksoftirqd": "in ksoftirqd",
    "task": "on top of another task: at the end of an interrupt, or when the task let them in",
}
#: What a histogram of a thread or a vector holds.
TIMES: Dict[str, str] = {
    "wake": "woken -> running",
    "preempt": "taken off the CPU while runnable -> running again",
    "turn": "running -> off the CPU",
    "delay": "first raise since the last entry -> entry",
    "run": "entry -> exit",
}
_OF_THREADS, _OF_VECTORS = ("wake", "preempt", "turn"), ("delay", "run")
_OF_CLASS = ("runs", "unknown", "over")
_OF_VECTOR = (
    "entries", "unknown", "over", *("entries_" + name for name in CONTEXTS),
    *("run_ns_" + name for name in CONTEXTS),
)  # fmt: skip
_OF_NAPI = ("polls", "packets", "exhausted")
_SETTLE_S = 0.01
_PER_CONTEXT = struct.Struct("<3Q")
#: Counters of one CPU: by (thread or vector, name).
_Counts = Dict[Tuple[str, str], int]
_Subject = Tuple[str, str]  # of a histogram: thread or vector, and which of TIMES


class SoftirqOptions(NamedTuple):
    """What to watch.

    :ivar cpus: numbers; empty: all.
    :ivar threads: of :data:`THREADS`.
    :ivar vectors: names as the kernel has them, in lower case.
    :ivar threshold_ns: what counts as long.
    :ivar details: a record per wait as long as that.
    """

    cpus: Tuple[int, ...] = ()
    threads: Tuple[str, ...] = ("ksoftirqd",)
    vectors: Tuple[str, ...] = ("net_rx",)
    threshold_ns: int = 100000
    details: bool = False
    explain: bool = False


class SoftirqEngine(Engine):
    """One run: ``softirq_stats`` and ``hist`` per CPU and interval, ``softirq_event`` if wanted."""

    counters = ("rejects",)

    def __init__(
        self,
        obj: BpfObject,
        cpus: Cpus,
        options: SoftirqOptions,
        lookups: Optional[Lookups] = None,
    ) -> None:
        super().__init__(obj, lookups)
        self._options = options
        self.counts_events = options.details
        self.has_threshold = options.threshold_ns > 0
        chosen = set(options.cpus or cpus.possible)
        self._online = [cpu for cpu in cpus.online if cpu in chosen]
        self._chosen = chosen
        size = obj.types.enum("nt_softirq_size")
        self._classes = by_number(obj, "nt_softirq_class", "NT_CLASS_")
        self._vectors = dict(enumerate(cpus.vectors[: size["NT_SOFTIRQ_VECTORS"]]))
        self._contexts = by_number(obj, "nt_softirq_context", "NT_CONTEXT_")
        self._waits = by_number(obj, "nt_softirq_wait", "NT_WAIT_")
        self._max_threads = size["NT_SOFTIRQ_THREADS"]
        self._thread = obj.types.struct("nt_thread")
        self._event = obj.types.struct("nt_softirq_event")
        self._subjects = self._number_hists()
        self._hists: Dict[Tuple[int, int], KernelHistogram] = {}
        self._before: Dict[int, _Counts] = {}
        self._epoch = 1
        self._shown = 0
        flags = obj.types.enum("nt_softirq_flag")
        bits = bytearray(size["NT_SOFTIRQ_CPUS"] // 8)
        for cpu in chosen:
            bits[cpu // 8] |= 1 << cpu % 8
        obj.configure(
            enabled=0,
            threshold_ns=options.threshold_ns,
            epoch=self._epoch,
            flags=flags["NT_SOFTIRQ_EVENTS"] * options.details
            + flags["NT_SOFTIRQ_EXPLAIN"] * options.explain,
            classes=sum(1 << n for n, name in self._classes.items() if name in options.threads),
            vectors=sum(1 << n for n, name in self._vectors.items() if name in options.vectors),
            cpus=bytes(bits),
        )

    # -- what the run calls --------------------------------------------------------------------

    def channel(self) -> Any:
        """Waits over the threshold, if they are wanted."""
        return self.obj.channel("events") if self._options.details else None

    def take(self, records: Iterable[Any], writer: "Writer") -> int:
        """Show waits over the threshold."""
        count = 0
        for record in records:
            self._show(dict(zip(self._event.names, record)), writer)
            count += 1
        return count

    def report(self, writer: "Writer", last: bool) -> None:
        """Per CPU: of the interval, or of the whole run."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        self.obj.configure(epoch=self._epoch)
        agg = "total" if last else "delta"
        hists = self._read_hists(epoch, last)
        waiting = self._read_waiting()
        counts = self._read_counts()
        for cpu in sorted(set(counts) | set(waiting)):
            if cpu not in self._chosen:
                continue
            before = {} if last else self._before.get(cpu, {})
            shown = {key: n - before.get(key, 0) for key, n in counts.get(cpu, {}).items()}
            active = any(shown.values()) or cpu in waiting
            if not (active or (last and cpu in self._online)):
                continue
            self._report_cpu(cpu, agg, shown, hists.get(cpu, {}), waiting.get(cpu, []), writer)
        self._before = counts

    def stop(self) -> None:
        """See :meth:`Engine.stop`."""
        super().stop()
        time.sleep(_SETTLE_S)  # a program that began before that has ended by now

    def resume(self, writer: "Writer") -> None:
        """What waited or ran when the programs fell asleep did not do so all the time."""
        threads, pending = self.obj.map("threads"), self.obj.map("pending")
        for key, _ in list(threads.items_bytes()):
            threads.delete(key)
        for number in range(pending.entries):
            pending.update(number, (0, 0, 0))

    def matched(self) -> int:
        """Runs of threads and entries of vectors."""
        return sum(
            int(counters[0])
            for name in ("classes", "vectors")
            for _, cpus in self.obj.map(name).items()
            for counters in cpus
        )

    def totals(self) -> Dict[str, Any]:
        """What was not counted, by step."""
        if not self._options.explain:
            return {}
        names = by_number(self.obj, "nt_softirq_skip", "NT_SKIP_")
        sums = self.obj.map("rejects").sums()
        return {"explain": {names[i]: n for i, n in enumerate(sums) if n}}

    # -- inside --------------------------------------------------------------------------------

    def _number_hists(self) -> Dict[int, _Subject]:
        """Index in the map of histograms -> what is in it, of what was chosen."""
        numbers = self.obj.types.enum("nt_softirq_hist")
        found: Dict[int, _Subject] = {}
        for number, name in self._classes.items():
            if name in self._options.threads:
                base = (number - 1) * numbers["NT_SH_PER_CLASS"]
                for which in _OF_THREADS:
                    found[base + numbers["NT_SH_" + which.upper()]] = (name, which)
        for number, name in self._vectors.items():
            if name in self._options.vectors:
                base = numbers["NT_SH_VECTORS"] + number * numbers["NT_SH_PER_VECTOR"]
                for which in _OF_VECTORS:
                    found[base + numbers["NT_SH_" + which.upper()]] = (name, which)
        return found

    def _read_hists(self, epoch: int, last: bool) -> Dict[int, Dict[_Subject, Histogram]]:
        """Histograms that have samples, by CPU."""
        view = self.obj.map("hists")
        stride = view.percpu_stride
        found: Dict[int, Dict[_Subject, Histogram]] = {}
        for index, (_, values) in enumerate(view.items_bytes()):
            subject = self._subjects.get(index)
            if subject is None:
                continue
            for cpu in range(len(values) // stride):
                cell = values[cpu * stride : (cpu + 1) * stride]
                known = self._hists.get((index, cpu))
                if known is None:
                    if not any(cell):
                        continue
                    known = self._hists[index, cpu] = KernelHistogram()
                delta = known.update([cell], epoch)
                shown = known.total if last else delta
                if shown.count:
                    found.setdefault(cpu, {})[subject] = shown
        return found

    def _read_counts(self) -> Dict[int, _Counts]:
        """All counters of what was chosen, by CPU."""
        found: Dict[int, _Counts] = {}

        def put(cpu: int, name: str, fields: Iterable[str], values: Iterable[int]) -> None:
            row = found.setdefault(cpu, {})
            row.update(((name, field), value) for field, value in zip(fields, values))

        for number, cpus in self.obj.map("classes").items():
            name = self._classes.get(number, "")
            if name in self._options.threads:
                for cpu, values in enumerate(cpus):
                    put(cpu, name, _OF_CLASS, values)
        for number, cpus in self.obj.map("vectors").items():
            name = self._vectors.get(number, "")
            if name in self._options.vectors:
                for cpu, (*counts, ran, ran_ns) in enumerate(cpus):
                    values = (*counts, *_PER_CONTEXT.unpack(ran), *_PER_CONTEXT.unpack(ran_ns))
                    put(cpu, name, _OF_VECTOR, values)
        for _, cpus in self.obj.map("napis").items():
            for cpu, values in enumerate(cpus):
                put(cpu, "napi_poll", _OF_NAPI, values)
        return found

    def _read_waiting(self) -> Dict[int, List[Dict[str, Any]]]:
        """Threads that have waited for longer than the threshold and still do, by CPU."""
        at = {name: place for place, name in enumerate(self._thread.names)}
        threads = self.obj.map("threads")
        rows = list(threads.items())
        found: Dict[int, List[Dict[str, Any]]] = {}
        for pid, row in rows:
            since = row[at["since_ns"]]
            if since and self.now_ns - since >= max(1, self._options.threshold_ns):
                found.setdefault(row[at["cpu"]], []).append(
                    {
                        "pid": pid,
                        "comm": _text(row[at["comm"]]),
                        "kind": self._waits[row[at["wait"]]],
                        "waiting_ns": self.now_ns - since,
                    }
                )
        if len(rows) > self._max_threads // 2:  # of threads that have ended, too
            for pid, row in rows:
                if not row[at["since_ns"]] and not row[at["run_ns"]]:
                    threads.delete(pid)
        return found

    def _report_cpu(
        self,
        cpu: int,
        agg: str,
        counts: _Counts,
        hists: Dict[_Subject, Histogram],
        waiting: List[Dict[str, Any]],
        writer: "Writer",
    ) -> None:
        for (subject, which), hist in hists.items():
            kind = "thread" if which in _OF_THREADS else "vector"
            writer.record(
                "hist", name="softirq", labels={"cpu": cpu, kind: subject, "time": which},
                agg=agg, **hist.fields(),
            )  # fmt: skip
        none = Histogram()
        threads: List[Dict[str, Any]] = []
        for name in self._options.threads:
            wake, preempt, turn = (hists.get((name, which), none) for which in _OF_THREADS)
            row = {field: counts.get((name, field), 0) for field in _OF_CLASS}
            row.update(wakes=wake.count, preempted=preempt.count)
            row.update(wait_ns=wake.sum + preempt.sum, run_ns=turn.sum)
            threads.append({"thread": name, **row})
        vectors: List[Dict[str, Any]] = []
        for name in self._options.vectors:
            row = {field: counts.get((name, field), 0) for field in _OF_VECTOR}
            ran = sum(row["run_ns_" + context] for context in CONTEXTS)
            part = round(100.0 * row["run_ns_ksoftirqd"] / ran, 2) if ran else None
            delay = hists.get((name, "delay"), none)
            vectors.append({"vector": name, "delays": delay.count, **row, "ksoftirqd_pct": part})
        holds = all(
            row["runs"] == row["wakes"] + row["preempted"] + row["unknown"] for row in threads
        ) and all(
            row["entries"] == row["delays"] + row["unknown"]
            and row["entries"] == sum(row["entries_" + context] for context in CONTEXTS)
            for row in vectors
        )
        writer.record(
            "softirq_stats", cpu=cpu, agg=agg, threads=threads, vectors=vectors,
            napi={field: counts.get(("napi_poll", field), 0) for field in _OF_NAPI},
            waiting=waiting, threshold_ns=self._options.threshold_ns,
            holds=holds if agg == "total" else None,  # while the kernel counts, a reading is torn
        )  # fmt: skip

    def _show(self, record: Dict[str, Any], writer: "Writer") -> None:
        kind = self._waits[record["wait"]]
        fields: Dict[str, Any] = {}
        if kind == "raise":
            fields["vector"] = self._vectors.get(record["what"])
            fields["context"] = self._contexts.get(record["context"])
        else:
            fields["thread"] = self._classes.get(record["what"])
            fields["pid"] = record["pid"]
            fields["comm"] = _text(record["comm"])
        prev = _text(record["prev_comm"])
        if prev:  # of ksoftirqd it is known from its next turn on
            fields.update(
                prev_comm=prev, prev_pid=record["prev_pid"], prev_prio=record["prev_prio"]
            )
        writer.record(
            "softirq_event", ts_ns=record["ts_ns"], kind=kind, cpu=record["cpu"],
            delay_ns=record["delay_ns"], **fields,
        )  # fmt: skip
        self._shown += 1


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("utf-8", "replace")
