# SPDX-License-Identifier: GPL-2.0-only
"""Runs packets through bpf/include/nt_*.h in the kernel."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

import pytest
from object.bpfrun import ARCH, HERE, Record, RunObject, build, index, obstacle
from object.btfread import ENUM, Btf
from object.oracle import FLAGS

__all__ = ["HEADROOM", "Parser", "compiled", "flags_of", "harness_fixture", "parser_fixture"]

# Bytes before the packet: room for MAC header and tags, as in a real buffer.
HEADROOM = 64
# What memory behind the end holds, so that a read too far shows.
BEHIND = b"\xc7"


@functools.lru_cache(maxsize=None)
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ntools-harness-")


@functools.lru_cache(maxsize=None)
def compiled(arch: str = ARCH) -> Path:
    """The harness as an object; made once, it takes seconds."""
    if not shutil.which("clang"):
        pytest.skip("needs clang")
    target = Path(_directory().name) / f"parse_harness.{arch}.o"
    return build(HERE / "parse_harness.bpf.c", target, arch)


@pytest.fixture(scope="module", name="harness")
def harness_fixture() -> Path:
    """The harness, where it can run."""
    if obstacle():
        pytest.skip(obstacle())
    return compiled()


def flags_of(result: Mapping[str, Any]) -> set[str]:
    """Names of the flags of a packet."""
    return {name for name, bit in FLAGS.items() if result["pkt"]["flags"] & bit}


class Parser:
    """The programs of the harness that run on demand."""

    SKB = ("data", "eth", "net", "any", "out", "nomac")

    def __init__(self, path: Path, btf: Optional[Path] = None) -> None:
        """:param btf: types of another kernel: images of sk_buff are laid out as there."""
        self.names = [f"skb_{name}{way}" for name in self.SKB for way in ("", "_d")]
        if not btf:
            self.names.append("bytes")
        self.object = RunObject(path, self.names, btf)
        self._input = Record(self.object.btf, "test_input")
        self._output = Record(self.object.btf, "test_output")
        self._skb = Record(Btf.load(btf or Path("/sys/kernel/btf/vmlinux")), "sk_buff")
        self.has = self._skb.has

    def __enter__(self) -> Parser:
        return self

    def __exit__(self, *_error: object) -> None:
        self.object.__exit__(None, None, None)

    def enum(self, name: str) -> dict[str, int]:
        """Names and values of an enum of the headers."""
        found = self.object.btf.find(name, ENUM)
        assert found
        return self.object.btf.enum(found)

    def used(self, *names: str) -> int:
        """Mask of filter criteria."""
        return sum(self.enum("nt_filter_use")[f"NT_F_{name}"] for name in names)

    def _run(self, program: str, values: Mapping[str, Any], memory: bytes) -> dict[str, Any]:
        full = memory.ljust(1024, BEHIND)
        self.object.update("input", index(0), self._input.pack({**values, "bytes": full}))
        self.object.update("output", index(0), bytes(self._output.size))
        self.object.run(program)
        return self._output.unpack(self.object.lookup("output", index(0), self._output.size))

    def bytes(
        self,
        packet: bytes,
        proto: int,
        linear: Optional[int] = None,
        end: Optional[int] = None,
        filter: Optional[Mapping[str, Any]] = None,
        inner: bool = False,
    ) -> dict[str, Any]:
        """Parses what is behind an EtherType; lengths count from there, default all of it."""
        length = len(packet) if end is None else end
        values = {
            "off": HEADROOM,
            "linear": HEADROOM + (length if linear is None else linear),
            "end": HEADROOM + length,
            "proto": proto,
            "inner": int(inner),
            "filter": filter or {},
        }
        return self._run("bytes", values, bytes(HEADROOM) + packet)

    def skb(
        self,
        where: str,
        frame: bytes,
        data: int,
        filter: Optional[Mapping[str, Any]] = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Parses an skb of a frame, by probe reads and by direct loads, which have to agree.

        :param data: where in the frame skb->data is.
        :param fields: of struct sk_buff; offsets count from skb->head, HEADROOM before the frame.
        """
        if "len" not in fields:
            fields["len"] = len(frame) - data
        image = self._skb.pack(fields)
        values = {"data": HEADROOM + data, "skb": image, "filter": filter or {}}
        memory = bytes(HEADROOM) + frame
        probed = self._run(f"skb_{where}", values, memory)
        direct = self._run(f"skb_{where}_d", values, memory)
        assert probed == direct
        return probed


@pytest.fixture(scope="module", name="parser")
def parser_fixture(harness: Path) -> Iterator[Parser]:
    """The harness in the running kernel."""
    with Parser(harness) as parser:
        yield parser
