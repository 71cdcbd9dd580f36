# SPDX-License-Identifier: GPL-2.0-only
"""Types of a kernel: read like other readers do, and no damage gets further than one error."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from object import btfread
from unit.btfmaker import ARRAY, CONST, ENUM, STRUCT, TYPEDEF, Maker, btf_of

from ntools._loader.kernel_types import ENUMS, RECORDS, TYPEDEFS, KernelTypes

SOURCE = (Path(__file__).resolve().parent / "btf_kinds.c").read_text()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """Every kind of type a compiler writes."""
    return btf_of(SOURCE, tmp_path_factory.mktemp("types"))


@pytest.fixture(scope="module")
def running() -> tuple[KernelTypes, btfread.Btf]:
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        pytest.skip("the running kernel has no BTF")
    return KernelTypes(path.read_bytes()), btfread.Btf.load(path)


def agrees(types: KernelTypes, oracle: btfread.Btf, name: str) -> None:
    other = oracle.find(name, btfread.STRUCT, btfread.UNION)
    found = types.find(name, RECORDS)
    assert other in found
    expected = sorted((m.name, m.bit_offset) for m in oracle.members(other))
    assert sorted((m.name, m.bit_offset) for m in types.members(other)) == expected
    assert types.bits(other) == oracle.bits(other)
    for member in types.members(other):
        assert types.bits(member.type_id) == oracle.bits(member.type_id), member


def test_structs_of_the_kernel_agree_with_another_reader(running):
    types, oracle = running
    for name in ("sk_buff", "net_device", "task_struct", "sock", "in6_addr", "bpf_map", "page"):
        agrees(types, oracle, name)
    names = list(oracle.names(btfread.ENUM))
    for name in names[::50]:
        assert types.find(name, ENUMS)
        assert types.enumerators(types.find(name, ENUMS)[0]) == list(
            oracle.enum(oracle.find(name, btfread.ENUM))
        )
    assert types.has("sk_buff") and types.has("u64") and not types.has("sk_buf")
    assert not types.find("sk_buff", ENUMS) and types.find("u64", TYPEDEFS)


def test_paths(running):
    types, _ = running
    (device,) = types.find("net_device", RECORDS)
    members = {m.name: m for m in types.members(device)}
    assert types.follow(device, ("ifindex",)).bit_offset == members["ifindex"].bit_offset
    name = types.follow(device, ("name", 3))
    assert name.bit_offset == members["name"].bit_offset + 24
    inner = types.follow(device, ("nd_net", "net"))
    assert inner.bit_offset == members["nd_net"].bit_offset
    for wrong in (("ifindx",), ("ifindex", "x"), ("ifindex", 0), ("name", "x")):
        assert types.follow(device, wrong) is None
    assert types.follow(device, ()).bit_offset == 0


def test_every_kind(small):
    types = KernelTypes(small)
    oracle = btfread.Btf(small)
    agrees(types, oracle, "nt_values")
    agrees(types, oracle, "nt_point")
    (color,) = types.find("nt_color", ENUMS)
    assert types.enumerators(color) == ["NT_RED", "NT_GREEN", "NT_BLUE"]


def test_two_of_one_name():
    maker = Maker()
    number = maker.number()
    first = maker.record("one", 4, ("a", number, 0))
    second = maker.record("one", 8, ("b", number, 32))
    types = KernelTypes(maker.blob())
    assert types.find("one", RECORDS) == [first, second]
    assert types.count == 3


def test_circles():
    maker = Maker()
    maker.add(TYPEDEF, "loop", 2)
    maker.add(CONST, "", 1)
    maker.add(ARRAY, tail=struct.pack("<III", 3, 3, 2))
    maker.add(STRUCT, "self", 8, (("", 4, 0), ("", 4, 0), ("x", 1, 0)))
    types = KernelTypes(maker.blob())
    for attempt in (
        lambda: types.resolve(1),
        lambda: types.bits(3),
        lambda: list(types.members(4)),
        lambda: types.follow(4, ("missing",)),
    ):
        with pytest.raises(ValueError, match="of itself|contains itself"):
            attempt()


@pytest.mark.parametrize(
    "kind, target, rows, text",
    [
        (TYPEDEF, 7, (), "refers to what is not in the file"),
        (STRUCT, 4, (("a", 9, 0),), "refers to what is not in the file"),
        (0, 0, (), "unknown kind 0"),
        (20, 0, (), "unknown kind 20"),
    ],
)
def test_types_that_cannot_be(kind, target, rows, text):
    maker = Maker()
    maker.number()
    maker.add(kind, "x", target, rows)
    with pytest.raises(ValueError, match=text):
        KernelTypes(maker.blob())


def test_names_outside():
    maker = Maker()
    maker.add(ENUM, "e", 4, count=1, tail=struct.pack("<II", 4000, 1))
    with pytest.raises(ValueError, match="refers to what is not in the file"):
        KernelTypes(maker.blob())
    maker = Maker()
    maker.types.append(struct.pack("<III", 4000, TYPEDEF << 24, 0))
    with pytest.raises(ValueError, match="no name in the file"):
        KernelTypes(maker.blob())
    maker = Maker()
    maker.add(ENUM, "e", 4, count=60000)
    with pytest.raises(ValueError, match="cut short"):
        KernelTypes(maker.blob())


def test_damaged_heads(small):
    for blob, text in (
        (b"", "not a BTF file"),
        (b"\x9f\xeb\x01", "header is cut short"),
        (small[:2] + b"\x07" + small[3:], "version 7"),
        (b"\xeb\x9f" + small[2:], "not a BTF file"),
        (small[:-1], "cut short"),
        (small[:-1] + b"x", "strings are damaged"),
    ):
        with pytest.raises(ValueError, match=text):
            KernelTypes(blob)


QUESTIONS = (
    lambda types, one: types.resolve(one),
    lambda types, one: types.bits(one),
    lambda types, one: [types.follow(one, (m.name,)) for m in types.members(one)],
    lambda types, one: types.enumerators(one),
    lambda types, one: types.name(one),
    lambda types, one: types.follow(one, (1, "a")),
)


def walk(types: KernelTypes) -> None:
    """Ask everything there is to ask."""
    for type_id in range(types.count + 1):
        for question in QUESTIONS:
            try:
                question(types, type_id)
            except ValueError:
                continue


def test_damage_anywhere(small):
    """Bytes changed at random and files cut at random: an error of one kind, or none."""
    chance = random.Random(7)
    refused = 0
    for _ in range(200):
        blob = bytearray(small)
        for _ in range(chance.choice((1, 2, 20))):
            blob[chance.randrange(len(blob))] = chance.choice((0, 1, 127, 128, 255))
        del blob[chance.choice((len(blob), len(blob), chance.randrange(len(blob)))) :]
        try:
            types = KernelTypes(bytes(blob))
        except ValueError:
            refused += 1
        else:
            walk(types)
    assert 25 < refused < 200
