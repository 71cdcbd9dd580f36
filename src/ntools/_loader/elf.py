# SPDX-License-Identifier: GPL-2.0-only
"""Sections of a BPF object file: as much ELF as the start path needs (64-bit, little endian)."""

import struct
from typing import Dict

__all__ = ["sections"]


def sections(data: bytes) -> Dict[str, bytes]:
    """Contents of every named section of an ELF file.

    :raises ValueError: not a 64-bit little-endian ELF file, or cut short.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    try:
        table = struct.unpack_from("<Q", data, 40)[0]
        entry_size, count, names_index = struct.unpack_from("<HHH", data, 58)
        headers = [
            struct.unpack_from("<II16xQQ", data, table + index * entry_size)
            for index in range(count)
        ]
        _, _, start, size = headers[names_index]
    except (struct.error, IndexError, OverflowError):
        raise ValueError("ELF file is cut short") from None
    names = data[start : start + size]
    found = {}
    room = len(data)
    for name, kind, offset, length in headers:
        end = names.find(b"\0", name)
        if kind == 8 or end <= name:  # 8: occupies no space in the file
            continue
        # Sections do not overlap: more bytes than the file has are no file a compiler made.
        room -= length
        if room < 0 or offset + length > len(data):
            raise ValueError("ELF file is cut short")
        found[names[name:end].decode("utf-8", "replace")] = data[offset : offset + length]
    return found
