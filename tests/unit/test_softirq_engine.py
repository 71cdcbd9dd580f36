# SPDX-License-Identifier: GPL-2.0-only
"""The engine of softirqs without a kernel, its texts, and lists of CPUs."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest
from unit.test_schema import check

import ntools
from ntools._loader.btf import Types
from ntools._loader.elf import sections
from ntools._loader.maps import MapView
from ntools.engine.softirq import SoftirqEngine, SoftirqOptions
from ntools.errors import EnvironmentProblem
from ntools.host import cpus as host_cpus
from ntools.host.cpus import Cpus, parse_list
from ntools.model.hist import slot_of
from ntools.output.jsonl import Writer
from ntools.output.softirq import event_lines
from ntools.tools.softirq_latency import View

OBJECT = Path(ntools.__file__).parent / "bpf" / "softirq.x86.bpf.o"
NAMES = "hi timer net_tx net_rx block irq_poll tasklet sched hrtimer rcu".split()
MS = 1_000_000
ALONE = ("threads", "nt_cfg")
NET_RX, KSOFTIRQD = 3, 1


class Store(dict):
    def items(self):
        return iter(sorted(super().items()))

    def lookup(self, key):
        return self.get(key)

    def update(self, key, value):
        self[key] = value

    def delete(self, key):
        return self.pop(key, None) is not None


class Object:
    name, kernel = "softirq", None
    report = ()

    def __init__(self, cpus):
        self.types = Types(sections(OBJECT.read_bytes())[".BTF"])
        self.manifest = self.types.manifest()
        self.config, self.cpus, self.views = {}, cpus, {}
        self.kernel = self

    def configure(self, **values):
        self.config.update(values)

    def programs(self):
        return []

    def map(self, name):
        if name not in self.views:
            key, value = self.types.map_types(name)
            many = 0 if name in ALONE else self.cpus
            self.views[name] = MapView(name, Store(), 10, key, value, many)
        return self.views[name]


def cell(*samples, epoch=1):
    """``struct nt_hist`` of some times."""
    if not samples:
        return bytes(512)
    slots = [0] * 112
    for value in samples:
        slots[slot_of(value, 2) - 28] += 1
    ends = [0, min(samples)] if epoch & 1 else [min(samples), 0]
    tops = [0, max(samples)] if epoch & 1 else [max(samples), 0]
    gens = [0, epoch] if epoch & 1 else [epoch, 0]
    return struct.pack("<6Q4I112I", len(samples), sum(samples), *ends, *tops, *gens, 0, 0, *slots)


class Bench:
    def __init__(self, **options):
        if not OBJECT.exists():
            pytest.skip("no object: make build")
        self.obj = Object(2)
        told = Cpus((0, 1), (0, 1), tuple(NAMES))
        self.engine = SoftirqEngine(self.obj, told, SoftirqOptions(**options))
        self.stream = io.StringIO()
        self.writer = Writer(self.stream, "ntools-softirq-latency")
        self.writer.header()
        self.engine.begin()
        self.numbers = self.obj.types.enum("nt_softirq_hist")

    def thread(self, runs=0, unknown=0, over=0, wake=(), preempt=(), turn=(), cpu=1):
        self.put("classes", KSOFTIRQD, (runs, unknown, over), cpu)
        for index, times in enumerate((wake, preempt, turn)):
            self.put_bytes("hists", index, cell(*times), cpu)

    def vector(self, ran, ran_ns, unknown=0, over=0, delay=(), cpu=1):
        counts = (sum(ran), unknown, over, struct.pack("<3Q", *ran), struct.pack("<3Q", *ran_ns))
        self.put("vectors", NET_RX, counts, cpu)
        base = self.numbers["NT_SH_VECTORS"] + NET_RX * self.numbers["NT_SH_PER_VECTOR"]
        self.put_bytes("hists", base, cell(*delay), cpu)

    def put(self, name, key, value, cpu):
        self.put_bytes(name, key, self.obj.map(name).value.codec.pack(*value), cpu)

    def put_bytes(self, name, key, value, cpu):
        view = self.obj.map(name)
        for index in range(key + 1):
            # Of an array there is every element.
            whole = view.store.get(struct.pack("<I", index)) or bytes(view.percpu_stride * 2)
            if index == key:
                at = cpu * view.percpu_stride
                whole = whole[:at] + value + whole[at + len(value) :]
            view.store[struct.pack("<I", index)] = whole

    def waits(self, pid, since, cpu=1, wait=0, run=0):
        values = {"since_ns": since, "run_ns": run, "cpu": cpu, "class": 1, "wait": wait,
                  "comm": b"ksoftirqd/%d" % cpu}  # fmt: skip
        self.obj.map("threads").store[struct.pack("<I", pid)] = self.obj.types.struct(
            "nt_thread"
        ).pack(values)

    def report(self, last=False, now=1000):
        self.stream.truncate(self.stream.seek(0))
        self.engine.now_ns = now * MS
        self.engine.report(self.writer, last)
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        for rec in found:
            check(rec)
        return found

    def stats(self, **more):
        return [rec for rec in self.report(**more) if rec["type"] == "softirq_stats"]


def test_threads_wait_and_run():
    bench = Bench()
    bench.thread(runs=4, unknown=1, over=1, wake=(5000, 7000), preempt=(20 * MS,), turn=(900, 800))
    found = bench.report()
    (rec,) = [rec for rec in found if rec["type"] == "softirq_stats"]
    assert (rec["cpu"], rec["agg"]) == (1, "delta")
    assert rec["threads"] == [{
        "thread": "ksoftirqd", "runs": 4, "unknown": 1, "over": 1, "wakes": 2, "preempted": 1,
        "wait_ns": 20 * MS + 12000, "run_ns": 1700,
    }]  # fmt: skip
    times = {rec["labels"]["time"]: rec for rec in found if rec["type"] == "hist"}
    assert sorted(times) == ["preempt", "turn", "wake"]
    assert times["preempt"]["labels"] == {"cpu": 1, "thread": "ksoftirqd", "time": "preempt"}
    assert times["preempt"]["max"] == 20 * MS


def test_where_a_vector_ran():
    bench = Bench()
    bench.vector((1, 2, 3), (100, 300, 0), unknown=1, delay=(500, 600, 700, 800, 900))
    (row,) = bench.stats()[0]["vectors"]
    assert (row["vector"], row["entries"], row["delays"], row["unknown"]) == ("net_rx", 6, 5, 1)
    assert (row["entries_idle"], row["entries_ksoftirqd"], row["entries_task"]) == (1, 2, 3)
    assert row["ksoftirqd_pct"] == 75.0


def test_an_interval_has_what_is_new_and_the_whole_run_everything():
    bench = Bench()
    bench.vector((0, 0, 3), (0, 0, 9), unknown=3)
    assert bench.stats()[0]["vectors"][0]["entries"] == 3
    bench.vector((0, 0, 5), (0, 0, 9), unknown=5)
    assert bench.stats()[0]["vectors"][0]["entries"] == 2
    assert bench.stats() == []  # nothing new
    totals = bench.stats(last=True)
    assert [rec["cpu"] for rec in totals] == [0, 1]  # an idle CPU has its zeros
    assert [rec["vectors"][0]["entries"] for rec in totals] == [0, 5]
    assert all(rec["holds"] for rec in totals)


@pytest.mark.parametrize("runs, ran", [(3, (0, 0, 1)), (2, (0, 1, 1))])
def test_numbers_that_do_not_add_up_are_told(runs, ran):
    bench = Bench()
    bench.thread(runs=runs, wake=(5000, 6000))
    bench.vector(ran, (0, 0, 5), delay=(500,))
    assert bench.stats(last=True)[1]["holds"] is False


def test_only_what_was_chosen():
    bench = Bench(threads=("napi",), vectors=("net_tx",))
    bench.thread(runs=2, wake=(5000, 6000))
    bench.vector((0, 0, 1), (0, 0, 5), delay=(500,))
    assert bench.stats() == []
    assert bench.obj.config["vectors"] == 1 << NAMES.index("net_tx")
    assert bench.obj.config["classes"] == 1 << 2


def test_only_the_cpus_that_were_chosen():
    bench = Bench(cpus=(1,))
    assert bench.obj.config["cpus"] == b"\x02".ljust(1024, b"\0")
    bench.vector((0, 0, 1), (0, 0, 5), unknown=1, cpu=0)  # not that the kernel would count it
    bench.vector((0, 0, 2), (0, 0, 5), unknown=2)
    assert [rec["cpu"] for rec in bench.stats(last=True)] == [1]


def test_a_thread_that_still_waits_is_named():
    bench = Bench()
    bench.waits(21, since=995 * MS, wait=1)
    bench.waits(14, since=1000 * MS - 5000, cpu=0)  # below the threshold
    bench.waits(22, since=0, run=5)
    (rec,) = bench.stats(now=1000)
    assert rec["waiting"] == [
        {"pid": 21, "comm": "ksoftirqd/1", "kind": "preempt", "waiting_ns": 5 * MS}
    ]


def test_threads_that_have_ended_make_room():
    bench = Bench()
    for pid in range(3000):
        bench.waits(pid + 1, since=0, run=0)
    bench.waits(5000, since=999 * MS)
    bench.waits(5001, since=0, run=7)
    bench.report()
    left = [key for key, _ in bench.obj.map("threads").items()]
    assert left == [5000, 5001]


def test_what_waited_when_the_programs_slept_is_forgotten():
    bench = Bench()
    bench.waits(21, since=995 * MS)
    bench.put("pending", NET_RX, (5, 6, 1), 1)
    bench.engine.resume(bench.writer)
    assert list(bench.obj.map("threads").items()) == []
    assert all(row == [(0, 0, 0), (0, 0, 0)] for _, row in bench.obj.map("pending").items())


def event(bench, **values):
    kind = bench.obj.types.struct("nt_softirq_event")
    fields = {"ts_ns": 5 * MS, "delay_ns": 20 * MS, "cpu": 1, "prev_pid": 900, "prev_prio": 49,
              "prev_comm": b"hog", **values}  # fmt: skip
    return kind.codec.unpack(kind.pack(fields))


def shown(bench, *records):
    bench.stream.truncate(bench.stream.seek(0))
    assert bench.engine.take(records, bench.writer) == len(records)
    found = [json.loads(line) for line in bench.stream.getvalue().splitlines()]
    for rec in found:
        check(rec)
    return found


def test_events():
    bench = Bench(details=True)
    thread, vector = shown(
        bench,
        event(bench, wait=1, what=KSOFTIRQD, pid=21, comm=b"ksoftirqd/1"),
        event(bench, wait=2, what=NET_RX, context=1),
    )
    assert (thread["kind"], thread["thread"], thread["pid"]) == ("preempt", "ksoftirqd", 21)
    assert (thread["prev_comm"], thread["prev_pid"], thread["prev_prio"]) == ("hog", 900, 49)
    assert (vector["kind"], vector["vector"], vector["context"]) == ("raise", "net_rx", "ksoftirqd")
    assert "pid" not in vector
    (line,) = event_lines(thread)
    assert line.endswith("cpu 1 ksoftirqd/1 preempted 20000.0 us, after hog[900] prio 49")
    assert "net_rx raised 20000.0 us, in ksoftirqd, after hog[900] prio 49" in " ".join(
        " ".join(event_lines(vector)).split()
    )


def test_an_event_without_a_known_task():
    bench = Bench(details=True)
    (rec,) = shown(bench, event(bench, wait=2, what=NET_RX, context=1, prev_comm=b""))
    assert "prev_pid" not in rec
    assert "after" not in event_lines(rec)[0]


def test_texts_fit():
    bench = Bench()
    bench.thread(runs=10**9, unknown=1, over=10**9, wake=[10**10] * 150, preempt=[10**10] * 150,
                 turn=(10**9,))  # fmt: skip
    bench.vector((10**9,) * 3, (10**14,) * 3, unknown=5, over=10**9, delay=[10**10] * 150)
    bench.waits(21, since=1)
    view = View(False)
    lines = []
    for last in (False, True):
        for rec in bench.report(last=last):
            rec.setdefault("utc_ns", 0)
            lines += getattr(view, rec["type"])(rec) or []
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert text.count("CPU  waited after") == 2  # one heading for each report
    assert (
        "whole run" in text and "still waits" in text and "33.3 % of it" in " ".join(text.split())
    )
    assert "do not add up" in text


@pytest.mark.parametrize("text, cpus", [
    ("0", (0,)), ("1,5-8", (1, 5, 6, 7, 8)), ("3,1,3", (1, 3)), ("0-1\n", (0, 1)),
    ("8191", (8191,)),
])  # fmt: skip
def test_lists_of_cpus(text, cpus):
    assert parse_list(text) == cpus


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "-1", "3-1", "8192", "1,,2", "0-99999", "1 2", "٣"]
)
def test_no_lists_of_cpus(text):
    with pytest.raises(ValueError):
        parse_list(text)


def test_vectors_by_number():
    text = "   CPU0  CPU1\n      HI:  0  0\n   TIMER: 1 2\n  NET_TX: 0 0\n  NET_RX: 5 6\n"
    assert host_cpus._vectors(text) == ("hi", "timer", "net_tx", "net_rx")


def test_what_a_run_is_told_of_cpus_survives_a_recording():
    told = Cpus((0, 1), (0,), ("hi", "timer"))
    assert Cpus.from_fields(json.loads(json.dumps(told.fields()))) == told


def test_cpus_of_a_host_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(host_cpus, "Path", lambda *_: Path("/nonexistent"))
    with pytest.raises(EnvironmentProblem):
        Cpus.now()
