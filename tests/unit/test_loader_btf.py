# SPDX-License-Identifier: GPL-2.0-only
"""Types of an object: the decoder against bpftool, pahole and the compiler."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from ntools._loader.btf import Field, StructType, Types, relocation_roots
from ntools._loader.elf import sections

SOURCE = Path(__file__).resolve().parent / "btf_kinds.c"
KINDS = {"INT", "PTR", "ARRAY", "STRUCT", "UNION", "ENUM", "FWD", "TYPEDEF", "VOLATILE", "CONST",
         "RESTRICT", "FUNC", "FUNC_PROTO", "VAR", "DATASEC", "FLOAT", "DECL_TAG",
         "TYPE_TAG"}  # fmt: skip
ALIASES = ("TYPEDEF", "VOLATILE", "CONST", "RESTRICT", "TYPE_TAG")


def need(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"no {program}")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    need("clang")
    target = tmp_path_factory.mktemp("btf") / "kinds.o"
    command = ["clang", "-g", "-O2", "-Wall", "-target", "bpf", "-mcpu=v2"]
    subprocess.run([*command, "-c", str(SOURCE), "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def content(compiled) -> dict[str, bytes]:
    return sections(compiled.read_bytes())


@pytest.fixture(scope="module")
def types(content) -> Types:
    return Types(content[".BTF"])


@pytest.fixture(scope="module")
def dump(compiled) -> dict[int, dict]:
    """What bpftool says, by type id."""
    need("bpftool")
    command = ["bpftool", "-j", "btf", "dump", "file", str(compiled), "format", "raw"]
    done = subprocess.run(command, check=True, capture_output=True)
    return {row["id"]: row for row in json.loads(done.stdout)["types"]}


def behind(dump: dict[int, dict], type_id: int) -> dict:
    while dump[type_id]["kind"] in ALIASES:
        type_id = dump[type_id]["type_id"]
    return dump[type_id]


def flat(dump: dict[int, dict], row: dict, prefix: str = "", base: int = 0) -> list[tuple]:
    """(name, offset) of every plain field."""
    found = []
    for member in row["members"]:
        inner = behind(dump, member["type_id"])
        name, offset = prefix + member["name"], base + member["bits_offset"] // 8
        if inner["kind"] == "STRUCT":
            found += flat(dump, inner, name + "__", offset)
        else:
            found.append((name, offset))
    return found


def test_fixture_has_every_kind(dump):
    assert {row["kind"] for row in dump.values()} >= KINDS


def test_layout_agrees_with_bpftool(types, dump):
    seen = 0
    for row in dump.values():
        name = row.get("name", "")
        if row["kind"] != "STRUCT" or not name.startswith("nt_"):
            continue
        if name in ("nt_bits", "nt_with_union", "nt_with_float", "nt_other"):
            continue
        found = types.struct(name)
        assert found.size == row["size"] == found.codec.size
        assert [(f.name, f.offset) for f in found.fields] == flat(dump, row), name
        seen += 1
    assert seen >= 5


def test_layout_agrees_with_pahole(types, compiled):
    need("pahole")
    done = subprocess.run(
        ["pahole", "-F", "btf", "-C", "nt_values", str(compiled)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    offsets = {
        match[1]: int(match[2])
        for match in re.finditer(r"^\t[^\t/].*?(\w+)(?:\[\d+\])*;\s+/\*\s+(\d+)\s+\d+ \*/",
                                 done.stdout, re.MULTILINE)
    }  # fmt: skip
    size = int(re.search(r"/\* size: (\d+),", done.stdout)[1])
    found = types.struct("nt_values")
    assert found.size == size
    plain = {f.name: f.offset for f in found.fields if "__" not in f.name}
    assert len(plain) > 15
    assert plain == {name: offsets[name] for name in plain}


def test_values_agree_with_the_compiler(types, tmp_path):
    compiler = shutil.which("gcc") or shutil.which("clang")
    program = tmp_path / "values"
    subprocess.run([compiler, "-DHOST", "-w", str(SOURCE), "-o", str(program)], check=True)
    data = subprocess.run([str(program)], check=True, capture_output=True).stdout
    kind = types.struct("nt_values")
    assert len(data) == kind.size
    values = dict(zip(kind.names, kind.codec.unpack(data)))
    assert values == {
        "byte": 0xFE,
        "wide": 0x1122334455667788,
        "minus": -2,
        "half": 0xBEEF,
        "word": -70000,
        "long_minus": -5000000000,
        "yes": 1,
        "letter": ord("z"),
        "name": b"eth0".ljust(13, b"\0"),
        "numbers": struct.pack("<3I", 100000, 100001, 100002),
        "grid": struct.pack("<6H", *range(6)),
        "color": 0x7FFFFFFF,
        "sign": 12,
        "small": 200,
        "point__x": 1,
        "point__y": -1,
        "point__tail": 3,
        "nameless__inner": 0x80000000,
        "nameless__deep__x": 4,
        "nameless__deep__y": 5,
        "nameless__deep__tail": 6,
        "alias__x": 7,
        "alias__y": 8,
        "alias__tail": 9,
        "path": b"A" * 12,
        "pointer": 0xFFFF888012345678,
        "tagged": 16,
        "last": 255,
    }
    # And back: holes are zero, everything else as it was.
    packed = kind.pack(values)
    assert kind.codec.unpack(packed) == kind.codec.unpack(data)
    assert packed[1:8] == bytes(7) and data[1:8] == b"\xee" * 7
    elements = {field.name: field.element for field in kind.fields}
    assert (elements["numbers"], elements["grid"], elements["path"]) == ("I", "6s", "")
    assert kind.index("minus") == 2


def test_enums(types):
    assert types.enum("nt_color") == {"NT_RED": 0, "NT_GREEN": 7, "NT_BLUE": 0x7FFFFFFF}
    assert types.enum("nt_signed") == {"NT_MINUS": -3, "NT_ZERO": 0, "NT_PLUS": 12}
    assert types.enum("nt_small") == {"NT_SMALL_A": 1, "NT_SMALL_B": 200}
    with pytest.raises(KeyError):
        types.enum("nt_values")


def test_manifest_and_maps(types):
    assert types.manifest() == {
        "values": ("struct", "nt_values"),
        "color": ("enum", "nt_color"),
        "tail": ("struct", "nt_empty_tail"),
    }
    key, value = types.map_types("by_point")
    assert (key.name, key.names) == ("nt_point", ["x", "y", "tail"])
    assert (value.size, value.fields) == (8, [Field("value", 0, "Q", "")])
    key, value = types.map_types("by_number")
    assert (key.size, value.name, value.size) == (4, "nt_empty_tail", 16)
    assert types.map_types("events") == (None, None)


def test_functions_in_the_order_of_the_source(types):
    programs = [name for name in types.functions() if name.endswith("__raw_tp")]
    assert programs == ["second__raw_tp", "between__raw_tp", "first__raw_tp", "third__raw_tp",
                        "guard__raw_tp"]  # fmt: skip


def test_relocations_belong_to_their_program(types, content):
    assert relocation_roots(types, content[".BTF.ext"]) == {
        "second__raw_tp": {"nt_second"},
        "first__raw_tp": {"nt_first"},
        "third__raw_tp": {"nt_third"},
    }
    assert relocation_roots(types, b"") == {}


def test_what_a_record_must_not_have(types):
    with pytest.raises(ValueError, match="bit field 'a' in a shared struct"):
        types.struct("nt_bits")
    with pytest.raises(ValueError, match="type of kind 5 in a shared struct"):
        types.struct("nt_with_union")
    with pytest.raises(ValueError, match="type of kind 16 in a shared struct"):
        types.struct("nt_with_float")
    with pytest.raises(KeyError):
        types.struct("nt_nothing")


def test_pack_of_some_fields():
    kind = StructType("nt_x", 16, [Field("a", 0, "I", ""), Field("b", 8, "4s", "B")])
    assert kind.pack({}) == bytes(16)
    assert kind.pack({"b": b"xy"}) == bytes(8) + b"xy" + bytes(6)
    with pytest.raises(KeyError, match="struct nt_x has no c, d"):
        kind.pack({"d": 1, "c": 2, "a": 3})


def test_not_btf():
    with pytest.raises(ValueError, match="not BTF"):
        Types(bytes(64))


def blob(strings: list[str], records: bytes) -> bytes:
    text = b"\0" + b"".join(name.encode() + b"\0" for name in strings)
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(records), len(records), len(text))
    return head + records + text


def test_enum_of_64_bits_as_a_field():
    """What clang 14 does not write yet: ENUM64 (kind 19)."""
    wide = struct.pack("<III", 1, 19 << 24 | 1 << 31 | 1, 8) + struct.pack("<IiI", 6, -1, 0)
    inner = struct.pack("<III", 6, 4 << 24 | 2, 16)
    members = struct.pack("<III", 8, 1, 0) + struct.pack("<III", 10, 1, 64)
    types = Types(blob(["wide", "s", "a", "b"], wide + inner + members))
    kind = types.struct("s")
    assert kind.codec.unpack(struct.pack("<qq", -7, 9)) == (-7, 9)


# -- ELF ---------------------------------------------------------------------------------------


def test_sections_agree_with_objdump(compiled, content):
    need("llvm-objdump")
    done = subprocess.run(
        ["llvm-objdump", "-h", str(compiled)], check=True, capture_output=True, text=True
    )
    rows = re.findall(r"^ +\d+ (\S+) +([0-9a-f]{8}) ", done.stdout, re.MULTILINE)
    assert len(rows) > 10
    sizes = {name: int(size, 16) for name, size in rows}
    # .bss occupies no space in the file.
    sizes.pop(".bss", None)
    assert {name: len(data) for name, data in content.items()} == sizes


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x01\x01" + bytes(80), b"#!/bin/sh\n"])
def test_not_elf(data):
    with pytest.raises(ValueError, match="not a 64-bit little-endian ELF file"):
        sections(data)


def test_elf_cut_short(compiled):
    with pytest.raises(ValueError, match="ELF file is cut short"):
        sections(compiled.read_bytes()[:5000])
