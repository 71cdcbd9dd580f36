# SPDX-License-Identifier: GPL-2.0-only
"""The stream of records: header first, summary last, and sinks that show or keep it.

A command makes records with :class:`Writer`; every :class:`Sink` gets the same ones, in emission
order, so that the text on a terminal cannot tell more than the JSON lines.
"""

from __future__ import annotations

import abc
import os
from math import isfinite
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, TextIO, Tuple, Union

from ntools import __version__
from ntools.model.clock import Clock, ClockChange

from .stream import LineStream, printable, printable_bytes

__all__ = ["SCHEMA", "JsonSink", "Record", "Sink", "Writer"]

#: Major version of the records; raised only when an older reader would misread.
SCHEMA = 1

Record = Dict[str, Any]

# Records in which ``lost`` is the breakdown by cause, not the sum.
_WITH_CAUSES = frozenset(("interval", "summary"))


class Sink(abc.ABC):
    """Something that takes the records of one run."""

    @property
    def broken(self) -> bool:
        """Whether nobody takes the records any more: the run should end."""
        return False

    def header(self, rec: Record) -> None:
        """The constants of the run; the first call."""
        self.record(rec)

    @abc.abstractmethod
    def record(self, rec: Record) -> None:
        """Any record between header and summary."""

    def summary(self, rec: Record) -> None:
        """The last record."""
        self.record(rec)

    def close(self) -> None:  # noqa: B027  # most have nothing to give back
        """Give resources back; the stream itself belongs to the caller."""


class JsonSink(Sink):
    """JSON lines: one object per line, ASCII, flushed per line."""

    def __init__(self, stream: TextIO) -> None:
        # json costs some milliseconds that a run with text output need not pay.
        import json

        encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"), check_circular=False)
        self._encode: Callable[[Record], str] = encoder.encode
        self._lines = LineStream(stream)

    @property
    def broken(self) -> bool:
        """Whether the reader of the stream has gone."""
        return self._lines.broken

    def record(self, rec: Record) -> None:
        """Write one line."""
        self._lines.write((self._encode(rec),))


class Writer:
    """Makes records complete and hands them to the sinks.

    It adds the envelope (``type``, ``seq``, ``ts_ns``, ``utc_ns``, ``lost``), counts what was
    emitted, watches the wall clock and writes ``clock`` records, and makes every value fit for
    JSON: fields that are None are left out, NaN and infinity are None, bytes and control
    characters are escaped.

    :param out: a sink, several, or a stream for JSON lines.
    :param tool: name of the command.
    :param version: of the product.
    :param clock: for tests and replay; measured now if absent.
    """

    def __init__(
        self,
        out: Union[Sink, Sequence[Sink], TextIO],
        tool: str,
        version: str = __version__,
        clock: Optional[Clock] = None,
    ) -> None:
        self._sinks = _as_sinks(out)
        self._tool = tool
        self._version = version
        self._clock = clock if clock is not None else Clock()
        self._seq = 0
        self._seen: Dict[str, int] = {}
        self._lost: Dict[str, int] = {}
        self._lost_sum = 0
        self._start_ns = self._clock.now()
        self._state = "new"
        #: Monotonic time of records that bring none; None: when they are emitted.
        self.now_ns: Optional[int] = None
        #: Records are neither counted nor shown.
        self.muted = False
        #: Monotonic times; records from outside are neither counted nor shown.
        self.window: Optional[Tuple[int, int]] = None

    @property
    def broken(self) -> bool:
        """Whether a sink has lost its reader: the run should end."""
        return any(sink.broken for sink in self._sinks)

    @property
    def clock(self) -> Clock:
        """The clock whose offset gives ``utc_ns``."""
        return self._clock

    @property
    def lost(self) -> Dict[str, int]:
        """Losses by cause so far; setting them replaces all causes."""
        return dict(self._lost)

    @lost.setter
    def lost(self, causes: Mapping[str, int]) -> None:
        self._lost = dict(causes)
        self._lost_sum = sum(self._lost.values())

    def header(self, **fields: Any) -> Record:
        """Emit the header: the constants of the run. Must come first, once."""
        return self.emit_header(self.draft_header(**fields))

    def draft_header(self, **fields: Any) -> Record:
        """The header as :meth:`emit_header` takes it."""
        rec: Record = {
            "type": "header",
            "schema": SCHEMA,
            "tool": self._tool,
            "version": self._version,
            "run": os.urandom(16).hex(),
            "clock": "monotonic",
            "start_ns": self._start_ns,
            "epoch_offset_ns": self._clock.offset_ns,
            "epoch_error_ns": self._clock.error_ns,
        }
        rec.update(fields)
        return _clean_record(rec)

    def repeat_header(self, rec: Mapping[str, Any]) -> Record:
        """Emit the header of a recording: all but the run is as it was."""
        self._start_ns = int(rec["start_ns"])
        self._clock.set(int(rec["epoch_offset_ns"]), int(rec["epoch_error_ns"]))
        return self.emit_header(_clean_record(dict(rec, run=os.urandom(16).hex())))

    def emit_header(self, rec: Record) -> Record:
        """Emit a header that was drafted before."""
        self._step("new", "header")
        for sink in self._sinks:
            sink.header(rec)
        return rec

    def record(self, type: str, ts_ns: Optional[int] = None, **fields: Any) -> Record:
        """Emit a record.

        :param type: its type; one that has a schema.
        :param ts_ns: monotonic time of the event; :attr:`now_ns` if None.
        :return: the record as the sinks got it, with its ``seq``.
        """
        self._expect("header")
        if self.now_ns is None:
            self.tick()
        if ts_ns is None:
            ts_ns = self._now()
        if self.muted or (self.window and not self.window[0] <= ts_ns <= self.window[1]):
            return {}
        rec = self._envelope(type, ts_ns, fields)
        for sink in self._sinks:
            sink.record(rec)
        return rec

    def tick(self) -> None:
        """Watch the wall clock: to be called at least once a minute when nothing is emitted.

        Writes a ``clock`` record when one is due or the clock was set.
        """
        self._expect("header")
        change = self._clock.poll()
        if change is not None:
            self.set_clock(change)

    def set_clock(self, change: ClockChange) -> None:
        """Use another offset of the wall clock from now on, and say so."""
        self._clock.set(change.offset_ns, change.error_ns)
        rec = self._envelope(
            "clock",
            change.ts_ns,
            {
                "epoch_offset_ns": change.offset_ns,
                "epoch_error_ns": change.error_ns,
                "step_ns": change.step_ns,
            },
        )
        for sink in self._sinks:
            sink.record(rec)

    def summary(self, end: str, **fields: Any) -> Record:
        """Emit the summary, the last record.

        :param end: why the run ended: count, duration, signal, governor or error.
        """
        self._step("header", "done")
        now = self._now()
        totals: Dict[str, Any] = {
            "duration_ns": now - self._start_ns,
            "end": end,
            "seen": dict(self._seen),
        }
        totals.update(fields)
        rec = self._envelope("summary", now, totals)
        for sink in self._sinks:
            sink.summary(rec)
        return rec

    def close(self) -> None:
        """Close the sinks. A stream without summary tells its reader that it was cut."""
        for sink in self._sinks:
            sink.close()

    def _now(self) -> int:
        return self._clock.now() if self.now_ns is None else self.now_ns

    def _envelope(self, type: str, ts_ns: int, fields: Mapping[str, Any]) -> Record:
        self._seq += 1
        self._seen[type] = self._seen.get(type, 0) + 1
        rec: Record = {
            "type": type,
            "seq": self._seq,
            "ts_ns": ts_ns,
            "utc_ns": ts_ns + self._clock.offset_ns,
        }
        if type in _WITH_CAUSES:
            rec["lost"] = dict(self._lost)
        elif self._lost_sum:
            rec["lost"] = self._lost_sum
        for name, value in fields.items():
            if name in rec:
                raise ValueError(f"field '{name}' of '{type}' is part of the envelope")
            rec[name] = value
        return _clean_record(rec)

    def _expect(self, state: str) -> None:
        if self._state != state:
            raise RuntimeError(f"records out of order: {state} expected, is {self._state}")

    def _step(self, state: str, following: str) -> None:
        self._expect(state)
        self._state = following


def _as_sinks(out: Union[Sink, Sequence[Sink], TextIO]) -> List[Sink]:
    if isinstance(out, Sink):
        return [out]
    if isinstance(out, (list, tuple)):
        return list(out)
    return [JsonSink(out)]  # type: ignore[arg-type]


def _clean_record(rec: Record) -> Record:
    cleaned = {}
    for name, value in rec.items():
        value = _clean(value)
        if value is not None:
            cleaned[name] = value
    return cleaned


def _clean(value: Any) -> Any:
    """The value as JSON can carry it; None for NaN and infinity."""
    kind = type(value)
    if kind is int or value is None or kind is bool:
        return value
    if kind is str:
        return value if value.isprintable() else printable(value)
    if kind is float:
        return value if isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean_key(name): _clean(item) for name, item in value.items()}
    if isinstance(value, (bytes, bytearray)):
        return printable_bytes(bytes(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return printable(value)
    raise TypeError(f"a record cannot carry a {kind.__name__}")


def _clean_key(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the key {name!r} of a record is not text")
    return printable(name)
