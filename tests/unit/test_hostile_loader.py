# SPDX-License-Identifier: GPL-2.0-only
"""Files and pages with anything in them: ELF, BTF, ring buffer, perf pages, the kernel's enums."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.hostile import few, hang_guard

import ntools
from ntools._loader import kernel as kernel_module
from ntools._loader.btf import Field, StructType, Types, relocation_roots
from ntools._loader.elf import sections
from ntools._loader.kernel import KernelFacts
from ntools._loader.perf import PerfChannel
from ntools._loader.ring import RingChannel
from ntools.errors import EnvironmentProblem

OBJECT = Path(ntools.__file__).parent / "bpf" / "drop.x86.bpf.o"
PAGE = mmap.PAGESIZE
U32 = st.one_of(st.integers(0, 64), st.sampled_from([2**31, 2**32 - 1, 2**31 - 1]),
                st.integers(0, 2**32 - 1))  # fmt: skip


@pytest.fixture(scope="module")
def content():
    if not OBJECT.exists():
        pytest.skip("no object: make build")
    return OBJECT.read_bytes()


def attempt(action, *args, also=()):
    """Result of an action that may refuse, with a ValueError that says something."""
    try:
        return action(*args)
    except ValueError as error:
        assert type(error) is ValueError and str(error), repr(error)
    except also:
        pass
    return None


def damage(blob: bytes, edits: list[tuple[int, int]], end: int) -> bytes:
    """A copy with bytes changed, and cut."""
    changed = bytearray(blob)
    for place, value in edits:
        changed[place % len(changed)] = value
    return bytes(changed[: len(changed) - end % len(changed)])


EDITS = st.lists(st.tuples(st.one_of(st.integers(0, 64), st.integers(0, 1 << 20)),
                           st.integers(0, 255)), max_size=8)  # fmt: skip
CUT = st.one_of(st.just(0), st.integers(0, 1 << 20))


# -- ELF ---------------------------------------------------------------------------------------


@given(edits=EDITS, cut=CUT)
def test_damaged_elf(content, edits, cut):
    data = damage(content, edits, cut)
    found = attempt(sections, data)
    assert found is None or sum(map(len, found.values())) <= len(data)


@given(
    table=st.integers(0, 2**64 - 1), entry=st.integers(0, 65535), count=st.integers(0, 65535),
    names=st.integers(0, 65535), rest=st.binary(max_size=300),
)  # fmt: skip
@example(table=2**64 - 1, entry=64, count=1, names=0, rest=b"")
@example(table=64, entry=1, count=65535, names=0, rest=b"a\0" * 40000)
def test_any_elf_header(table, entry, count, names, rest):
    head = bytearray(b"\x7fELF\x02\x01".ljust(64, b"\0"))
    struct.pack_into("<Q", head, 40, table)
    struct.pack_into("<HHH", head, 58, entry, count, names)
    data = bytes(head) + rest
    found = attempt(sections, data)
    assert found is None or sum(map(len, found.values())) <= len(data)


# -- BTF ---------------------------------------------------------------------------------------


def use(types: Types, names) -> None:
    """Everything a command asks its object; names that are not there raise KeyError, as told."""
    attempt(types.functions)
    attempt(types.manifest, also=KeyError)
    for name in names:
        layout = attempt(types.struct, name, also=KeyError)
        if layout is not None:
            assert len(layout.pack({})) == layout.size == layout.codec.size
        attempt(types.enum, name, also=KeyError)
        attempt(types.map_types, name, also=KeyError)
    for number in (0, 1, 2, 2**31):
        attempt(types.name, number)
        attempt(types.root_name, number)


NAMES = ["nt_manifest", "nt_drop_event", "nt_drop_cfg", "nt_pkt", "nt_loss", "nt_drop_by",
         "events", "drop_groups", "nt_cfg", "a", "b", "c", ""]  # fmt: skip


@given(edits=EDITS, cut=CUT)
def test_damaged_btf(content, edits, cut):
    found = sections(content)
    with hang_guard():
        types = attempt(Types, damage(found[".BTF"], edits, cut))
        if types is not None:
            use(types, NAMES)


@given(edits=EDITS, cut=CUT)
def test_damaged_relocations(content, edits, cut):
    found = sections(content)
    with hang_guard():
        attempt(relocation_roots, Types(found[".BTF"]), damage(found[".BTF.ext"], edits, cut))


def btf(records: list[tuple], text: bytes = b"\0a\0b\0c\0nt_manifest\0") -> bytes:
    """A blob of (name, kind, vlen, flag, size or type, words that follow)."""
    body = b"".join(
        struct.pack("<III", name, flag << 31 | kind << 24 | vlen, size)
        + struct.pack(f"<{len(words)}I", *words)
        for name, kind, vlen, flag, size, words in records
    )
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(text))
    return head + body + text


def deep(levels: int) -> bytes:
    """Structs that each hold the one before twice: the last has 2 ** levels fields."""
    records = [(0, 1, 0, 0, 4, [32])]
    for level in range(levels):
        name = 1 if level == levels - 1 else 0
        size, half = 8 << min(level, 20), 32 << min(level, 20)
        records.append((name, 4, 2, 0, size, [3, level + 1, 0, 5, level + 1, half]))
    return btf(records)


RECORDS = st.lists(
    st.tuples(st.sampled_from([0, 1, 3, 5, 7, 99]), st.integers(0, 20), st.integers(0, 3),
              st.integers(0, 1), U32, st.lists(U32, max_size=9)), max_size=12,
)  # fmt: skip


@given(records=RECORDS)
@example(records=[(1, 8, 0, 0, 1, [])])  # a typedef of itself
@example(records=[(0, 8, 0, 0, 2, []), (0, 10, 0, 0, 1, []), (1, 4, 1, 0, 4, [3, 1, 0])])
@example(records=[(1, 4, 1, 0, 4, [3, 1, 0])])  # a struct in itself
@example(records=[(0, 3, 0, 0, 0, [1, 1, 2**32 - 1]), (1, 4, 1, 0, 4, [3, 1, 0])])
@example(records=[(0, 1, 0, 0, 3, [24]), (1, 4, 1, 0, 4, [3, 1, 0])])  # an int of 3 bytes
@example(records=[(0, 1, 0, 0, 4, [32]), (1, 4, 1, 0, 2**32 - 1, [3, 1, 0])])  # 4 GiB
@example(records=[(0, 1, 0, 0, 4, [32]), (1, 4, 2, 0, 8, [3, 1, 32, 5, 1, 0])])  # backwards
def test_any_btf(records):
    with hang_guard():
        types = attempt(Types, btf(records))
        if types is not None:
            use(types, NAMES)


@pytest.mark.parametrize("levels", [3, 24, 1500])
def test_nested_structs_have_a_bound(levels):
    with hang_guard():
        layout = attempt(Types(deep(levels)).struct, "a")
    assert (layout is not None) == (levels == 3)
    assert layout is None or len(layout.names) == 8


# -- enums of the kernel, searched in its bytes ------------------------------------------------

ENUM = btf([(1, 6, 2, 0, 4, [3, 7, 5, 9])])


def test_the_enum_to_be_damaged():
    assert kernel_module._enum_in(ENUM, "a") == {7: "b", 9: "c"}


@given(edits=EDITS, cut=CUT, split=st.booleans())
@example(edits=[], cut=len(ENUM) - 2, split=False)
@example(edits=[(len(ENUM) - 1, 1)], cut=0, split=False)
def test_damaged_enum(edits, cut, split):
    blob = damage(ENUM, edits, cut)
    with hang_guard():
        for base in (ENUM, b"") if split else (b"",):
            found = attempt(kernel_module._enum_in, blob, "a", base)
            assert found is None or all(isinstance(name, str) for name in found.values())


@given(blob=st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(b"\x9f\xeb".__add__)))
@few(50)
def test_any_file_as_type_information(tmp_path_factory, blob):
    """``--btf FILE``: usable, or refused with a line that says so."""
    path = tmp_path_factory.mktemp("btf") / "file"
    path.write_bytes(blob)
    kernel = KernelFacts(str(path))
    for ask in (lambda: kernel.enum_names("a"), lambda: kernel.has_name("a"),
                lambda: kernel.has_ringbuf):  # fmt: skip
        try:
            ask()
        except EnvironmentProblem as problem:
            assert str(path) in str(problem)


def test_endless_file_as_type_information():
    with hang_guard(), pytest.raises(EnvironmentProblem, match="not a BTF file"):
        KernelFacts("/dev/zero").core_btf  # noqa: B018


# -- pages shared with the kernel --------------------------------------------------------------

RECORD = StructType("nt_test", 20, [Field("ts_ns", 0, "Q", ""), Field("body", 8, "12s", "B")])
CAPACITY = PAGE
WORDS = st.lists(st.one_of(
    st.sampled_from([0, 20, 8, 16, 1 << 30, 1 << 31, 3 << 30, 20 | 1 << 30, 0xFFFFFFFF]), U32,
), max_size=40)  # fmt: skip
POSITION = st.one_of(st.integers(0, 200), st.sampled_from([CAPACITY, 2**63, 2**64 - 8]),
                     st.integers(0, 2**64 - 1))  # fmt: skip


@given(words=WORDS, consumer=POSITION, ahead=POSITION)
@example(words=[8 | 1 << 30], consumer=0, ahead=16)  # a short discarded record at the end
@example(words=[20], consumer=0, ahead=8)
@example(words=[20], consumer=0, ahead=2**63)
def test_ring_with_foreign_bytes(words, consumer, ahead):
    """Reading ends, and gives no more than the ring can hold."""
    pages = mmap.mmap(-1, PAGE), mmap.mmap(-1, PAGE + 2 * CAPACITY)
    struct.pack_into("<Q", pages[0], 0, consumer)
    struct.pack_into("<Q", pages[1], 0, (consumer + ahead) % 2**64)
    for at, word in enumerate(words):
        place = PAGE + (consumer // 8 * 8 + 4 * at) % CAPACITY
        for copy in (0, CAPACITY):
            struct.pack_into("<I", pages[1], place + copy, word)
    channel = RingChannel(-1, RECORD, CAPACITY, pages)
    with hang_guard():
        rows = list(channel.read())
        assert len(rows) <= CAPACITY // 32
        assert all(len(row) == 2 for row in rows)
    channel.close()


@given(words=WORDS, tail=POSITION, ahead=POSITION)
@example(words=[9, 0], tail=0, ahead=64)  # a record of no length
@example(words=[9, 12 << 16], tail=0, ahead=64)  # shorter than ours
@example(words=[2, 8 << 16], tail=0, ahead=64)  # a count of losses without the count
@example(words=[9, 40 << 16], tail=0, ahead=2**62)
def test_perf_pages_with_foreign_bytes(words, tail, ahead):
    pages = mmap.mmap(-1, 2 * PAGE)
    struct.pack_into("<QQ", pages, 1024, (tail + ahead) % 2**64, tail)
    for at, word in enumerate(words):
        struct.pack_into("<I", pages, PAGE + (tail + 4 * at) % (PAGE - 4), word)
    channel = PerfChannel(None, RECORD, [pages])
    with hang_guard():
        rows = list(channel.read())
        assert len(rows) <= PAGE // 8
        assert all(len(row) == 2 for row in rows) and channel.lost >= 0
        assert list(channel.read()) == []
    channel.close()
