# SPDX-License-Identifier: GPL-2.0-only
"""Histograms: slots, adding, merging, differences, percentiles as intervals.

The scale is log2 with ``sub`` bits of sub-slots. A value below ``2**(sub + 1)`` has a slot of its
own; above, a slot is at most ``1 / 2**sub`` of its lower bound wide. Nothing is dropped: what lies
outside the slots a histogram keeps is counted in ``under`` and ``over``.
"""

from __future__ import annotations

import struct
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

__all__ = [
    "KERNEL_BYTES",
    "PERCENTILES",
    "Histogram",
    "Interval",
    "KernelHistogram",
    "decode_kernel",
    "kernel_cells",
    "slot_bounds",
    "slot_lower",
    "slot_of",
]

#: Inclusive bounds of a value; the upper one is None when nothing limits it.
Interval = Tuple[int, Optional[int]]

#: Percentiles every hist record carries, by their name in the record.
PERCENTILES: Tuple[Tuple[str, float], ...] = (
    ("50", 0.5),
    ("90", 0.9),
    ("99", 0.99),
    ("99.9", 0.999),
)

_SCALE = "log2"
_MILLION = 1000000
# Of records that others made: sums of 64-bit values, and as many sub-slots as anybody needs.
_LARGEST = (1 << 128) - 1
_MAX_SUB = 8

# struct nt_hist: count, sum, min[2], max[2], gen[2], under, over, slots[112].
_KERNEL_SUB = 2
_KERNEL_FIRST = 28
_KERNEL_SLOTS = 112
_KERNEL_STRUCT = struct.Struct(f"<6Q4I{_KERNEL_SLOTS}I")
_U64_PAIR = struct.Struct("<2Q")
_U32_PAIR = struct.Struct("<2I")
KERNEL_BYTES = _KERNEL_STRUCT.size
_U32 = 0xFFFFFFFF

# Positions in the flat tuple.
_COUNT, _SUM, _MIN, _MAX, _GEN, _UNDER, _OVER, _SLOTS = 0, 1, 2, 4, 6, 8, 9, 10
_KERNEL_NUMBERS = _SLOTS + _KERNEL_SLOTS

#: One CPU's struct nt_hist: raw bytes, or its fields with the arrays as bytes.
KernelCell = Union[bytes, Tuple[Any, ...]]


def _whole(value: Any, least: int = 0, most: int = _LARGEST) -> int:
    """A whole number of a record, within bounds."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError("not a histogram: a number out of range")
    return value


def slot_of(value: int, sub: int) -> int:
    """Slot number of ``value`` >= 0 with ``sub`` bits of sub-slots."""
    if value < 1 << (sub + 1):
        return value
    shift = value.bit_length() - 1 - sub
    return (shift << sub) + (value >> shift)


def slot_lower(slot: int, sub: int) -> int:
    """Smallest value that falls into ``slot``."""
    if slot < 1 << (sub + 1):
        return slot
    octave = slot >> sub
    rest = slot & ((1 << sub) - 1)
    return ((1 << sub) + rest) << (octave - 1)


def slot_bounds(slot: int, sub: int) -> Tuple[int, int]:
    """Smallest and largest value that fall into ``slot``."""
    return slot_lower(slot, sub), slot_lower(slot + 1, sub) - 1


class Histogram:
    """Counts per slot plus exact count, sum, min and max.

    :param unit: unit of the values, ``"ns"``, ``"bytes"``, ``"count"``...
    :param sub: bits of sub-slots; 0 gives plain powers of two.
    :param first: first slot kept; lower values are counted in ``under``.
    :param last: last slot kept; higher values are counted in ``over``. None: no limit.

    ``min`` and ``max`` are None when there are no samples or when they are not known.
    """

    __slots__ = (
        "count",
        "first",
        "last",
        "max",
        "min",
        "over",
        "slots",
        "sub",
        "sum",
        "under",
        "unit",
    )

    def __init__(
        self, unit: str = "ns", sub: int = 2, first: int = 0, last: Optional[int] = None
    ) -> None:
        self.unit = unit
        self.sub = sub
        self.first = first
        self.last = last
        self.count = 0
        self.sum = 0
        self.min: Optional[int] = None
        self.max: Optional[int] = None
        self.under = 0
        self.over = 0
        self.slots: Dict[int, int] = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Histogram(unit={self.unit!r}, sub={self.sub}, count={self.count}, "
            f"sum={self.sum}, min={self.min}, max={self.max})"
        )

    def add(self, value: int, times: int = 1) -> None:
        """Count ``value`` ``times`` times. Negative values go to ``under``."""
        self.count += times
        self.sum += value * times
        self.stretch(value, value)
        slot = slot_of(value, self.sub) if value >= 0 else -1
        if slot < self.first:
            self.under += times
        elif self.last is not None and slot > self.last:
            self.over += times
        else:
            self.slots[slot] = self.slots.get(slot, 0) + times

    def stretch(self, low: int, high: int) -> None:
        """Widen ``min`` and ``max`` so that they include ``low`` and ``high``."""
        if self.min is None or low < self.min:
            self.min = low
        if self.max is None or high > self.max:
            self.max = high

    def merge(self, other: Histogram) -> None:
        """Add the samples of ``other``: another CPU, interval or host.

        :raises ValueError: unit, sub-slots or range differ.
        """
        self._check_alike(other)
        empty = not self.count
        self.count += other.count
        self.sum += other.sum
        self.under += other.under
        self.over += other.over
        slots = self.slots
        for slot, times in other.slots.items():
            slots[slot] = slots.get(slot, 0) + times
        if not other.count:
            return
        if other.min is None or other.max is None or (not empty and self.min is None):
            self.min = self.max = None
        else:
            self.stretch(other.min, other.max)

    def minus(self, earlier: Histogram) -> Histogram:
        """The samples that came after ``earlier``; its ``min`` and ``max`` are not known.

        :raises ValueError: unit, sub-slots or range differ, or ``earlier`` is not a part of this.
        """
        self._check_alike(earlier)
        delta = Histogram(self.unit, self.sub, self.first, self.last)
        delta.count = self.count - earlier.count
        delta.sum = self.sum - earlier.sum
        delta.under = self.under - earlier.under
        delta.over = self.over - earlier.over
        for slot in sorted(set(self.slots) | set(earlier.slots)):
            times = self.slots.get(slot, 0) - earlier.slots.get(slot, 0)
            if times:
                delta.slots[slot] = times
        if min(delta.count, delta.under, delta.over, *delta.slots.values()) < 0:
            raise ValueError("histograms cannot be subtracted: the second is not an earlier state")
        return delta

    def copy(self) -> Histogram:
        """An independent copy."""
        twin = Histogram(self.unit, self.sub, self.first, self.last)
        twin.merge(self)
        return twin

    def mean(self) -> Optional[float]:
        """Exact mean, or None without samples."""
        return self.sum / self.count if self.count else None

    def lower(self, slot: int) -> int:
        """Smallest value of ``slot``."""
        return slot_lower(slot, self.sub)

    def range(self) -> Interval:
        """Values that have slots: below the first bound is ``under``, above the second ``over``."""
        high = None if self.last is None else slot_lower(self.last + 1, self.sub) - 1
        return slot_lower(self.first, self.sub), high

    def percentile(self, share: float) -> Optional[Interval]:
        """Bounds of the value below or at which ``share`` of the samples lie.

        The interval is one slot wide and clipped to the exact min and max. Its upper bound is None
        if the value lies in ``over`` and the maximum is not known.

        :param share: 0 < share < 1, in steps of a millionth.
        :return: None with fewer than 1 / (1 - share) samples.
        """
        found = self._locate(share)
        if found is None:
            return None
        low, high, _, _ = found
        return low, high

    def estimate(self, share: float) -> Optional[int]:
        """One value for a percentile: interpolated inside its slot, to be printed with ``~``."""
        found = self._locate(share)
        if found is None:
            return None
        low, high, into, inside = found
        if high is None:
            return low
        return low + (high - low) * into // inside

    def fields(self) -> Dict[str, Any]:
        """The fields of a ``hist`` record, without name, labels and agg."""
        low, high = self.range()
        return {
            "unit": self.unit,
            "scale": _SCALE,
            "sub": self.sub,
            "range": [low, high],
            "count": self.count,
            "sum": self.sum,
            "min": self.min,
            "max": self.max,
            "under": self.under,
            "over": self.over,
            "slots": [[slot, self.slots[slot]] for slot in sorted(self.slots)],
            "p": {name: self._record_percentile(share) for name, share in PERCENTILES},
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Histogram:
        """The histogram of a ``hist`` record.

        :raises ValueError: a scale this version does not know, or no histogram at all.
        """
        if fields.get("scale", _SCALE) != _SCALE:
            raise ValueError(f"histogram scale '{fields['scale']}' is not known")
        try:
            return cls._from_fields(fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a histogram: {error}") from None

    @classmethod
    def _from_fields(cls, fields: Mapping[str, Any]) -> Histogram:
        sub = _whole(fields["sub"], 0, _MAX_SUB)
        low, high = fields.get("range") or (0, None)
        last = None if high is None else slot_of(_whole(high), sub)
        hist = cls(str(fields["unit"]), sub, slot_of(_whole(low), sub), last)
        hist.count = _whole(fields["count"])
        hist.sum = _whole(fields["sum"], -_LARGEST)
        ends = (fields.get("min"), fields.get("max"))
        hist.min, hist.max = [None if end is None else _whole(end, -_LARGEST) for end in ends]
        hist.under = _whole(fields.get("under", 0))
        hist.over = _whole(fields.get("over", 0))
        most = slot_of(_LARGEST, sub)
        hist.slots = {_whole(slot, 0, most): _whole(n) for slot, n in fields["slots"]}
        return hist

    def _record_percentile(self, share: float) -> Optional[List[Optional[int]]]:
        bounds = self.percentile(share)
        return None if bounds is None else list(bounds)

    def _check_alike(self, other: Histogram) -> None:
        mine = (self.unit, self.sub, self.first, self.last)
        theirs = (other.unit, other.sub, other.first, other.last)
        if mine != theirs:
            raise ValueError(f"histograms of different kind: {mine!r} and {theirs!r}")

    def _locate(self, share: float) -> Optional[Tuple[int, Optional[int], int, int]]:
        """Lower and upper bound, rank inside, and samples inside, of the slot of a percentile."""
        parts = round(share * _MILLION)
        if not 0 < parts < _MILLION:
            raise ValueError(f"share {share!r} is not between 0 and 1")
        # The sum over the slots, not ``count``: while the kernel counts, a reading may catch
        # the one before the other.
        total = self.under + self.over + sum(self.slots.values())
        if total * (_MILLION - parts) < _MILLION:
            return None
        rank = -(-parts * total // _MILLION)
        low_end, high_end = self.range()
        if rank <= self.under:
            low = 0 if self.min is None else self.min
            return self._clip(low, low_end - 1, rank, self.under)
        seen = self.under
        for slot in sorted(self.slots):
            times = self.slots[slot]
            if rank <= seen + times:
                low, high = slot_bounds(slot, self.sub)
                return self._clip(low, high, rank - seen, times)
            seen += times
        return self._clip(0 if high_end is None else high_end + 1, None, rank - seen, self.over)

    def _clip(
        self, low: int, high: Optional[int], into: int, inside: int
    ) -> Tuple[int, Optional[int], int, int]:
        if self.min is not None:
            low = max(low, self.min)
        if self.max is not None:
            high = self.max if high is None else min(high, self.max)
        # A reading torn between slot and extreme must not turn the interval around.
        if high is not None and high < low:
            high = low
        return low, high, into, inside


def decode_kernel(cell: KernelCell) -> Tuple[int, ...]:
    """One CPU's ``struct nt_hist`` as flat numbers.

    :raises ValueError: the size does not fit the struct.
    """
    if not isinstance(cell, bytes):
        count, total, low, high, gen, under, over, slots = cell
        numbers = _U32_PAIR.pack(under, over)
        cell = b"".join((_U64_PAIR.pack(count, total), low, high, gen, numbers, slots))
    if len(cell) != KERNEL_BYTES:
        raise ValueError(f"histogram of {len(cell)} bytes, expected {KERNEL_BYTES}")
    return _KERNEL_STRUCT.unpack(cell)


def kernel_cells(values: bytes, stride: int = KERNEL_BYTES) -> List[bytes]:
    """The values of all CPUs, as read in one piece, one by one.

    :param stride: bytes from one CPU's value to the next.
    """
    return [values[at : at + KERNEL_BYTES] for at in range(0, len(values), stride)]


class KernelHistogram:
    """One histogram of the kernel, followed from reading to reading.

    The kernel never resets: every reading is compared with the one before, CPU by CPU, because
    the 32-bit counters wrap. ``total`` holds everything since the kernel's histogram began.
    """

    __slots__ = ("_last", "total")

    def __init__(self, unit: str = "ns") -> None:
        self.total = self._empty(unit)
        self._last: List[Tuple[KernelCell, Tuple[int, ...]]] = []

    def update(self, cpus: Sequence[KernelCell], epoch: Optional[int] = None) -> Histogram:
        """Take a reading; return what was counted since the one before.

        :param cpus: the value of every CPU, always in the same order.
        :param epoch: the epoch that the reader ended just before this reading. It makes ``min``
            and ``max`` known in the returned difference. They may include a sample which the
            kernel took while the reading before was made. None: epochs are not used; extremes
            are in ``total`` only.
        """
        delta = self._empty(self.total.unit)
        last = self._last
        while len(last) < len(cpus):
            last.append((b"", (0,) * _KERNEL_NUMBERS))
        for cpu, cell in enumerate(cpus):
            # Most CPUs saw nothing new; the whole value is compared, not only its count, which
            # a reading may catch before its slot.
            if cell == last[cpu][0]:
                continue
            flat = decode_kernel(cell)
            _add_difference(delta, flat, last[cpu][1])
            for low, high, gen in _extremes(flat):
                self.total.stretch(low, high)
                if epoch is not None and gen in (epoch, epoch + 1):
                    delta.stretch(low, high)
            last[cpu] = (cell, flat)
        self._count(delta)
        return delta

    def _count(self, delta: Histogram) -> None:
        low, high = self.total.min, self.total.max
        self.total.merge(delta)
        self.total.min, self.total.max = low, high

    @staticmethod
    def _empty(unit: str) -> Histogram:
        return Histogram(unit, _KERNEL_SUB, _KERNEL_FIRST, _KERNEL_FIRST + _KERNEL_SLOTS - 1)


def _extremes(flat: Sequence[int]) -> Iterator[Tuple[int, int, int]]:
    """Min, max and epoch of the cells that were ever written."""
    for cell in (0, 1):
        if flat[_GEN + cell]:
            yield flat[_MIN + cell], flat[_MAX + cell], flat[_GEN + cell]


def _add_difference(delta: Histogram, now: Sequence[int], before: Sequence[int]) -> None:
    delta.count += now[_COUNT] - before[_COUNT]
    delta.sum += now[_SUM] - before[_SUM]
    delta.under += (now[_UNDER] - before[_UNDER]) & _U32
    delta.over += (now[_OVER] - before[_OVER]) & _U32
    slots = delta.slots
    for position in range(_SLOTS, _KERNEL_NUMBERS):
        if now[position] != before[position]:
            slot = position - _SLOTS + _KERNEL_FIRST
            times = (now[position] - before[position]) & _U32
            slots[slot] = slots.get(slot, 0) + times
