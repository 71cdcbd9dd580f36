# SPDX-License-Identifier: GPL-2.0-only
"""Runs bpf/include/nt_filter.h in the kernel on packets the parser has parsed."""

from __future__ import annotations

import functools
import shlex
import struct
import tempfile
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Mapping, Sequence
from unittest import mock

import pytest
from object.bpfrun import ARCH, HERE, Record, RunObject, build, index, obstacle
from object.btfread import elf_sections
from object.parsing import Parser

from ntools._loader.btf import Types
from ntools.cli import filters
from ntools.engine import filter as engine_filter
from ntools.model.filter import PacketFilter
from ntools.model.packet import Packet, PacketDecoder

__all__ = ["Bench", "bench_fixture", "filter_of", "forced_sets", "harness_object"]

MAX_PACKETS = 8192
#: Enough for any filter of these tests.
ENTRIES = {"nt_tables": 256 * (8 + 600), "nt_prefixes": 1 << 16}


@functools.lru_cache(maxsize=None)
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ntools-filter-")


@functools.lru_cache(maxsize=None)
def harness_object(arch: str = ARCH) -> Path:
    """The harness as an object, made once."""
    target = Path(_directory().name) / f"filter_harness.{arch}.o"
    return build(HERE / "filter_harness.bpf.c", target, arch)


def filter_of(text: str) -> PacketFilter:
    """The filter of lines of options, as a command reads a file of them."""
    parser = filters._line_parser()
    rules = [filters._parse_line(parser, line) for line in text.splitlines() if shlex.split(line)]
    return PacketFilter(tuple(rules))


def forced_sets() -> Any:
    """Inside, a filter that constants could do is looked up in sets."""
    return mock.patch.object(engine_filter, "has_sets", lambda flt: bool(flt.rules))


class _Map:
    """A map of the harness as the engine fills it; remembers what to take out again."""

    def __init__(self, name: str, run: RunObject) -> None:
        self._name, self._run = name, run
        self._keys: List[bytes] = []

    def update(self, key: Any, value: int) -> None:
        packed = index(key) if isinstance(key, int) else struct.pack("<II16s", *key)
        self._run.update(self._name, packed, struct.pack("<Q", value))
        self._keys.append(packed)

    def clear(self) -> None:
        for key in self._keys:
            if self._name == "nt_tables":
                self._run.update(self._name, key, bytes(8))
            else:
                self._run.delete(self._name, key)
        self._keys.clear()


class Bench:
    """Packets in the kernel, and the verdict on each of them of one filter after the other.

    :ivar packets: the same packets as :mod:`ntools.model.filter` sees them.
    """

    def __init__(self) -> None:
        self.run = RunObject(harness_object(), ["judge", "idle"], entries=ENTRIES)
        sections = {s.name: s.data for s in elf_sections(harness_object())}
        self.types = Types(sections[".BTF"])
        self._maps = {name: _Map(name, self.run) for name in ENTRIES}
        self._filter = Record(self.run.btf, "nt_filter")
        self._packet = Record(self.run.btf, "nt_pkt")
        self._verdicts = Record(self.run.btf, "test_verdicts")
        self._rejects = {
            number: name[len("NT_REJECT_") :]
            for name, number in self.types.enum("nt_reject").items()
        }
        layout = self.types.struct("nt_pkt")
        self._decoder = PacketDecoder(layout.names, self.types.enum("nt_pkt_flag"), "")
        self._codec = layout.codec
        self.packets: List[Packet] = []
        self.unsure: List[bool] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_error: object) -> None:
        self.run.__exit__(None, None, None)

    def map(self, name: str) -> _Map:
        """What the engine asks its object for."""
        return self._maps[name]

    def load(self, packets: Sequence[Mapping[str, Any]]) -> None:
        """Take parsed packets, ``pkt`` of the parser's results, instead of those before."""
        assert len(packets) <= MAX_PACKETS
        self.packets = []
        for number, packet in enumerate(packets):
            packed = self._packet.pack(packet)
            self.run.update("packets", index(number), packed)
            self.packets.append(self._decoder.packet(self._codec.unpack(packed)))

    def set_filter(self, flt: PacketFilter) -> None:
        """Give the programs a filter, through the engine's own code."""
        for one in self._maps.values():
            one.clear()
        config = engine_filter.config(flt, self.types)
        fields = {name[len("filter__") :]: value for name, value in config.items()}
        self.run.update("filters", index(0), self._filter.pack(fields))
        engine_filter.fill(self, flt)  # type: ignore[arg-type]

    def judge(self, flt: PacketFilter) -> List[str]:
        """Per packet the criterion that refuses it, NONE for a wanted one."""
        self.set_filter(flt)
        self.run.update("cursor", index(0), bytes(4))
        self.run.run("judge", len(self.packets))
        found = self._verdicts.unpack(self.run.lookup("verdicts", index(0), self._verdicts.size))
        self.unsure = [bool(one) for one in found["unsure"][: len(self.packets)]]
        return [self._rejects[one] for one in found["reject"][: len(self.packets)]]

    def one(self, packet: Mapping[str, Any], text: str) -> str:
        """The verdict on one packet, which constants, sets and Python have to agree on."""
        flt = filter_of(text)
        self.load([packet])
        found = self.judge(flt)
        with forced_sets():
            assert self.judge(flt) == found
        assert flt.matches(self.packets[0]) == (found == ["NONE"])
        return found[0]


@pytest.fixture(scope="module", name="bench")
def bench_fixture() -> Iterator[Bench]:
    """The filter in the running kernel."""
    if obstacle():
        pytest.skip(obstacle())
    with Bench() as bench:
        yield bench


def parsed(parser: Parser, frames: Iterable[bytes]) -> List[Mapping[str, Any]]:
    """Frames through the parser."""
    return [parser.skb("eth", frame, 0)["pkt"] for frame in frames]
