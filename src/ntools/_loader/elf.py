# SPDX-License-Identifier: GPL-2.0-only
"""Sections of ELF files (64-bit, little endian): as much as BPF objects and BTF need."""

import os
import struct
from typing import Dict, NamedTuple, Tuple

__all__ = ["ElfFile", "sections"]

_NOT_ELF = "not a 64-bit little-endian ELF file"
_SHORT = "ELF file is cut short"
_EMPTY = 8  # a section that occupies no space in the file


def sections(data: bytes) -> Dict[str, bytes]:
    """Contents of every named section of an ELF file.

    :raises ValueError: not a 64-bit little-endian ELF file, or cut short.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(_NOT_ELF)
    try:
        table = struct.unpack_from("<Q", data, 40)[0]
        entry_size, count, names_index = struct.unpack_from("<HHH", data, 58)
        headers = [
            struct.unpack_from("<II16xQQ", data, table + index * entry_size)
            for index in range(count)
        ]
        _, _, start, size = headers[names_index]
    except (struct.error, IndexError, OverflowError):
        raise ValueError(_SHORT) from None
    names = data[start : start + size]
    found = {}
    room = len(data)
    for name, kind, offset, length in headers:
        end = names.find(b"\0", name)
        if kind == _EMPTY or end <= name:
            continue
        # Sections do not overlap: more bytes than the file has are no file a compiler made.
        room -= length
        if room < 0 or offset + length > len(data):
            raise ValueError(_SHORT)
        found[names[name:end].decode("utf-8", "replace")] = data[offset : offset + length]
    return found


class ElfFile(NamedTuple):
    """A big ELF file of which only some sections are read: a kernel, a module, their debug files.

    :ivar machine: number of the architecture.
    :ivar places: section name -> (offset, bytes); those without content in the file left out.
    """

    path: str
    machine: int
    places: Dict[str, Tuple[int, int]]

    @classmethod
    def from_path(cls, path: str) -> "ElfFile":
        """Read the headers of a file.

        :raises ValueError: not a 64-bit little-endian ELF file, or cut short.
        :raises OSError: it cannot be read.
        """
        with open(path, "rb") as file:
            whole = os.fstat(file.fileno()).st_size
            head = file.read(64)
            if head[:6] != b"\x7fELF\x02\x01":
                raise ValueError(_NOT_ELF)
            if len(head) < 64:
                raise ValueError(_SHORT)
            machine = struct.unpack_from("<H", head, 18)[0]
            table = struct.unpack_from("<Q", head, 40)[0]
            entry_size, count, names_index = struct.unpack_from("<HHH", head, 58)
            if entry_size < 64 or table + entry_size * count > whole or names_index >= count:
                raise ValueError(_SHORT)
            file.seek(table)
            data = file.read(entry_size * count)
            rows = [struct.unpack_from("<II16xQQ", data, entry_size * i) for i in range(count)]
            if any(kind != _EMPTY and at + size > whole for _, kind, at, size in rows):
                raise ValueError(_SHORT)
            file.seek(rows[names_index][2])
            names = file.read(rows[names_index][3])
        places = {
            names[name:].partition(b"\0")[0].decode("utf-8", "replace"): (at, size)
            for name, kind, at, size in rows
            if kind != _EMPTY
        }
        return cls(path, machine, places)

    def read(self, section: str) -> bytes:
        """Content of a section, empty if there is none."""
        at, size = self.places.get(section, (0, 0))
        with open(self.path, "rb") as file:
            file.seek(at)
            return file.read(size)
