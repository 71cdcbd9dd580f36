# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel itself counts of softirqs and ksoftirqd, and load that keeps them from running.

A counter of /proc can be compared exactly with what a command reports, although the two are not
read at one time: where two reports in a row have nothing new, whatever was read between them fits
the sum of the reports until there.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

from lab.netns import Namespace, stop_process

__all__ = ["Busy", "Counters", "Witness", "busy", "flood", "ksoftirqds", "sums"]

_COPIES = 16
_BUSY = """
import os, sys, time
cpu, busy_s, each_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
os.sched_setaffinity(0, {cpu})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
print("busy", flush=True)
next_s = time.monotonic()
while True:
    while time.monotonic() < next_s + busy_s:
        pass
    next_s += each_s
    time.sleep(max(0.0, next_s - time.monotonic()))
    next_s = max(next_s, time.monotonic())
"""
_FLOOD = """
import os, socket, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("192.168.71.9", 9))
print("sends", flush=True)
while True:
    for _ in range(200):
        try:
            sock.send(b"x")
        except OSError:
            pass
    time.sleep(0.01)
"""


def ksoftirqds() -> Dict[int, int]:
    """CPU -> process id of its ksoftirqd."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            match = re.fullmatch(r"ksoftirqd/(\d+)\n", path.read_text())
            if match:
                found[int(match[1])] = int(path.parent.name)
    return found


@dataclass
class Counters:
    """What /proc said, between two moments of the monotonic clock.

    :ivar entries: (vector, CPU) -> how often it ran.
    :ivar threads: CPU -> (runs of its ksoftirqd, how long it waited for them in ns).
    """

    before_ns: int
    after_ns: int
    entries: Dict[Tuple[str, int], int]
    threads: Dict[int, Tuple[int, int]]


@dataclass
class Witness:
    """Reads /proc again and again; compares with the reports of a command."""

    pids: Dict[int, int] = field(default_factory=ksoftirqds)
    seen: List[Counters] = field(default_factory=list)

    def look(self, seconds: float) -> None:
        """Read for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.seen.append(self._read())
            time.sleep(0.02)

    def look_until(self, fits: Callable[[], Any], limit_s: float) -> None:
        """Read until a condition holds, or the time is over."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end and not fits():
            self.look(0.2)

    def _read(self) -> Counters:
        before_ns = time.monotonic_ns()
        entries = {}
        head, *rows = Path("/proc/softirqs").read_text().splitlines()
        cpus = [int(word[3:]) for word in head.split()]
        for row in rows:
            name, _, numbers = row.partition(":")
            for cpu, number in zip(cpus, numbers.split()):
                entries[name.strip().lower(), cpu] = int(number)
        threads = {}
        for cpu, pid in self.pids.items():
            _, waited_ns, runs = Path(f"/proc/{pid}/schedstat").read_text().split()
            threads[cpu] = int(runs), int(waited_ns)
        return Counters(before_ns, time.monotonic_ns(), entries, threads)

    def edges(
        self, records: Sequence[Dict[str, Any]], pick: Callable[[Dict[str, Any]], int], cpu: int
    ) -> List[Tuple[int, Counters]]:
        """(sum of all reports so far, what /proc said then), for each reading that surely fits.

        Report i is read after its time and before that of report i + 1. So nothing new in i and in
        i + 1 means nothing new between the times of the two.

        :param pick: the number in question of a ``softirq_stats`` record.
        """
        reports: List[Tuple[int, int]] = []
        for rec in records:
            if rec["type"] == "interval":
                reports.append((rec["end_ns"], 0))
            elif rec["type"] == "softirq_stats" and rec["agg"] == "delta" and rec["cpu"] == cpu:
                at, found = reports[-1]
                reports[-1] = at, found + pick(rec)
        edges = []
        total = 0
        for (start_ns, new), (end_ns, newer) in zip(reports, reports[1:]):
            total += new
            if new or newer:
                continue
            edges += [
                (total, one)
                for one in self.seen
                if start_ns <= one.before_ns and one.after_ns <= end_ns
            ]
        return edges


def sums(rec: Dict[str, Any], kind: str, name: str) -> Dict[str, Any]:
    """The row of a thread class or a vector in a ``softirq_stats`` record."""
    (row,) = [row for row in rec[kind + "s"] if row[kind] == name]
    return dict(row)


@dataclass
class Busy:
    """A process that only burns time."""

    pid: int


@contextlib.contextmanager
def busy(cpu: int, busy_s: float, each_s: float) -> Iterator[Busy]:
    """A real-time task (SCHED_FIFO 50) on one CPU, busy for a while again and again."""
    process = subprocess.Popen(
        [sys.executable, "-c", _BUSY, str(cpu), str(busy_s), str(each_s)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"busy\n", "no SCHED_FIFO for this process"
        yield Busy(process.pid)
    finally:
        stop_process(process, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


@contextlib.contextmanager
def flood(a: Namespace, h: Namespace, sender: int, receiver: int) -> Iterator[None]:
    """One CPU sends bursts that are too much for another: H copies each packet to many devices.

    A softirq that has not done with a burst in 2 ms leaves the rest to ksoftirqd.
    """
    h.ip(
        f"link add fh type veth peer name fa netns {a.name}",
        "link add fb type bridge",
        "link set fh master fb",
        *(f"link add fd{n} type veth peer name fe{n}" for n in range(_COPIES)),
        *(f"link set fd{n} master fb" for n in range(_COPIES)),
        *(f"link set {dev}{n} up" for n in range(_COPIES) for dev in ("fe", "fd")),
        "link set fh up",
        "link set fb up",
    )
    a.ip(
        "addr add 192.168.71.1/24 dev fa",
        "link set fa up",
        "neigh add 192.168.71.9 lladdr 02:00:00:00:00:09 dev fa nud permanent",
    )
    steer = f"echo {1 << receiver:x} > /sys/class/net/fh/queues/rx-0/rps_cpus"
    done = h.popen(["sh", "-c", steer], own_sys=True, stderr=subprocess.PIPE)
    _, problem = done.communicate()
    assert not done.returncode, problem
    process = a.popen([sys.executable, "-c", _FLOOD, str(sender)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sends\n"
        os.sched_yield()
        yield
    finally:
        stop_process(process, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()
