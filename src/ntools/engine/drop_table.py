# SPDX-License-Identifier: GPL-2.0-only
"""The table of a drop summary, made of the kernel's rows.

The kernel tells more apart than a row shows: the class of a drop follows from its reason, place and
facts. A report reads every row the kernel has, a million at most, so all that is done for each is
cutting bytes and adding; names and fields are made only for rows that are shown.
"""

import heapq
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

from ntools._loader.btf import StructType

__all__ = ["DropTable", "Kind", "Row"]


class Kind(NamedTuple):
    """What a row shows besides flow and stack.

    :ivar same: equal for kernel rows that look the same.
    :ivar wanted: rows of this class are shown.
    """

    same: Tuple[Any, ...]
    wanted: bool


class Row:
    """One row of a report: sums over the kernel's rows that look the same.

    :ivar key: bytes of one of them; empty: of several different ones.
    :ivar packets, bytes: since the last report.
    """

    __slots__ = (
        "key", "packets", "bytes", "total_packets", "total_bytes", "first_ns", "last_ns"
    )  # fmt: skip

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.packets = self.bytes = self.total_packets = self.total_bytes = 0
        self.first_ns: Optional[int] = None
        self.last_ns: Optional[int] = None

    def add(self, packets: int, size: int, first_ns: Optional[int], last_ns: Optional[int]) -> None:
        """Add totals and times of another row."""
        self.total_packets += packets
        self.total_bytes += size
        if first_ns and (not self.first_ns or first_ns < self.first_ns):
            self.first_ns = first_ns
        if last_ns and (not self.last_ns or last_ns > self.last_ns):
            self.last_ns = last_ns

    def join(self, row: "Row") -> None:
        """Add all of another row."""
        self.add(row.total_packets, row.total_bytes, row.first_ns, row.last_ns)
        self.packets += row.packets
        self.bytes += row.bytes


class DropTable:
    """Rows over the run.

    :param key, value: layouts of the kernel's rows.
    :param kind: what a row with this key shows.
    :ivar hidden: packets of rows that are not wanted, as of the last report.
    :ivar shown: packets of all others.
    """

    def __init__(
        self,
        key: StructType,
        value: StructType,
        kind: Callable[[Tuple[Any, ...]], Kind],
    ) -> None:
        self._key, self._value, self._kind_of = key, value, kind
        # The flow is in front of the place, the stack behind it.
        self._place = key.fields[key.index("location")].offset
        self._stack = key.fields[key.index("stack")].offset
        self._facts = key.fields[key.index("reason")].offset
        #: By the bytes a kind follows from: the bytes that stand for it, empty if not wanted.
        self._kinds: Dict[bytes, bytes] = {}
        self._numbers: Dict[Any, int] = {}
        self._before: Dict[bytes, Tuple[int, int]] = {}
        self.shown = self.hidden = 0

    def read(
        self, items: Iterable[Tuple[bytes, bytes]], top: int, last: bool
    ) -> Tuple[List[Row], Row]:
        """The largest rows, and what all others have together.

        :param items: the kernel's rows, as bytes.
        :param last: ranked by totals instead of what came since the last report.
        """
        rows = self._collect(items)
        size = "total_packets" if last else "packets"
        ranked = heapq.nlargest(top, rows, key=lambda row: getattr(row, size))
        largest = [row for row in ranked if getattr(row, size)]
        chosen = {id(row) for row in largest}
        rest = Row(b"")
        for row in rows:
            if id(row) not in chosen:
                rest.join(row)
        self.shown = sum(row.total_packets for row in rows)
        return largest, rest

    def packets(self, items: Iterable[Tuple[bytes, bytes]]) -> int:
        """Packets of all rows, wanted or not."""
        unpack = self._value.codec.unpack_from
        return sum(unpack(value)[0] for _, value in items)

    def _collect(self, items: Iterable[Tuple[bytes, bytes]]) -> List[Row]:
        kinds, unpack = self._kinds, self._value.codec.unpack_from
        place, stack, facts, end = self._place, self._stack, self._facts, self._key.size
        rows: Dict[bytes, Row] = {}
        hidden = 0
        for key, value in items:
            about = key[place:stack] + key[facts:end]
            kind = kinds.get(about)
            if kind is None:
                kind = kinds[about] = self._kind(key)
            packets, size, first_ns, last_ns = unpack(value)
            if not kind:
                hidden += packets
                continue
            same = key[:place] + key[stack:facts] + kind
            row = rows.get(same)
            if row is None:
                row = rows[same] = Row(key)
            row.add(packets, size, first_ns, last_ns)
        self.hidden = hidden
        for same, row in rows.items():
            before = self._before.get(same, (0, 0))
            self._before[same] = row.total_packets, row.total_bytes
            row.packets = row.total_packets - before[0]
            row.bytes = row.total_bytes - before[1]
        return list(rows.values())

    def _kind(self, key: bytes) -> bytes:
        kind = self._kind_of(self._key.codec.unpack(key))
        if not kind.wanted:
            return b""
        return self._numbers.setdefault(kind.same, len(self._numbers)).to_bytes(4, "little")
