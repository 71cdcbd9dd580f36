# SPDX-License-Identifier: GPL-2.0-only
"""A reader of BTF, split BTF of modules included, for tests which look at kernel types.

It shares nothing with the decoder of the loader, which the tests judge.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

__all__ = ["Btf", "Member", "Section", "btf_section", "elf_sections"]

_MAGIC = 0xEB9F
(INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO,
 VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64) = range(1, 20)  # fmt: skip
# Bytes behind the 12 of every type, and bytes per element of its list.
_EXTRA = {INT: (4, 0), ARRAY: (12, 0), STRUCT: (0, 12), UNION: (0, 12), ENUM: (0, 8),
          FUNC_PROTO: (0, 8), VAR: (4, 0), DATASEC: (0, 12), DECL_TAG: (4, 0),
          ENUM64: (0, 12)}  # fmt: skip
_ALIASES = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)


@dataclass(frozen=True)
class Member:
    """A member of a struct, those of nameless inner structs and unions included."""

    name: str
    type_id: int
    bit_offset: int
    bits: int


@dataclass(frozen=True)
class Section:
    """A section of an ELF object."""

    name: str
    data: bytes
    link: int


def elf_sections(path: Path) -> list[Section]:
    """All sections of a 64-bit little-endian ELF object, by number."""
    data = path.read_bytes()
    table = struct.unpack_from("<Q", data, 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    rows = [struct.unpack_from("<IIQQQQI", data, table + i * size) for i in range(count)]
    found = []
    for name, _kind, _flags, _address, at, length, link in rows:
        start = rows[names][4] + name
        text = data[start : data.index(b"\0", start)].decode()
        found.append(Section(text, data[at : at + length], link))
    return found


def btf_section(path: Path) -> bytes:
    """Raw BTF of a file that holds it, or of the .BTF section of an ELF object."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF":
        return data
    for section in elf_sections(path):
        if section.name == ".BTF":
            return section.data
    raise ValueError(f"{path} has no .BTF section")


class Btf:
    """The types of a kernel, a module (with the kernel's as base) or an object."""

    def __init__(self, data: bytes, base: Optional[Btf] = None) -> None:
        magic, _version, _flags, header, at, length, text_at, text_length = struct.unpack_from(
            "<HBBIIIII", data
        )
        if magic != _MAGIC:
            raise ValueError("not BTF")
        self._base = base
        self._data = data
        self._first_text = base._end_text if base else 0
        self._end_text = self._first_text + text_length
        self._text = data[header + text_at : header + text_at + text_length]
        self._first = base._first + len(base._at) if base else 1
        self._at: list[int] = []
        self._names: dict[tuple[str, int], int] = {}
        self._index(header + at, header + at + length)

    @classmethod
    def load(cls, path: Path, base: Optional[Btf] = None) -> Btf:
        """The BTF of a file."""
        return cls(btf_section(path), base)

    def _index(self, at: int, end: int) -> None:
        data = self._data
        while at < end:
            name, info, _size = struct.unpack_from("<III", data, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            if name and kind != FWD:
                self._names.setdefault((self._string(name), kind), self._first + len(self._at))
            self._at.append(at)
            fixed, each = _EXTRA.get(kind, (0, 0))
            at += 12 + fixed + each * count

    def _string(self, offset: int) -> str:
        if offset < self._first_text:
            assert self._base
            return self._base._string(offset)
        start = offset - self._first_text
        return self._text[start : self._text.index(b"\0", start)].decode()

    def find(self, name: str, *kinds: int) -> Optional[int]:
        """Id of the type of that name, of any of the kinds, or None."""
        for kind in kinds:
            if (name, kind) in self._names:
                return self._names[name, kind]
        return self._base.find(name, *kinds) if self._base else None

    def names(self, kind: int) -> Iterator[str]:
        """Names of all types of a kind, without those of the base."""
        return (name for name, its_kind in self._names if its_kind == kind)

    def _head(self, type_id: int) -> tuple[int, int, int, int, int]:
        """Name offset, kind, count, flag, size or type."""
        if type_id < self._first:
            assert self._base
            return self._base._head(type_id)
        name, info, size = struct.unpack_from("<III", self._data, self._at[type_id - self._first])
        return name, info >> 24 & 0x1F, info & 0xFFFF, info >> 31, size

    def _unpack(self, type_id: int, form: str, place: int) -> tuple[int, ...]:
        if type_id < self._first:
            assert self._base
            return self._base._unpack(type_id, form, place)
        return struct.unpack_from(form, self._data, self._at[type_id - self._first] + 12 + place)

    def name(self, type_id: int) -> str:
        """Name of a type, empty if it has none."""
        return self._string(self._head(type_id)[0]) if type_id else "void"

    def resolve(self, type_id: int) -> int:
        """The type behind typedefs and qualifiers."""
        while type_id:
            _name, kind, _count, _flag, target = self._head(type_id)
            if kind not in _ALIASES:
                break
            type_id = target
        return type_id

    def kind(self, type_id: int) -> int:
        """Kind of the type behind typedefs and qualifiers; 0 for void."""
        target = self.resolve(type_id)
        return self._head(target)[1] if target else 0

    def pointee(self, type_id: int) -> int:
        """The type behind a pointer, typedefs and qualifiers resolved."""
        return self.resolve(self._head(self.resolve(type_id))[4])

    def bits(self, type_id: int) -> int:
        """Width of a type."""
        target = self.resolve(type_id)
        if not target:
            return 0
        _name, kind, _count, _flag, size = self._head(target)
        if kind == PTR:
            return 64
        if kind == ARRAY:
            element, _index, count = self._unpack(target, "<III", 0)
            return self.bits(element) * count
        return size * 8

    def members(self, type_id: int, base_bits: int = 0) -> Iterator[Member]:
        """Named members of a struct or union, with their offset from its beginning."""
        target = self.resolve(type_id)
        _name, kind, count, flag, _size = self._head(target)
        if kind not in (STRUCT, UNION):
            return
        for i in range(count):
            name, inner, place = self._unpack(target, "<III", i * 12)
            width = place >> 24 if flag else 0
            offset = base_bits + (place & 0xFFFFFF if flag else place)
            if name:
                yield Member(self._string(name), inner, offset, width or self.bits(inner))
            else:
                yield from self.members(inner, offset)

    def enum(self, type_id: int) -> dict[str, int]:
        """Names and values of an enum."""
        target = self.resolve(type_id)
        _name, kind, count, _flag, _size = self._head(target)
        wide = kind == ENUM64
        values = {}
        for i in range(count):
            if wide:
                name, low, high = self._unpack(target, "<III", i * 12)
                value = high << 32 | low
            else:
                name, value = self._unpack(target, "<Ii", i * 8)
            values[self._string(name)] = value
        return values
