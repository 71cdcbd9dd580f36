# SPDX-License-Identifier: GPL-2.0-only
"""The few bpf() and perf_event_open() calls with which tests look at the kernel by themselves.

An oracle must not share code with what it judges, so nothing here uses the project's loader.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, Iterator, Optional, Tuple, Union

__all__ = [
    "BpfObjects",
    "attach_kprobe",
    "attach_raw",
    "batch_works",
    "bpf_leftovers",
    "bpf_snapshot",
    "btf_id",
    "create_map",
    "load_program",
    "objects_of",
    "program_runs",
    "run_statistics",
]

_NR_BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
_NR_PERF = {"x86_64": 298, "aarch64": 241}[platform.machine()]
_MAP_CREATE, _PROG_LOAD, _RAW_OPEN, _LOOKUP_BATCH = 0, 5, 17, 24
_PROG_NEXT, _MAP_NEXT, _LINK_NEXT = 11, 12, 31
_PROG_FD, _MAP_FD, _LINK_FD, _INFO = 13, 14, 30, 15
_ENABLE_STATS = 32
_RUN_TIME_AT, _RUNS_AT = 192, 200  # in struct bpf_prog_info
MAP_HASH, MAP_RINGBUF = 1, 27
PROG_RAW_TRACEPOINT, PROG_TRACING = 17, 26
TRACE_RAW_TP, TRACE_FENTRY = 23, 24

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attribute: Union[bytes, bytearray]) -> int:
    buffer = ctypes.create_string_buffer(bytes(attribute).ljust(160, b"\0"), 160)
    result = int(_libc.syscall(_NR_BPF, command, buffer, 160))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf({command}): {os.strerror(number)}")
    attribute[:] = buffer.raw  # type: ignore[index]
    return result


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def create_map(kind: int, key_bytes: int, value_bytes: int, entries: int) -> int:
    """Descriptor of a new map."""
    return _bpf(_MAP_CREATE, bytearray(struct.pack("=IIII", kind, key_bytes, value_bytes, entries)))


def btf_id(name: str, attach_type: int) -> int:
    """Type id of a function or tracepoint in the kernel's BTF, through libbpf."""
    libbpf = ctypes.CDLL("libbpf.so.1")
    libbpf.libbpf_find_vmlinux_btf_id.argtypes = [ctypes.c_char_p, ctypes.c_int]
    found = int(libbpf.libbpf_find_vmlinux_btf_id(name.encode(), attach_type))
    if found <= 0:
        raise OSError(-found, f"no BTF of '{name}'")
    return found


def load_program(kind: int, attach_type: int = 0, attach_btf_id: int = 0) -> int:
    """Descriptor of a program that returns 0."""
    code = ctypes.create_string_buffer(bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95]).ljust(16, b"\0"))
    text = ctypes.create_string_buffer(b"GPL")
    attribute = bytearray(160)
    struct.pack_into("=IIQQ", attribute, 0, kind, 2, ctypes.addressof(code), ctypes.addressof(text))
    attribute[48:55] = b"ntcheck"
    struct.pack_into("=I", attribute, 68, attach_type)
    struct.pack_into("=I", attribute, 108, attach_btf_id)
    return _bpf(_PROG_LOAD, attribute)


def attach_raw(program: int, tracepoint: Optional[str] = None) -> None:
    """Attaches a raw tracepoint or tracing program and detaches it again."""
    name = ctypes.create_string_buffer((tracepoint or "").encode())
    address = ctypes.addressof(name) if tracepoint else 0
    os.close(_bpf(_RAW_OPEN, bytearray(struct.pack("=QI", address, program))))


def attach_kprobe(function: str) -> None:
    """Makes and removes a kprobe through the perf kprobe device."""
    with open("/sys/bus/event_source/devices/kprobe/type") as stream:
        kind = int(stream.read())
    name = ctypes.create_string_buffer(function.encode())
    attribute = bytearray(112)
    struct.pack_into("=II", attribute, 0, kind, len(attribute))
    struct.pack_into("=Q", attribute, 56, ctypes.addressof(name))
    buffer = ctypes.create_string_buffer(bytes(attribute), len(attribute))
    result = int(_libc.syscall(_NR_PERF, buffer, -1, 0, -1, 8))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"kprobe {function}: {os.strerror(number)}")
    os.close(result)


def batch_works() -> bool:
    """True when a hash map can be read in batches."""
    with _closing(create_map(MAP_HASH, 4, 4, 8)) as descriptor:
        out, keys = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
        values = ctypes.create_string_buffer(64)
        attribute = bytearray(
            struct.pack(
                "=QQQQII",
                0,
                ctypes.addressof(out),
                ctypes.addressof(keys),
                ctypes.addressof(values),
                8,
                descriptor,
            )
        )
        try:
            _bpf(_LOOKUP_BATCH, attribute)
        except FileNotFoundError:
            return True  # ENOENT: the command exists and the map is empty
        except OSError:
            return False
    return True


@dataclass
class BpfObjects:
    """Programs, maps and links of the kernel: id to name (links: id of their program)."""

    progs: Dict[int, str] = field(default_factory=dict)
    maps: Dict[int, str] = field(default_factory=dict)
    links: Dict[int, str] = field(default_factory=dict)

    def counts(self) -> Dict[str, int]:
        """Number of each kind."""
        return {"progs": len(self.progs), "maps": len(self.maps), "links": len(self.links)}


def _info(descriptor: int) -> bytes:
    buffer = ctypes.create_string_buffer(256)
    _bpf(_INFO, bytearray(struct.pack("=IIQ", descriptor, 256, ctypes.addressof(buffer))))
    return buffer.raw


def _walk(next_command: int, open_command: int) -> Iterator[bytes]:
    current = 0
    while True:
        attribute = bytearray(struct.pack("=III", current, 0, 0))
        try:
            _bpf(next_command, attribute)
        except OSError:
            return
        current = struct.unpack_from("=I", attribute, 4)[0]
        try:
            descriptor = _bpf(open_command, bytearray(struct.pack("=I", current)))
        except FileNotFoundError:
            continue
        with _closing(descriptor):
            yield struct.pack("=I", current) + _info(descriptor)


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")


def bpf_snapshot() -> BpfObjects:
    """Everything that is loaded now. Kernels before 5.8 have no link ids."""
    found = BpfObjects()
    for raw in _walk(_PROG_NEXT, _PROG_FD):
        found.progs[struct.unpack_from("=I", raw)[0]] = _text(raw[4 + 64 : 4 + 80])
    for raw in _walk(_MAP_NEXT, _MAP_FD):
        found.maps[struct.unpack_from("=I", raw)[0]] = _text(raw[4 + 24 : 4 + 40])
    for raw in _walk(_LINK_NEXT, _LINK_FD):
        number, program = struct.unpack_from("=I", raw)[0], struct.unpack_from("=I", raw, 12)[0]
        found.links[number] = str(program)
    return found


def objects_of(pid: int) -> BpfObjects:
    """Programs, maps and links a process has open, by id; other runs of the host do not count."""
    found = BpfObjects()
    kinds = {"prog_id": found.progs, "map_id": found.maps, "link_id": found.links}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            for line in entry.read_text().splitlines():
                name, _, value = line.partition(":")
                if name in kinds:
                    kinds[name][int(value)] = ""
    return found


@contextlib.contextmanager
def run_statistics() -> Iterator[None]:
    """The kernel's run statistics of programs are on inside; kernels from 5.8 on."""
    with _closing(_bpf(_ENABLE_STATS, bytearray(4))):
        yield


def program_runs(programs: Iterable[int]) -> Tuple[int, int]:
    """(run time in ns, runs) of these programs together."""
    total_ns = total_runs = 0
    for number in programs:
        with _closing(_bpf(_PROG_FD, bytearray(struct.pack("=I", number)))) as descriptor:
            info = _info(descriptor)
        total_ns += struct.unpack_from("=Q", info, _RUN_TIME_AT)[0]
        total_runs += struct.unpack_from("=Q", info, _RUNS_AT)[0]
    return total_ns, total_runs


def bpf_leftovers(
    since: Optional[BpfObjects] = None, names: Iterable[str] = (), settle_s: float = 30
) -> BpfObjects:
    """What is loaded now and was not in ``since``; empty is what a test wants.

    The kernel frees programs and maps some time after their last user is gone, so this waits
    up to ``settle_s`` for an empty answer.

    :param names: only programs and maps whose name (15 characters) begins with one of these.
    """
    before, wanted = since or BpfObjects(), tuple(name[:15] for name in names)
    deadline = time.monotonic() + settle_s
    while True:
        now, left = bpf_snapshot(), BpfObjects()
        for kind in ("progs", "maps", "links"):
            old = getattr(before, kind)
            fresh = {key: name for key, name in getattr(now, kind).items() if key not in old}
            if wanted and kind != "links":
                fresh = {key: name for key, name in fresh.items() if name.startswith(wanted)}
            setattr(left, kind, fresh)
        if wanted:
            left.links = {key: p for key, p in left.links.items() if int(p) in left.progs}
        if not any(left.counts().values()) or time.monotonic() > deadline:
            return left
        time.sleep(0.1)
