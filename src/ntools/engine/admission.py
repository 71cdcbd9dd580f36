# SPDX-License-Identifier: GPL-2.0-only
"""What is refused before a run begins, and the test that counts before it follows.

A refusal is exit status 5 and names figures and a way out; ``--force`` overrides. Nothing here
loads a second object: the test runs on the programs that are attached already.
"""

import errno
import os
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from ntools.errors import SafetyRefusal
from ntools.model import flow
from ntools.model.filter import PacketFilter
from ntools.model.units import size_text

__all__ = ["Admission", "Memory", "RunLock", "check_memory", "flow_options", "is_one_flow"]

_LEAST_BYTES = 64 << 20
_LEAST_PCT = 5.0
_MOST_MAPS_PCT = 5.0
#: Where the locks are; the first that can be used. Both are empty after a boot.
_DIRECTORIES = ("/run/ntools", "/dev/shm/ntools-{uid}")


class Memory(NamedTuple):
    """Memory of the host, bytes."""

    total: int
    available: int

    @property
    def available_pct(self) -> float:
        """What is available, in percent."""
        return 100.0 * self.available / self.total

    @classmethod
    def from_text(cls, text: str) -> "Optional[Memory]":
        """From the content of ``/proc/meminfo``; None when it does not tell."""
        found = {}
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(value.split()[0]) << 10
        if len(found) < 2 or not found["MemTotal"]:
            return None
        return cls(found["MemTotal"], found["MemAvailable"])

    @classmethod
    def now(cls) -> "Optional[Memory]":
        """Of this host."""
        try:
            with open("/proc/meminfo") as file:
                return cls.from_text(file.read())
        except OSError:
            return None


def check_memory(memory: Optional[Memory], map_bytes: int) -> None:
    """Refuse on a host that is short of memory, or maps that would make it so.

    :raises SafetyRefusal: with the figures.
    """
    if memory is None:
        return
    if memory.available < _LEAST_BYTES or memory.available_pct < _LEAST_PCT:
        raise SafetyRefusal(
            "refused: {} of {} memory are available ({:.1f} %), at least {} and {:g} % are needed. "
            "Free some, or override with --force.".format(
                size_text(memory.available), size_text(memory.total), memory.available_pct,
                size_text(_LEAST_BYTES), _LEAST_PCT,
            )
        )  # fmt: skip
    if map_bytes * 100.0 > memory.total * _MOST_MAPS_PCT:
        raise SafetyRefusal(
            "refused: the maps of this run take {} of {} memory ({:.1f} %), at most {:g} % are "
            "allowed. Give smaller sizes (see --dry-run), or override with --force.".format(
                size_text(map_bytes), size_text(memory.total), 100.0 * map_bytes / memory.total,
                _MOST_MAPS_PCT,
            )
        )  # fmt: skip


def is_one_flow(flt: PacketFilter) -> bool:
    """Whether a filter narrows a run down to about one conversation per rule.

    Both addresses do. So does one address together with a port.
    """
    return bool(flt.rules) and all(
        (rule.src_ip and rule.dst_ip)
        or ((rule.src_ip or rule.dst_ip) and (rule.src_port or rule.dst_port))
        for rule in flt.rules
    )


class RunLock:
    """One run of the kind that costs per event, per engine and host.

    A lock on a file in /run/ntools, so it goes with the process however that ends; the file stays
    and means nothing. Where /run cannot be written, one per user in /dev/shm takes its place. Who
    has another /run, as containers do, has other locks: runs there are not seen from here.
    NTOOLS_RUN_DIR names another directory.
    """

    def __init__(self, engine: str, directories: Sequence[str] = ()) -> None:
        chosen = os.environ.get("NTOOLS_RUN_DIR")
        self._directories = directories or ((chosen,) if chosen else _DIRECTORIES)
        self._engine = engine
        self._fd = -1

    def take(self, command: str) -> bool:
        """Take the lock; False where no directory can be used.

        :raises SafetyRefusal: another run has it; names its process.
        """
        import fcntl

        descriptor = self._open()
        if descriptor < 0:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            holder = os.pread(descriptor, 200, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if problem.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise SafetyRefusal(
                "refused: another run with single events is going on here: {}. Wait for its end, "
                "run a summary beside it, or override with --force.".format(
                    holder or "its process has not said who it is yet"
                )
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, "process {} ({})\n".format(os.getpid(), command).encode(), 0)
        self._fd = descriptor
        return True

    def release(self) -> None:
        """Give it back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        """The lock file, of a directory that is ours and nobody else can write."""
        for name in self._directories:
            directory = name.format(uid=os.getuid())
            try:
                os.makedirs(directory, mode=0o755, exist_ok=True)
                status = os.lstat(directory)
                if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
                    continue
                path = os.path.join(directory, self._engine + ".lock")
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            except OSError:
                continue
        return -1


class Admission(NamedTuple):
    """What counting for a moment has told.

    :ivar hooks_per_s: runs of all programs, None where the kernel does not count them.
    :ivar run_ns: mean of a run that only counts.
    :ivar bpf_pct: of the time of all CPUs the run will cost, the events included.
    :ivar events_per_s: events the run will want; None: bounded by a threshold.
    :ivar flows: the busiest flows and their share of the matches (0..1).
    """

    hooks_per_s: Optional[float]
    run_ns: Optional[float]
    matches_per_s: float
    bpf_pct: float
    events_per_s: Optional[float]
    flows: Tuple[Tuple[flow.Flow, float], ...] = ()

    def fields(self) -> Dict[str, Any]:
        """As in the header record."""
        return {
            "hooks_per_s": None if self.hooks_per_s is None else round(self.hooks_per_s, 1),
            "run_ns": None if self.run_ns is None else round(self.run_ns, 1),
            "matches_per_s": round(self.matches_per_s, 1),
            "bpf_pct": round(self.bpf_pct, 4),
            "events_per_s": None if self.events_per_s is None else round(self.events_per_s, 1),
            "flows": [
                {"share_ratio": round(share, 4), "flow": one.fields()} for one, share in self.flows
            ],
        }

    def lines(self) -> List[str]:
        """What the user is told: one line, or two when there were matches."""
        hooks = "hook rate not known"
        if self.hooks_per_s is not None:
            hooks = "{:.0f} hook runs/s of {:.0f} ns".format(self.hooks_per_s, self.run_ns or 0)
        text = "admission: {}, {:.0f} matches/s".format(hooks, self.matches_per_s)
        if self.events_per_s is None:
            text += ", events by threshold"
        else:
            text += ", about {:.0f} events/s".format(self.events_per_s)
        lines = [text + ", {:.3f} % of all CPUs".format(self.bpf_pct)]
        if self.flows:
            lines.append("admission: busiest flow: " + _flow_text(self.flows))
        return lines

    def judge(self, max_events: float, max_overhead_pct: float, advice: str) -> None:
        """Refuse what would exceed a limit.

        :param advice: what else answers the question, a sentence.
        :raises SafetyRefusal: with the measured rate, the limit, and the busiest flow.
        """
        if self.events_per_s is not None and max_events and self.events_per_s > max_events:
            told = "{:.0f} events/s match, the limit is {:g}/s (--max-events)".format(
                self.events_per_s, max_events
            )
        elif max_overhead_pct and self.bpf_pct > max_overhead_pct:
            told = (
                "{:.0f} hook runs/s and {:.0f} matches/s would take {:.2f} % of all CPUs, the "
                "limit is {:g} % (--max-overhead)".format(
                    self.hooks_per_s or 0, self.matches_per_s, self.bpf_pct, max_overhead_pct
                )
            )
        else:
            return
        parts = ["refused: " + told]
        if self.flows:
            parts.append("The busiest flow: " + _flow_text(self.flows))
        parts.append("Narrow the filter" + (", or " + advice if advice else ""))
        raise SafetyRefusal(". ".join(parts) + "; --force overrides.")


def flow_options(one: flow.Flow) -> str:
    """A flow as filter options."""
    fields = one.fields()
    parts: List[str] = []
    for name in ("protocol", "src_ip", "dst_ip", "src_port", "dst_port"):
        if fields.get(name) is not None:
            parts += ["--" + name.replace("_", "-"), str(fields[name])]
    if not parts:
        return str(fields.get("eth_type", "not IP"))
    return " ".join(parts)


def busiest(
    rows: Iterable[Tuple[Tuple[Any, ...], int]], matches: int, most: int = 10
) -> Tuple[Tuple[flow.Flow, float], ...]:
    """The largest flows of the map ``nt_flows`` with their shares."""
    ordered = sorted(rows, key=lambda row: row[1], reverse=True)[:most]
    return tuple((flow.Flow.from_kernel(key), count / matches) for key, count in ordered if matches)


def _flow_text(flows: Sequence[Tuple[flow.Flow, float]]) -> str:
    return "{} ({:.0f} % of the matches)".format(flow_options(flows[0][0]), 100 * flows[0][1])
