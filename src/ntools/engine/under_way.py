# SPDX-License-Identifier: GPL-2.0-only
"""Packets the kernel follows at the moment: those that no longer move, and those it gave up."""

from typing import Any, Iterator, List, Sequence, Tuple

from ntools._loader.maps import MapView

__all__ = ["UnderWay"]

_Record = Tuple[Any, ...]


class UnderWay:
    """Flights in the kernel's maps.

    :param obj: its flights, loaded or from a recording.
    :param read: has their ``codec``, and ``at``: where in a record a field is, by its name.
    :param names: maps with packets that have not ended; those there are in this object.
    """

    def __init__(self, obj: Any, read: Any, names: Sequence[str]) -> None:
        self._obj, self._read, self._names = obj, read, names

    def overdue(self, limit_ns: int) -> Iterator[_Record]:
        """Flights whose last stage was before a moment, taken out of their maps."""
        last = self._read.at["last_ns"]
        unpack = self._read.codec.unpack
        for flights in self._maps():
            for key, value in list(flights.items_bytes()):
                if unpack(value)[last] >= limit_ns:
                    continue
                record = flights.lookup(key)
                # Gone: it completed meanwhile. Moved: it is alive after all.
                if record is None or record[last] >= limit_ns or not flights.delete(key):
                    continue
                yield record

    def all(self) -> Iterator[_Record]:
        """Every flight, left where it is."""
        for flights in self._maps():
            for _, value in list(flights.items_bytes()):
                yield self._read.codec.unpack(value)

    def given_up(self) -> Iterator[_Record]:
        """Every flight, taken out."""
        for flights in self._maps():
            for key, value in list(flights.items_bytes()):
                if flights.delete(key):
                    yield self._read.codec.unpack(value)

    def graves(self) -> Iterator[_Record]:
        """Flights whose buffer went to another packet, taken out of their map."""
        graves = self._obj.map("graves")
        for key, value in list(graves.items_bytes()):
            graves.delete(key)
            yield self._read.codec.unpack(value)

    def any(self) -> bool:
        """Whether there is one."""
        return any(True for flights in self._maps() for _ in flights.items_bytes())

    def _maps(self) -> List[MapView]:
        return [self._obj.map(name) for name in self._names]
