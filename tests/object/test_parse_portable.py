# SPDX-License-Identifier: GPL-2.0-only
"""The headers stay within what the oldest kernel takes: 4.19, `spec/loader` 7.1.

No global data, no loops, instructions of version 2, at most 4096 of them; and the parser stays a
part of a program: with filter and identity it keeps room for an engine.
"""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from object.bpfrun import HERE, build  # noqa: E402
from object.btfread import elf_sections  # noqa: E402
from object.parsing import Parser, harness_fixture, parser_fixture  # noqa: E402

__all__ = ["harness_fixture", "parser_fixture"]

# Instructions of the largest program of parser, filter, digest and key; with a tunnel inside.
PLAIN, TUNNEL = 1700, 3000
LIMIT = 4096
# What 4.19 looks at before it gives up; newer kernels take a million.
VISITS = 131072
CLASS, JMP, JMP32, STX, ATOMIC = 0x07, 0x05, 0x06, 0x03, 0xC0
JUMP, CALL, EXIT, LOAD_64 = 0x05, 0x85, 0x95, 0x18
PSEUDO_CALL = 1
STT_FUNC = 2


class Instruction(NamedTuple):
    """One BPF instruction."""

    op: int
    registers: int
    offset: int
    constant: int


@pytest.fixture(scope="module", params=["x86", "arm64"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("clang"):
        pytest.skip("needs clang")
    directory = tmp_path_factory.mktemp(request.param)
    return build(HERE / "parse_harness.bpf.c", directory / "harness.o", request.param)


def programs(path: Path) -> Iterator[tuple[str, list[Instruction]]]:
    """Name and instructions of every program."""
    sections = elf_sections(path)
    symbols = next(section for section in sections if section.name == ".symtab")
    names = sections[symbols.link].data
    for name, info, _other, number, start, size in struct.iter_unpack("<IBBHQQ", symbols.data):
        if info & 15 == STT_FUNC:
            code = sections[number].data[start : start + size]
            text = names[name : names.index(b"\0", name)].decode()
            yield text, [Instruction(*fields) for fields in struct.iter_unpack("<BBhi", code)]


def test_no_global_data(image: Path) -> None:
    names = [section.name for section in elf_sections(image)]
    assert [n for n in names if n.startswith((".rodata", ".data", ".bss"))] == []


def test_size(image: Path) -> None:
    sizes = {name: len(code) for name, code in programs(image)}
    assert len(sizes) == 25
    for name, size in sizes.items():
        assert size < (TUNNEL if name == "bytes" else PLAIN), (name, size)
    assert TUNNEL <= LIMIT


def following(code: list[Instruction], place: int) -> list[int]:
    """Where a program can go from an instruction."""
    one = code[place]
    if one.op == EXIT:
        return []
    ahead = [place + (2 if one.op == LOAD_64 else 1)]
    if one.op & CLASS == JMP and one.op != CALL:
        ahead = [place + 1 + one.offset] + (ahead if one.op != JUMP else [])
    return ahead


def has_loop(code: list[Instruction]) -> bool:
    """What 4.19 refuses: a way back to an instruction on the way there."""
    done: set[int] = set()
    path: dict[int, list[int]] = {0: following(code, 0)}
    while path:
        place, ways = next(reversed(path.items()))
        if not ways:
            path.popitem()
            done.add(place)
            continue
        way = ways.pop()
        if way in path:
            return True
        if way not in done:
            path[way] = following(code, way)
    return False


def test_instructions(image: Path) -> None:
    for name, code in programs(image):
        assert not has_loop(code), name
        for one in code:
            assert one.op & CLASS != JMP32, name
            # The one atomic operation before v5.12: add, without the old value.
            assert one.op & CLASS != STX or one.op & 0xE0 != ATOMIC or not one.constant, name
            assert one.op != CALL or one.registers >> 4 != PSEUDO_CALL, name


def test_loops_are_found() -> None:
    count = [Instruction(0x07, 1, 0, 1), Instruction(0x55, 1, -2, 9), Instruction(EXIT, 0, 0, 0)]
    assert has_loop(count)
    # A jump back to what no path comes from again is none.
    back = [Instruction(JUMP, 0, 1, 0), Instruction(EXIT, 0, 0, 0), Instruction(JUMP, 0, -2, 0)]
    assert not has_loop(back)


def test_verifier(parser: Parser) -> None:
    """How far the running kernel has to look; what precedes 5.3 looks further."""
    for name in parser.names:
        words = parser.object.verifier(name).split()
        visited = int(words[words.index("processed") + 1])
        assert visited < VISITS / 2, (name, visited)
