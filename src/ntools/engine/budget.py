# SPDX-License-Identifier: GPL-2.0-only
"""The budget of events: shared out between CPUs, and what became of every would-be event.

The kernel side (``bpf/include/nt_guard.h``) has a bucket of tokens per CPU. Here its rates are
written, once a second by demand. Records that are made on this side of the channel take part
through a bucket of their own, as if this process were one more CPU.
"""

import time
from typing import TYPE_CHECKING, Callable, List, NamedTuple, Optional, Sequence, Set, Tuple

if TYPE_CHECKING:
    from ntools._loader import BpfObject

__all__ = [
    "Bucket",
    "Gates",
    "RecordedBucket",
    "echo_identity",
    "identity",
    "online_cpus",
    "rate_of",
    "read_gates",
    "shares",
]

_TOKEN = 10**12  # NT_TOKEN
#: Events per second from which on a limit is none: nothing here could ever show so many.
_ENDLESS = 10**6
#: A CPU gets what it asked for and a quarter more, so that jitter is not cut.
_HEADROOM = 1.25
#: What demand decides about; the rest is shared equally, for CPUs that were idle until now.
_BY_DEMAND = 0.9
#: What a bucket decides.
_PASSES, _OFF, _SAMPLED_OUT, _CUT = range(4)
_MIX_A, _MIX_B, _ALL = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, (1 << 64) - 1


class Gates(NamedTuple):
    """Sums over all CPUs of ``struct nt_gate``.

    :ivar matches: packets behind the filter while only counting.
    :ivar wanted: would-be events; each was sampled out, off, cut by the bucket, or went out.
    :ivar demand: what came to the bucket.
    :ivar by_cpu: the same per CPU.
    """

    matches: int = 0
    wanted: int = 0
    sampled_out: int = 0
    off: int = 0
    demand: int = 0
    by_cpu: Tuple[int, ...] = ()


def read_gates(obj: "BpfObject") -> Gates:
    """The gates of a loaded object."""
    rows = obj.map("nt_gates").lookup(0) or []
    matches, wanted, sampled_out, off, demand = (
        sum(row[place] for row in rows) for place in range(5)
    )
    return Gates(matches, wanted, sampled_out, off, demand, tuple(row[4] for row in rows))


def shares(budget: float, demand: Sequence[float], idle: Sequence[bool] = ()) -> List[float]:
    """Events per second for each taker; together the budget.

    :param demand: of the last second.
    :param idle: takers that get nothing unless they have asked, such as CPUs that are offline.
    """
    wishes = [_HEADROOM * one for one in demand]
    takers = [
        bool(wish) or not (place < len(idle) and idle[place]) for place, wish in enumerate(wishes)
    ]
    total = sum(wishes)
    scale = min(1.0, _BY_DEMAND * budget / total) if total else 0.0
    each = (budget - scale * total) / max(1, sum(takers))
    return [scale * wish + each if takes else 0.0 for wish, takes in zip(wishes, takers)]


def rate_of(per_s: float, budget: float) -> Tuple[int, int, int]:
    """``struct nt_rate``: rate per 1000 s, burst in tokens, window in ns; zeros: no limit."""
    if not budget or budget >= _ENDLESS:
        return 0, 0, 0
    rate = max(1, int(per_s * 1000))
    burst = max(rate * 10**9, _TOKEN)
    return rate, burst, burst // rate


def online_cpus(text: str, possible: int) -> List[bool]:
    """Per possible CPU whether it is in a list such as ``0-3,6``."""
    online: Set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            online.update(range(int(first), int(last or first) + 1))
    return [cpu in online for cpu in range(possible)]


class Bucket:
    """The gate of records that are not events of the kernel: same rules, same counters.

    :ivar limit: events per second, infinity: none.
    :ivar shift: one packet in ``2**shift`` passes.
    :ivar off: nothing passes.
    """

    def __init__(self, limit: float = float("inf"), now: float = -1.0) -> None:
        self.limit = limit
        self.shift = 0
        self.off = False
        self.wanted = self.sampled_out = self.switched_off = self.demand = self.cut = 0
        #: Is told every decision; for recordings.
        self.note: Optional[Callable[[int], None]] = None
        self._tokens = max(1.0, limit)
        self._at = time.monotonic() if now < 0 else now

    def passes(self, number: int, now: float = -1.0) -> bool:
        """Whether a record of the packet with this :func:`identity` may be written."""
        decision = self._decide(number, now)
        if self.note is not None:
            self.note(decision)
        self.wanted += 1
        if decision == _OFF:
            self.switched_off += 1
        elif decision == _SAMPLED_OUT:
            self.sampled_out += 1
        else:
            self.demand += 1
            self.cut += decision == _CUT
        return decision == _PASSES

    def counts(self) -> List[int]:
        """All counters, for :meth:`restore`."""
        return [self.wanted, self.sampled_out, self.switched_off, self.demand, self.cut]

    def restore(self, counts: Sequence[int]) -> None:
        """Go on from these counters."""
        self.wanted, self.sampled_out, self.switched_off, self.demand, self.cut = map(int, counts)

    def _decide(self, number: int, now: float) -> int:
        if self.off:
            return _OFF
        if self.shift and number >> (64 - self.shift):
            return _SAMPLED_OUT
        if self.limit >= _ENDLESS:
            return _PASSES
        self._earn(time.monotonic() if now < 0 else now)
        if self._tokens < 1.0:
            return _CUT
        self._tokens -= 1.0
        return _PASSES

    def change(self, limit: float, now: float = -1.0) -> None:
        """Another limit from now on; what was earned until now stays, up to the new burst."""
        self._earn(time.monotonic() if now < 0 else now)
        self.limit = limit
        self._tokens = min(self._tokens, max(1.0, limit))

    def _earn(self, now: float) -> None:
        burst = max(1.0, self.limit)
        self._tokens = min(burst, self._tokens + max(0.0, now - self._at) * self.limit)
        self._at = max(now, self._at)


class RecordedBucket(Bucket):
    """Decides as it was decided when the recording was made.

    :param decision: gives the next decision of the step.
    """

    def __init__(self, decision: Callable[[], int]) -> None:
        super().__init__()
        self._decision = decision

    def _decide(self, number: int, now: float) -> int:
        return self._decision()


def identity(flow: bytes, packet: int) -> int:
    """``nt_key_of()``: 64 bits of a packet, from ``struct nt_tuple`` and its own number."""
    value = _MIX_B
    for start in range(0, 40, 8):
        value = _mix(value, int.from_bytes(flow[start : start + 8], "little"))
    return _mix(value, packet) or 1


def echo_identity(icmp_id: int, seq: int) -> int:
    """The number by which the kernel samples an echo request and its reply."""
    return _mix(_MIX_B, seq << 16 | icmp_id)


def _mix(value: int, word: int) -> int:
    value = ((value ^ word) * _MIX_A) & _ALL
    return value ^ (value >> 29)
