# SPDX-License-Identifier: GPL-2.0-only
"""What every object keeps to, so that one file serves all kernels from 4.19 on."""

from __future__ import annotations

import re
import struct

import pytest
from object import objects
from object.btfread import ARRAY, INT, STRUCT, UNION

from ntools._loader.btf import Types
from ntools._loader.kernel import MECHANISMS
from ntools.cli.commands import COMMANDS

ALL = [(name, arch) for name in objects.names() for arch in objects.ARCHES]
CLASS_LD, CLASS_LDX, CLASS_STX, CLASS_ALU, CLASS_JMP, CLASS_JMP32, CLASS_ALU64 = 0, 1, 3, 4, 5, 6, 7
CALL, EXIT, ALWAYS, WIDE_CONSTANT, XADD = 0x85, 0x95, 0x05, 0x18, 0
RINGBUF, ARRAY_MAP, PERCPU_ARRAY = 27, 2, 6

# The last helper of 4.19 is 83. Later ones that are allowed: libbpf turns
# probe_read_{user,kernel}[_str] into probe_read[_str]; the ring buffer's are behind
# bpf_core_type_exists() in nt_channel.h.
LAST_HELPER = 83
LATER_HELPERS = {112, 113, 114, 115, 131, 132, 133}
TRACE_PRINTK = 6


@pytest.fixture(params=ALL, ids=lambda one: "{}.{}".format(*one))
def obj(request) -> objects.Object:
    return objects.load(*request.param)


def at(program: objects.Program, index: int) -> str:
    return f"{program.name}: instruction {index}"


def test_no_global_data(obj):
    """Kernels before 5.2 have no maps for it. String constants and switches make .rodata."""
    found = [name for name in obj.sections if re.match(r"\.(rodata|data|bss|kconfig|ksyms)", name)]
    assert found == []


def subprograms(obj: objects.Object, program: objects.Program) -> set[str]:
    """Functions that libbpf appends to a program, directly and indirectly called ones."""
    found: set[str] = set()
    waiting = [program.name]
    while waiting:
        for callee in obj.calls(waiting.pop()):
            if callee not in found:
                found.add(callee)
                waiting.append(callee)
    return found


def test_at_most_4096_instructions(obj):
    """4.19 takes no more in one program, its subprograms counted with it."""
    lengths = {
        name: len(program.code)
        + sum(len(obj.programs[callee].code) for callee in subprograms(obj, program))
        for name, program in obj.programs.items()
    }
    assert {name: count for name, count in lengths.items() if count > 4096} == {}


def successors(program: objects.Program, index: int) -> list[int]:
    opcode, _, offset, _ = program.code[index]
    if opcode == EXIT:
        return []
    if opcode & 7 != CLASS_JMP or opcode == CALL:
        return [index + (2 if opcode == WIDE_CONSTANT else 1)]
    return [index + 1 + offset] if opcode == ALWAYS else [index + 1, index + 1 + offset]


def loop(program: objects.Program) -> int | None:
    """An instruction that can lead back to itself, found as the verifier of 4.19 does.

    A jump back alone is none: the compiler puts rare branches to the end and returns from there.
    """
    entered, left = {0}, set()
    path = [(0, iter(successors(program, 0)))]
    while path:
        index, following = path[-1]
        target = next(following, None)
        if target is None:
            left.add(index)
            path.pop()
        elif target not in entered:
            entered.add(target)
            path.append((target, iter(successors(program, target))))
        elif target not in left:
            return index
    return None


def test_no_loops(obj):
    """Kernels before 5.3 refuse every loop the compiler has not unrolled."""
    for program in obj.programs.values():
        assert loop(program) is None, at(program, loop(program))


def test_loops_are_found():
    straight = (0xB7, 0, 0, 0), (EXIT, 0, 0, 0)
    rare = (0x15, 0, 2, 0), (0xB7, 0, 0, 0), (EXIT, 0, 0, 0), (ALWAYS, 0, -3, 0)
    around = (0xB7, 0, 0, 0), (0x15, 0, -2, 0), (EXIT, 0, 0, 0)
    itself = (0xB7, 0, 0, 0), (ALWAYS, 0, -1, 0)
    for code, found in ((straight, None), (rare, None), (around, 1), (itself, 1)):
        assert loop(objects.Program("p", "?raw_tp/x", 0, code)) == found


def test_only_instructions_of_version_2(obj):
    for program in obj.programs.values():
        skip = False
        for index, (opcode, registers, offset, immediate) in enumerate(program.code):
            if skip:  # second half of a 64-bit constant
                skip = False
                continue
            kind, mode, operation = opcode & 7, opcode & 0xE0, opcode & 0xF0
            skip = opcode == WIDE_CONSTANT
            assert kind != CLASS_JMP32, at(program, index)
            if kind == CLASS_ALU:  # of this class version 2 has byte swaps only
                assert operation == 0xD0, at(program, index)
            if kind in (CLASS_ALU, CLASS_ALU64):
                assert offset == 0, at(program, index)  # version 4: sign extension, division
            if kind == CLASS_ALU64:
                assert operation != 0xD0, at(program, index)
            if kind == CLASS_LDX:
                assert mode == 0x60, at(program, index)
            if kind == CLASS_STX and mode == 0xC0:
                assert immediate == XADD, at(program, index)
            if opcode == CALL and registers >> 4 == 1:
                assert obj.calls(program.name), at(program, index)


def test_helpers_exist_in_4_19(obj):
    for program in obj.programs.values():
        for index, (opcode, registers, _, helper) in enumerate(program.code):
            if opcode == CALL and registers >> 4 == 0:
                assert helper <= LAST_HELPER or helper in LATER_HELPERS, at(program, index)
                assert helper != TRACE_PRINTK, at(program, index)


def test_names_and_sections(obj):
    points = {}
    for program in obj.programs.values():
        if program.section == ".text":
            continue
        assert program.section.startswith("?"), program
        assert program.mechanism in MECHANISMS, program.section
        assert re.fullmatch(r"\w+(\.\w+)*", program.target), program.section
        parts = program.name.split("__")
        assert parts[-1] == program.mechanism, program.name
        assert len(parts) in (2, 3) and all(parts), program.name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", parts[0]), program.name
        points.setdefault(program.point, []).append(program)
    assert points
    for kind in (list(obj.programs), obj.maps):
        short = [name[:15] for name in kind]
        assert sorted(set(short)) == sorted(short), "not unique in 15 characters"
    if "license" in obj.sections:
        assert obj.sections["license"] == b"GPL\0"


@pytest.mark.parametrize("name", objects.names())
def test_both_architectures_have_the_same_points(name):
    def shape(one: objects.Object) -> dict[str, str]:
        return {p.name: p.section for p in one.programs.values() if p.section != ".text"}

    x86, arm64 = (objects.load(name, arch) for arch in objects.ARCHES)
    assert shape(x86) == shape(arm64)
    assert x86.maps == arm64.maps
    assert x86.sections[".BTF"] == arm64.sections[".BTF"] or set(x86.types().manifest()) == set(
        arm64.types().manifest()
    )


def test_manifest(obj):
    types = obj.types()
    manifest = types.manifest()
    assert len(obj.sections[".ntools"]) > 0
    assert not any(obj.sections[".ntools"])
    assert manifest["cfg"][0] == "struct"
    assert ("enum", "nt_loss") in manifest.values()
    for name, (kind, of) in manifest.items():
        assert of.startswith("nt_"), name
        if kind == "struct":
            assert types.struct(of).fields
        else:
            assert types.enum(of)


def plain_members(obj: objects.Object, type_id: int):
    """(name, bits from the beginning, width) of everything in a struct, down to numbers."""
    for member in obj.btf.members(type_id):
        if obj.btf.kind(member.type_id) in (STRUCT, UNION):
            for name, place, width in plain_members(obj, member.type_id):
                yield f"{member.name}.{name}", member.bit_offset + place, width
        else:
            yield member.name, member.bit_offset, member.bits


def shared_structs(obj: objects.Object) -> set[str]:
    types = obj.types()
    found = {of for kind, of in types.manifest().values() if kind == "struct"}
    for name in obj.maps:
        found |= {side.name for side in types.map_types(name) if side and side.name}
    return found


def test_shared_structs_have_whole_fields(obj):
    """No bit fields; no unions; every field on its own bytes."""
    types: Types = obj.types()
    for name in shared_structs(obj):
        type_id = obj.btf.find(name, STRUCT)
        end = 0
        for field, place, width in plain_members(obj, type_id):
            assert place % 8 == 0 and width % 8 == 0, f"{name}.{field} is a bit field"
            assert place >= end, f"{name}.{field} shares its bytes"
            end = place + width
        assert types.struct(name).size * 8 == obj.btf.bits(type_id)


def map_definition(obj: objects.Object, name: str) -> dict[str, int]:
    """Numbers of a map's definition: type, max_entries, flags."""
    btf = obj.btf
    variable = btf.find(name, 14)
    found = {}
    for member in btf.members(btf._head(variable)[4]):
        target = btf.pointee(member.type_id)
        if btf.kind(target) == ARRAY and btf.kind(btf._unpack(target, "<III", 0)[0]) == INT:
            found[member.name] = btf._unpack(target, "<III", 0)[2]
    return found


def test_channels(obj):
    """Made by the macro, which falls back to perf pages; records are whole words."""
    types = obj.types()
    manifest = types.manifest()
    channels = [name for name in obj.maps if map_definition(obj, name)["type"] == RINGBUF]
    for name in channels:
        assert name + "_scratch" in obj.maps
        record = types.struct(manifest[name][1])
        assert record.size % 8 == 0
        assert types.map_types(name + "_scratch")[1].name == record.name
        # In order of time, which the perf reader merges by.
        assert record.fields[0].name.endswith("ts_ns") or record.fields[0].format == "Q"
        size = map_definition(obj, name)["max_entries"]
        assert size >= 256 << 10 and size & (size - 1) == 0
    for name in obj.maps:
        assert not name.endswith("_scratch") or name[: -len("_scratch")] in channels


def test_maps_every_object_has(obj):
    types = obj.types()
    cfg, loss = map_definition(obj, "nt_cfg"), map_definition(obj, "nt_loss")
    assert (cfg["type"], cfg["max_entries"]) == (ARRAY_MAP, 1)
    assert types.map_types("nt_cfg")[1].name == types.manifest()["cfg"][1]
    assert loss["type"] == PERCPU_ARRAY
    assert loss["max_entries"] == types.enum("nt_loss")["NT_LOSS_MAX"]
    assert types.map_types("nt_loss")[1].codec.format == "<Q"


def test_keys_have_no_holes(obj):
    """What lies in a hole differs between two equal keys on the stack."""
    for name in obj.maps:
        key, _ = obj.types().map_types(name)
        if key and key.name:
            used = sum(struct.calcsize("<" + field.format) for field in key.fields)
            assert used == key.size, f"key of map '{name}'"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda row: row.name)
def test_a_command_has_the_guard_by_being_one(command):
    for name in command.objects:
        types = objects.load(name, "x86").types()
        fields = {field.name for field in types.struct(types.manifest()["cfg"][1]).fields}
        assert {"guard__heartbeat_ns", "guard__sample_shift", "guard__flags"} <= fields, name
        assert {"nt_rates", "nt_gates", "nt_flows"} <= set(objects.load(name, "x86").maps), name
        assert types.enum("nt_guard_flag") and types.enum("nt_guard_size"), name


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda row: row.name)
def test_points_of_a_command_are_in_its_objects(command):
    for name in command.objects:
        points = {program.point for program in objects.load(name, "x86").programs.values()}
        assert set(command.needed + command.wanted) <= points, name
