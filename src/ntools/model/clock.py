# SPDX-License-Identifier: GPL-2.0-only
"""Monotonic time, the kernel's time base, and its distance to wall time."""

from __future__ import annotations

import re
import time
from typing import Callable, NamedTuple, Optional

__all__ = [
    "CLOCK_INTERVAL_NS",
    "CLOCK_STEP_NS",
    "Clock",
    "ClockChange",
    "Moment",
    "Offset",
    "measure",
    "parse_moment",
    "utc_text",
    "wall_text",
]

#: The offset is written anew this often...
CLOCK_INTERVAL_NS = 60 * 10**9
#: ...and whenever the wall clock was set by more than this.
CLOCK_STEP_NS = 10**6

_TRIES = 5
_OFFSET = re.compile(r"\+([0-9]{1,9})(?:\.([0-9]{1,9}))?")
_UTC = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?Z?"
)

Reader = Callable[[], int]


class Offset(NamedTuple):
    """Wall time (UTC) minus monotonic time.

    :ivar offset_ns: UTC - monotonic.
    :ivar error_ns: half of the distance of the two readings of the one clock that bracket the
        reading of the other.
    """

    offset_ns: int
    error_ns: int


class ClockChange(NamedTuple):
    """A new measurement that is due or follows a step.

    :ivar ts_ns: monotonic time.
    :ivar step_ns: by how much the offset differs from the one before.
    """

    ts_ns: int
    offset_ns: int
    error_ns: int
    step_ns: int


class Moment(NamedTuple):
    """A time somebody typed.

    :ivar is_offset: counted from the start of a run; else UTC.
    """

    is_offset: bool
    ns: int


def measure(monotonic: Reader = time.monotonic_ns, wall: Reader = time.time_ns) -> Offset:
    """Offset of the two clocks: the tightest of five bracketed readings."""
    best: Optional[Offset] = None
    for _ in range(_TRIES):
        before = monotonic()
        utc = wall()
        after = monotonic()
        error = (after - before + 1) // 2
        if best is None or error < best.error_ns:
            best = Offset(utc - (before + after) // 2, error)
    assert best is not None
    return best


class Clock:
    """Offset of wall time to monotonic time, kept right while the run goes on."""

    def __init__(self, monotonic: Reader = time.monotonic_ns, wall: Reader = time.time_ns) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self.offset_ns, self.error_ns = measure(monotonic, wall)
        self._written_ns = monotonic()

    def now(self) -> int:
        """Monotonic time in ns: the time base of every event of the kernel."""
        return self._monotonic()

    def utc(self, ts_ns: int) -> int:
        """UTC in ns of a monotonic time, by the offset valid now."""
        return ts_ns + self.offset_ns

    def set(self, offset_ns: int, error_ns: int) -> None:
        """Take over an offset measured elsewhere."""
        self.offset_ns, self.error_ns = offset_ns, error_ns

    def poll(self) -> Optional[ClockChange]:
        """Measure again if the wall clock seems to have been set, or if it is time to.

        Cheap (two clock readings) when neither is the case.
        """
        now = self._monotonic()
        due = now - self._written_ns >= CLOCK_INTERVAL_NS
        if not due and abs(self._wall() - now - self.offset_ns) <= CLOCK_STEP_NS:
            return None
        fresh = measure(self._monotonic, self._wall)
        step = fresh.offset_ns - self.offset_ns
        # A delay between the two readings above looks like a step: measured again, it is none.
        if not due and abs(step) <= CLOCK_STEP_NS:
            return None
        self.offset_ns, self.error_ns = fresh
        self._written_ns = now
        return ClockChange(now, fresh.offset_ns, fresh.error_ns, step)


def wall_text(utc_ns: int, decimals: int = 6, date: bool = False) -> str:
    """Local wall time ``14:50:23.118204``, with ``2026-01-02`` before it if ``date``."""
    seconds, rest = divmod(utc_ns, 10**9)
    text = time.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S", time.localtime(seconds))
    return text + _fraction(rest, decimals)


def utc_text(utc_ns: int, decimals: int = 6) -> str:
    """Wall time in UTC, ``2026-01-02T14:50:23.118204Z``."""
    seconds, rest = divmod(utc_ns, 10**9)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return text + _fraction(rest, decimals) + "Z"


def parse_moment(text: str) -> "Moment":
    """``+12.5``: seconds after the start; ``2026-01-31T08:15:00.5`` (a Z may follow): UTC.

    :raises ValueError: neither.
    """
    offset = _OFFSET.fullmatch(text)
    if offset:
        return Moment(True, _ns(int(offset.group(1)), offset.group(2)))
    found = _UTC.fullmatch(text)
    if found:
        import calendar

        try:
            parts = time.strptime(found.group(1).replace(" ", "T"), "%Y-%m-%dT%H:%M:%S")
        except ValueError:
            pass
        else:
            return Moment(False, _ns(calendar.timegm(parts), found.group(2)))
    raise ValueError(f"'{text}' is not a time such as +12.5 or 2026-01-31T08:15:00")


def _ns(seconds: int, fraction: Optional[str]) -> int:
    return seconds * 10**9 + int((fraction or "0").ljust(9, "0")[:9])


def _fraction(ns: int, decimals: int) -> str:
    if not decimals:
        return ""
    return f".{ns // 10 ** (9 - decimals):0{decimals}d}"
