# SPDX-License-Identifier: GPL-2.0-only
"""Small BTF blobs, from C or type by type."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from ntools._loader.elf import sections

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)


class Maker:
    """Types in the order they are added; ids begin at 1."""

    def __init__(self) -> None:
        self.text = b"\0"
        self.types: list[bytes] = []

    def name(self, text: str) -> int:
        """Offset of a string."""
        if not text:
            return 0
        self.text += text.encode() + b"\0"
        return len(self.text) - len(text) - 1

    def add(self, kind: int, name: str = "", target: int = 0, rows: tuple = (), *,
            count: int | None = None, tail: bytes = b"") -> int:  # fmt: skip
        """A type: size or type as third word, rows of three words, or other bytes, behind it."""
        info = kind << 24 | (len(rows) if count is None else count)
        record = struct.pack("<III", self.name(name), info, target)
        for label, inner, offset in rows:
            record += struct.pack("<III", self.name(label), inner, offset)
        self.types.append(record + tail)
        return len(self.types)

    def number(self, name: str = "int", size: int = 4) -> int:
        """An integer."""
        return self.add(INT, name, size, tail=struct.pack("<I", size * 8))

    def record(self, name: str, size: int, *rows: tuple[str, int, int]) -> int:
        """A struct of (member, type, bit offset)."""
        return self.add(STRUCT, name, size, rows)

    def blob(self) -> bytes:
        """The whole file."""
        types = b"".join(self.types)
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.text))
        return head + types + self.text


def compiled(source: str, target: Path, *flags: str) -> Path:
    """An object of the C source, with BTF and relocations."""
    if not shutil.which("clang"):
        pytest.skip("no clang")
    command = ["clang", "-g", "-O2", "-Wall", "-target", "bpf", "-mcpu=v2", *flags]
    subprocess.run(
        [*command, "-x", "c", "-c", "-", "-o", str(target)], input=source.encode(), check=True
    )
    return target


def btf_of(source: str, place: Path) -> bytes:
    """The BTF of a C source."""
    return sections(compiled(source, place / "types.o").read_bytes())[".BTF"]
