# SPDX-License-Identifier: GPL-2.0-only
"""Every BPF object: the installed ones, or made here from bpf/ as bpf/meson.build says."""

from __future__ import annotations

import functools
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from object.btfread import Btf

import ntools
from ntools._loader.btf import Types

__all__ = ["ARCHES", "Object", "Program", "Relocation", "load", "names"]

TOP = Path(__file__).resolve().parents[2]
ARCHES = ("x86", "arm64")
_ROW = re.compile(r"^ *\['(\w+)', '([\w.]+)', \[(.*?)\]\],$", re.MULTILINE)
_INSTRUCTION = struct.Struct("<BBhi")


@dataclass(frozen=True)
class Relocation:
    """One CO-RE relocation: what is asked of which path through which type."""

    program: str
    place: int  # bytes from the beginning of the section
    type_id: int
    access: str
    kind: int


@dataclass(frozen=True)
class Program:
    """One function in a section of its own kind: a program, or a subprogram in ``.text``."""

    name: str
    section: str
    start: int  # bytes from the beginning of the section
    code: tuple[tuple[int, int, int, int], ...]  # opcode, registers, offset, immediate

    @property
    def mechanism(self) -> str:
        return self.section.lstrip("?").partition("/")[0]

    @property
    def target(self) -> str:
        return self.section.lstrip("?").partition("/")[2]

    @property
    def point(self) -> str:
        return self.name.partition("__")[0]


class Object:
    """Sections, programs and relocations of one object file, read with pyelftools."""

    def __init__(self, path: Path) -> None:
        from elftools.elf.elffile import ELFFile

        self.path = path
        with path.open("rb") as file:
            elf = ELFFile(file)
            self.machine = elf["e_machine"]
            self.sections = {s.name: s.data() for s in elf.iter_sections() if s.name}
            kinds = {s.name: s["sh_type"] for s in elf.iter_sections()}
            self.maps = self._symbols(elf, ".maps")
            self.programs: dict[str, Program] = {}
            self._calls: dict[str, list[str]] = {}
            self._functions: dict[tuple[int, int], str] = {}
            for index, section in enumerate(elf.iter_sections()):
                if kinds[section.name] == "SHT_PROGBITS" and section["sh_flags"] & 4:
                    self._take_programs(elf, index, section.name)
            for section in list(self.sections):
                if section.startswith(".rel") and section[4:] in self.sections:
                    self._take_calls(elf, section)
            self._take_near_calls()
        self.btf = Btf(self.sections[".BTF"])
        self.relocations = list(self._relocations())

    def _take_programs(self, elf, index: int, section: str) -> None:
        data = self.sections[section]
        for symbol in elf.get_section_by_name(".symtab").iter_symbols():
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] == index:
                start, size = symbol["st_value"], symbol["st_size"]
                code = tuple(_INSTRUCTION.iter_unpack(data[start : start + size]))
                self.programs[symbol.name] = Program(symbol.name, section, start, code)
                self._functions[index, start] = symbol.name

    def _take_calls(self, elf, section: str) -> None:
        """Who calls which subprogram, from the relocations of a section of code."""
        table = elf.get_section_by_name(".symtab")
        here = [p for p in self.programs.values() if p.section == section[4:]]
        for relocation in elf.get_section_by_name(section).iter_relocations():
            at = relocation["r_offset"]
            owner = next((p for p in here if p.start <= at < p.start + 8 * len(p.code)), None)
            if owner is None:
                continue
            opcode, registers, _, immediate = owner.code[(at - owner.start) // 8]
            if opcode != 0x85 or registers >> 4 != 1:
                continue
            symbol = table.get_symbol(relocation["r_info_sym"])
            name = symbol.name
            if symbol["st_info"]["type"] == "STT_SECTION":
                target = (symbol["st_shndx"], (immediate + 1) * 8)
                name = self._functions[target]
            self._calls.setdefault(owner.name, []).append(name)

    def _take_near_calls(self) -> None:
        """Calls within .text, which the compiler resolves itself."""
        starts = {p.start: p.name for p in self.programs.values() if p.section == ".text"}
        for program in [p for p in self.programs.values() if p.section == ".text"]:
            for index, (opcode, registers, _, immediate) in enumerate(program.code):
                if opcode == 0x85 and registers >> 4 == 1:
                    target = program.start + 8 * (index + 1 + immediate)
                    self._calls.setdefault(program.name, []).append(starts[target])

    def calls(self, program: str) -> list[str]:
        """Subprograms a function calls."""
        return self._calls.get(program, [])

    def types(self) -> Types:
        """The types as the loader decodes them."""
        return Types(self.sections[".BTF"])

    @staticmethod
    def _symbols(elf, section: str) -> list[str]:
        at = elf.get_section_index(section)
        table = elf.get_section_by_name(".symtab")
        return [s.name for s in table.iter_symbols()
                if s["st_shndx"] == at and s["st_info"]["type"] == "STT_OBJECT"]  # fmt: skip

    def _table(self, field: int, form: str):
        """(section, records) of one table of .BTF.ext."""
        ext = self.sections[".BTF.ext"]
        (header,) = struct.unpack_from("<I", ext, 4)
        start, length = struct.unpack_from("<II", ext, field)
        at = header + start
        end = at + length
        (size,) = struct.unpack_from("<I", ext, at)
        at += 4
        while at < end:
            name, count = struct.unpack_from("<II", ext, at)
            at += 8
            rows = [struct.unpack_from(form, ext, at + size * i) for i in range(count)]
            yield self.btf._string(name), rows
            at += size * count

    def _relocations(self):
        functions = {
            section: sorted((row[0], self.btf.name(row[1])) for row in rows)
            for section, rows in self._table(8, "<II")
        }
        for section, rows in self._table(24, "<IIII"):
            for place, type_id, access, kind in rows:
                name = [n for start, n in functions[section] if start <= place][-1]
                yield Relocation(name, place, type_id, self.btf._string(access), kind)


@functools.lru_cache(maxsize=None)
def _rows() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name -> source and defines, from the list of objects in bpf/meson.build."""
    text = (TOP / "bpf" / "meson.build").read_text(encoding="utf-8")
    rows = {name: (source, tuple(re.findall(r"'([^']+)'", flags)))
            for name, source, flags in _ROW.findall(text)}  # fmt: skip
    assert rows, "no objects found in bpf/meson.build"
    return rows


def names() -> list[str]:
    """All objects."""
    return list(_rows())


@functools.lru_cache(maxsize=None)
def _made() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="ntools-objects-")


@functools.lru_cache(maxsize=None)
def load(name: str, arch: str) -> Object:
    """One object: the installed one, unless the package under test is the source tree."""
    pytest.importorskip("elftools")
    package = Path(ntools.__file__).resolve().parent
    path = package / "bpf" / f"{name}.{arch}.bpf.o"
    if TOP / "src" in package.parents or not path.exists():
        path = Path(_made().name) / path.name
        _compile(name, arch, path)
    return Object(path)


def _compile(name: str, arch: str, target: Path) -> None:
    if not shutil.which("clang") or not shutil.which("llvm-strip"):
        pytest.skip("no clang")
    source, flags = _rows()[name]
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole.o"
        subprocess.run(
            ["clang", "-g", "-O2", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v2",
             f"-D__TARGET_ARCH_{arch}", f"-I{TOP}/bpf/include", f"-I{TOP}/vmlinux", *flags,
             "-c", str(TOP / "bpf" / source), "-o", str(whole)],
            check=True,
        )  # fmt: skip
        subprocess.run(["llvm-strip", "-g", str(whole), "-o", str(target)], check=True)
