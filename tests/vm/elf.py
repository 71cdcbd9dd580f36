# SPDX-License-Identifier: GPL-2.0-only
"""Just enough of ELF, kernel images and BTF to cut out what the tests need."""

from __future__ import annotations

import lzma
import struct
import subprocess
from pathlib import Path

from vm.common import VmProblem

_ELF = b"\x7fELF"
_BTF_MAGIC = b"\x9f\xeb\x01\x00"


class Elf:
    """Sections of a 64-bit little-endian ELF image held in memory."""

    def __init__(self, data: bytes):
        if data[:6] != _ELF + b"\x02\x01":
            raise VmProblem("not a 64-bit little-endian ELF file")
        self._data = data
        shoff = struct.unpack_from("<Q", data, 0x28)[0]
        size, count, names = struct.unpack_from("<HHH", data, 0x3A)
        rows = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * size) for i in range(count)]
        self._rows = rows
        self._index = {self._string(rows[names], row[0]): row for row in rows}

    def _string(self, row, offset: int) -> str:
        start = row[4] + offset
        return self._data[start : self._data.index(b"\0", start)].decode()

    def section(self, name: str) -> bytes | None:
        row = self._index.get(name)
        return None if row is None else self._data[row[4] : row[4] + row[5]]

    def functions(self) -> list[str]:
        """Names of the defined functions in the symbol table."""
        row = self._index.get(".symtab")
        if row is None:
            return []
        strings, found = self._rows[row[6]], set()
        for name, info, _other, shndx, _value, _size in struct.iter_unpack(
            "<IBBHQQ", self._data[row[4] : row[4] + row[5]]
        ):
            if info & 15 == 2 and shndx:
                found.add(self._string(strings, name))
        return sorted(found)


def read_module(path: Path) -> bytes:
    """A kernel module, decompressed when its name says so."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", str(path)], check=True, stdout=subprocess.PIPE).stdout
    return path.read_bytes()


def _unpack_zstd(data: bytes) -> bytes:
    # zstd complains about the bytes after the frame but has written everything by then.
    return subprocess.run(["zstd", "-dc"], input=data, capture_output=True).stdout


def _unpack_xz(data: bytes) -> bytes:
    try:
        return lzma.LZMADecompressor().decompress(data)
    except lzma.LZMAError:
        return b""


def vmlinux_of(vmlinuz: bytes) -> bytes:
    """The uncompressed ELF kernel inside a bzImage."""
    for magic, unpack in ((b"\xfd7zXZ\0", _unpack_xz), (b"\x28\xb5\x2f\xfd", _unpack_zstd)):
        at = vmlinuz.find(magic)
        while at >= 0:
            image = unpack(vmlinuz[at:])
            if image[:4] == _ELF:
                return image
            at = vmlinuz.find(magic, at + 1)
    raise VmProblem("no compressed ELF kernel found in vmlinuz")


def btf_in_image(image: bytes) -> bytes:
    """The BTF blob of a raw (non-ELF) kernel image, found by its header."""
    at = image.find(_BTF_MAGIC)
    while at >= 0:
        header, type_off, type_len, str_off, str_len = struct.unpack_from("<5I", image, at + 4)
        end = at + header + str_off + str_len
        plausible = header == 24 and type_off == 0 and str_off == type_len and type_len > 1 << 20
        if plausible and end <= len(image) and image[at + 24 + str_off] == 0:
            return image[at:end]
        at = image.find(_BTF_MAGIC, at + 1)
    raise VmProblem("no BTF found in the kernel image")


def btf_functions(btf: bytes) -> list[str]:
    """Names of the functions a BTF blob describes."""
    header, type_off, type_len, str_off = struct.unpack_from("<4I", btf, 4)
    strings, at = header + str_off, header + type_off
    end, found = at + type_len, set()
    per_member = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}  # struct union enum proto ...
    fixed = {1: 4, 3: 12, 14: 4, 17: 4}  # int array var decl_tag
    while at < end:
        name, info, _size = struct.unpack_from("<III", btf, at)
        kind, count = info >> 24 & 31, info & 0xFFFF
        if kind == 12:
            found.add(btf[strings + name : btf.index(b"\0", strings + name)].decode())
        at += 12 + fixed.get(kind, 0) + count * per_member.get(kind, 0)
    return sorted(found)
