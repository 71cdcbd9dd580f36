# SPDX-License-Identifier: GPL-2.0-only
"""What parser, filter and identity cost a program: instructions, and work of the verifier.

4.19 takes 4096 instructions and looks at 131072 before it gives up; an engine needs its share.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from object.btfread import elf_sections  # noqa: E402
from object.parsing import Parser, compiled, harness_fixture, parser_fixture  # noqa: E402

__all__ = ["harness_fixture", "parser_fixture"]

# With copying the result out, which no engine does, and digest and key, of which it takes one.
PLAIN, TUNNEL = 2120, 2800
# Of the newest verifiers. Before 5.3 they look further: not every difference between two packets
# may be a difference to them (nt_vague_zero).
VISITS, TUNNEL_VISITS = 16000, 24000
STT_FUNC = 2


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_instructions(arch: str) -> None:
    sections = elf_sections(compiled(arch))
    symbols = next(section for section in sections if section.name == ".symtab")
    names = sections[symbols.link].data
    sizes = {}
    for name, info, _other, _number, _start, size in struct.iter_unpack("<IBBHQQ", symbols.data):
        if info & 15 == STT_FUNC:
            sizes[names[name : names.index(b"\0", name)].decode()] = size // 8
    functions = sum(sizes.pop(name) for name in ("nt_match_sets", "nt_in_table", "nt_in_prefixes"))
    assert sizes.pop("bytes") + functions <= TUNNEL
    assert len(sizes) == 24 and max(sizes.values()) + functions <= PLAIN, sizes


def test_verifier(parser: Parser) -> None:
    visits = {}
    for name in parser.names:
        words = parser.object.verifier(name).split()
        visits[name] = int(words[words.index("processed") + 1])
    assert visits.pop("bytes") <= TUNNEL_VISITS
    assert max(visits.values()) <= VISITS, visits
