# SPDX-License-Identifier: GPL-2.0-only
"""Names for kernel code addresses, from /proc/kallsyms.

Read once, when the first address must be named: 122,079 symbols cost 90 ms of CPU time and
5 MiB. Only code is kept, in flat arrays instead of one object per symbol.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate
from operator import le
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

__all__ = ["Symbol", "Symbols"]

_KALLSYMS = Path("/proc/kallsyms")
_CHUNK_BYTES = 65536
_CODE = re.compile(rb"^([0-9a-f]{1,16}) [tTwW] (.+)$", re.MULTILINE)

_Function = Tuple[str, int, int]  # name, first address, first one behind

# A symbol without a next one in its module may be this long. Beyond, the address is in a gap
# between two mappings and has no name.
_LAST_SYMBOL_BYTES = 65536


@dataclass(frozen=True)
class Symbol:
    """Where an address lies.

    :ivar name: as the kernel spells it, with suffixes such as ``.constprop.0``.
    :ivar offset: bytes from the start of the symbol.
    :ivar module: None for the kernel itself, ``bpf`` for BPF programs and trampolines.
    """

    name: str
    offset: int
    module: Optional[str]


class Symbols:
    """The code symbols of the running kernel and its modules; nothing is read before use.

    The first of several names of one address wins, as in the kernel's own stack traces.
    """

    def __init__(self, path: Path = _KALLSYMS) -> None:
        self._path = path
        self._tables: Optional[Tuple[_Table, _Table]] = None
        self._note: Optional[str] = None
        self._expected: Tuple[str, ...] = ()
        self._seen: Optional[Dict[str, List[_Function]]] = None

    @property
    def note(self) -> Optional[str]:
        """Why there are no names; None when there are."""
        if not self._seen or not any(self._seen.values()):  # what was found has its address
            self._loaded()
        return self._note

    def lookup(self, address: int) -> Optional[Symbol]:
        """The symbol that contains ``address``; None when hidden or in no code."""
        core, modules = self._loaded()
        found = modules.lookup(address)
        return found if found is not None else core.lookup(address)

    def range(self, name: str) -> Optional[Tuple[int, int]]:
        """First address of a function and the first one behind it.

        ``name`` is exact, suffixes included. Of several static functions with one name the
        one listed first is meant.
        """
        for table in self._loaded():
            found = table.range(name)
            if found is not None:
                return found
        return None

    def matching(self, pattern: str) -> List[_Function]:
        """(name, first address, first one behind) of every function that fits a pattern.

        ``*`` and ``?`` are wild. What compilers append to a name (``.isra.0``, ``.cold``) is no
        part of it: each such symbol is listed, under the bare name.
        """
        if self._tables is None and pattern in self._expected:
            if self._seen is None:
                self._seen = self._scan(self._expected)
            if pattern in self._seen:
                return self._seen[pattern]
        return [found for table in self._loaded() for found in table.matching(pattern)]

    def expect(self, patterns: Sequence[str]) -> None:
        """Patterns that :meth:`matching` will be asked for, to be answered in one pass.

        For those that are wild at the end at most, and mean functions of the kernel itself: half
        the CPU time of reading all names, and none of the memory.
        """
        self._expected, self._seen = tuple(patterns), None

    def refresh(self) -> None:
        """Forget everything: the next use sees modules and trampolines that came meanwhile."""
        self._tables = self._seen = None

    def _scan(self, patterns: Sequence[str]) -> "Dict[str, List[_Function]]":
        """What patterns mean; empty when that takes a table."""
        try:
            scan = _Scan(patterns)
            with open(str(self._path), "rb", 0) as stream:
                rest = b""
                while True:
                    chunk = stream.read(_CHUNK_BYTES)
                    text = rest + chunk
                    whole = text[: text.rfind(b"\n") + 1]
                    rest = text[scan.feed(whole, not chunk) :]
                    if not chunk:
                        return scan.found
        except (OSError, ValueError):
            return {}

    def _loaded(self) -> "Tuple[_Table, _Table]":
        if self._tables is None:
            self._tables = self._load()
        return self._tables

    def _load(self) -> "Tuple[_Table, _Table]":
        # The kernel's part is sorted; modules, ftrace and BPF follow in order of appearance.
        core, modules = _Table(), _Table()
        self._note = None
        try:
            with open(str(self._path), "rb", 0) as stream:
                rest = b""
                for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
                    text = rest + chunk
                    end = text.rfind(b"\n") + 1
                    rest = text[end:]
                    found = _CODE.findall(text, 0, end)
                    if b"\t" in text:
                        core.add([item for item in found if b"\t" not in item[1]])
                        modules.add([item for item in found if b"\t" in item[1]])
                    else:
                        core.add(found)
        except OSError as error:
            self._note = f"kernel symbols cannot be read: {error.strerror}"
        core.sort()
        modules.sort()
        if self._note is None and not core.is_visible():
            self._note = "kernel addresses are hidden (kernel.kptr_restrict): no symbol names"
            return _Table(), _Table()
        return core, modules


class _Scan:
    """Functions that patterns mean, found while the text passes by.

    :raises ValueError: for what takes a table: a star inside a pattern, a function of a module,
        addresses that are hidden or out of order.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.found: Dict[str, List[_Function]] = {pattern: [] for pattern in patterns}
        self._shapes = []
        for pattern in patterns:
            name, tail = (pattern[:-1], r"[^.\n\t]*") if pattern.endswith("*") else (pattern, "")
            if not name.isascii() or "*" in name or "?" in name:
                raise ValueError(pattern)
            line = r"([0-9a-f]{{1,16}}) [tTwW] ({}{})(?:\.[^\n\t]*)?([\n\t])"
            rule = re.compile(line.format(re.escape(name), tail).encode())
            self._shapes.append((pattern, b" " + name.encode(), rule))

    def feed(self, text: bytes, last: bool) -> int:
        """Take whole lines; the result is how many bytes of them need not be seen again."""
        hits, done = [], len(text)
        for pattern, needle, rule in self._shapes:
            at = text.find(needle)
            while at >= 0:
                begin = text.rfind(b"\n", 0, at) + 1
                line = rule.match(text, begin)
                if line and line.start(2) == at + 1:
                    first = int(line.group(1), 16)
                    if line.group(3) == b"\t" or not first:
                        raise ValueError("a function of a module, or hidden")
                    end = self._next(text, text.index(b"\n", at), first)
                    if end is not None or last:
                        end = end or first + _LAST_SYMBOL_BYTES
                        hits.append((begin, pattern, (line.group(2).decode(), first, end)))
                    else:
                        done = min(done, begin)
                at = text.find(needle, at + 1)
        for begin, pattern, function in sorted(hits):
            if begin < done:
                self.found[pattern].append(function)
        return done

    def _next(self, text: bytes, at: int, first: int) -> Optional[int]:
        """The next address behind a function's; None: not in this text."""
        while True:
            line = _CODE.search(text, at)
            if line is None:
                return None
            address = int(line.group(1), 16)
            if not first or address < first or b"\t" in line.group(2):
                raise ValueError("addresses hidden or out of order, or the end of the kernel")
            if address > first:
                return address
            at = line.end()


class _Table:
    """Addresses in ascending order, and where the name of each starts in one byte string."""

    def __init__(self) -> None:
        self._addresses = array("Q")
        self._starts = array("I")
        self._names = bytearray(b"\n")

    def add(self, items: "List[Tuple[bytes, bytes]]") -> None:
        if not items:
            return
        self._addresses.extend([int(address, 16) for address, _ in items])
        ends = accumulate([len(self._names)] + [len(name) + 1 for _, name in items])
        self._starts.extend(list(ends)[:-1])
        self._names += b"\n".join([name for _, name in items])
        self._names += b"\n"

    def sort(self) -> None:
        addresses = self._addresses
        if all(map(le, addresses, memoryview(addresses)[1:])):
            return
        order = sorted(range(len(addresses)), key=addresses.__getitem__)
        self._addresses = array("Q", [addresses[i] for i in order])
        self._starts = array("I", [self._starts[i] for i in order])

    def is_visible(self) -> bool:
        return bool(self._addresses) and self._addresses[-1] != 0

    def lookup(self, address: int) -> Optional[Symbol]:
        last = bisect_right(self._addresses, address) - 1
        if last < 0 or address >= self._end(last):
            return None
        start = self._addresses[last]
        name, module = self._name(bisect_left(self._addresses, start))
        return Symbol(name, address - start, module)

    def range(self, name: str) -> Optional[Tuple[int, int]]:
        wanted = name.encode("utf-8", "replace")
        at = -1
        for end in (b"\n", b"\t"):
            found = self._names.find(b"\n" + wanted + end)
            if found >= 0 and (at < 0 or found < at):
                at = found
        if at < 0:
            return None
        return self._span(at + 1)

    def matching(self, pattern: str) -> List[_Function]:
        if not pattern.isascii():  # no symbol is anything else
            return []
        # Each part behind a star is looked for once, as soon as possible: the lookahead keeps what
        # it found, so that no pattern makes the search try every way to place its stars.
        first, *parts = [
            "".join([r"[^.\n\t]" if char == "?" else re.escape(char) for char in part])
            for part in re.sub(r"\*+", "*", pattern).split("*")
        ]
        shape = first
        if parts:
            for number, part in enumerate(parts[:-1]):
                shape += r"(?=(?P<p{0}>[^.\n\t]*?{1}))(?P=p{0})".format(number, part)
            shape += r"[^.\n\t]*" + parts[-1]
        search = re.compile(r"\n(?=({})(?:\.[^\n\t]*)?[\n\t])".format(shape).encode())
        return [
            (hit.group(1).decode("utf-8", "replace"), *self._span(hit.start() + 1))
            for hit in search.finditer(self._names)
        ]

    def _span(self, start: int) -> Tuple[int, int]:
        """First address of the symbol whose name begins at ``start``, and the first behind it."""
        # Starts are ascending unless sort() had work to do; then only a search finds it.
        index = bisect_left(self._starts, start)
        if index >= len(self._starts) or self._starts[index] != start:
            index = self._starts.index(start)
        last = bisect_right(self._addresses, self._addresses[index]) - 1
        return self._addresses[index], self._end(last)

    def _name(self, index: int) -> Tuple[str, Optional[str]]:
        start = self._starts[index]
        text = self._names[start : self._names.index(b"\n", start)].decode("utf-8", "replace")
        name, _, module = text.partition("\t")
        return name, module.strip("[]") or None

    def _end(self, index: int) -> int:
        """First address behind the symbol; ``index`` is the last of its aliases."""
        bound = self._addresses[index] + _LAST_SYMBOL_BYTES
        if index + 1 == len(self._addresses):
            return bound
        following = self._addresses[index + 1]
        if following > bound and self._name(index)[1] != self._name(index + 1)[1]:
            return bound
        return following
