# SPDX-License-Identifier: GPL-2.0-only
"""Loads a test object with libbpf and runs its programs; not the project's loader on purpose."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Iterable, Mapping, Optional

import cffi
from object.btfread import ARRAY, STRUCT, UNION, Btf

__all__ = ["ARCH", "HERE", "Record", "RunObject", "build", "index", "obstacle"]

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
ARCH = {"x86_64": "x86", "aarch64": "arm64"}[os.uname().machine]
FLAGS = ["-g", "-O2", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-mcpu=v2",
         f"-I{TOP / 'bpf' / 'include'}", f"-I{TOP / 'vmlinux'}"]  # fmt: skip

_ffi = cffi.FFI()
_ffi.cdef("""
    struct bpf_object_open_opts {
        size_t sz; const char *object_name; bool relaxed_maps; const char *pin_root_path;
        uint32_t reserved; const char *kconfig; const char *btf_custom_path;
        char *kernel_log_buf; size_t kernel_log_size; uint32_t kernel_log_level;
    };
    struct bpf_test_run_opts {
        size_t sz; const void *data_in; void *data_out; uint32_t data_size_in;
        uint32_t data_size_out; const void *ctx_in; void *ctx_out; uint32_t ctx_size_in;
        uint32_t ctx_size_out; uint32_t retval; int repeat; uint32_t duration; uint32_t flags;
        uint32_t cpu; uint32_t batch_size;
    };
    typedef int (*print_fn)(int level, const char *format, void *args);
    print_fn libbpf_set_print(print_fn fn);
    void *bpf_object__open_file(const char *path, const struct bpf_object_open_opts *opts);
    int bpf_object__load(void *object);
    void bpf_object__close(void *object);
    void *bpf_object__next_program(const void *object, void *program);
    const char *bpf_program__name(const void *program);
    int bpf_program__set_autoload(void *program, bool autoload);
    int bpf_program__fd(const void *program);
    int bpf_program__set_log_buf(void *program, char *buffer, size_t size);
    int bpf_program__set_log_level(void *program, uint32_t level);
    void *bpf_program__attach(const void *program);
    int bpf_link__destroy(void *link);
    int bpf_object__find_map_fd_by_name(const void *object, const char *name);
    void *bpf_object__find_map_by_name(const void *object, const char *name);
    int bpf_map__set_max_entries(void *map, uint32_t entries);
    int bpf_map_delete_elem(int fd, const void *key);
    int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
    int bpf_map_lookup_elem(int fd, const void *key, void *value);
    int bpf_map_get_next_key(int fd, const void *key, void *next_key);
    int bpf_prog_test_run_opts(int fd, struct bpf_test_run_opts *opts);
""")


def obstacle() -> str:
    """Why programs cannot be run here, empty if they can."""
    if os.geteuid():
        return "needs root"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "needs the kernel's BTF"
    return ""


def build(source: Path, target: Path, arch: str = ARCH) -> Path:
    """Compiles a BPF object the way the build does, every warning an error."""
    command = ["clang", *FLAGS, f"-D__TARGET_ARCH_{arch}", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


class Record:
    """A struct of an object: packs and unpacks it by the object's BTF."""

    def __init__(self, btf: Btf, name: str, kind: int = STRUCT) -> None:
        found = btf.find(name, kind)
        if found is None:
            raise KeyError(name)
        self._btf, self._id = btf, found
        self.size = btf.bits(found) // 8
        self._bits = {member.name: member for member in btf.members(found)}

    def has(self, name: str) -> bool:
        """True if there is a member of that name."""
        return name in self._bits

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Values by name; arrays as bytes, inner records as dictionaries."""
        return self._take(self._id, data, 0)

    def _take(self, type_id: int, data: bytes, base: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for member in self._btf.members(type_id):
            at, size = base + member.bit_offset // 8, member.bits // 8
            kind = self._btf.kind(member.type_id)
            if kind in (STRUCT, UNION):
                values[member.name] = self._take(member.type_id, data, at)
            elif kind == ARRAY:
                values[member.name] = data[at : at + size]
            else:
                values[member.name] = int.from_bytes(data[at : at + size], "little")
        return values

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """Bytes of the struct; what is not named is 0."""
        data = bytearray(self.size)
        self._put(self._id, data, 0, values)
        return bytes(data)

    def _put(self, type_id: int, data: bytearray, base: int, values: Mapping[str, Any]) -> None:
        members = {member.name: member for member in self._btf.members(type_id)}
        for name, value in values.items():
            member = members[name]
            at, size = base + member.bit_offset // 8, member.bits // 8
            if member.bits % 8:
                data[at] |= value << member.bit_offset % 8
            elif isinstance(value, Mapping):
                self._put(member.type_id, data, at, value)
            elif isinstance(value, bytes):
                assert len(value) <= size, name
                data[at : at + len(value)] = value
            else:
                data[at : at + size] = value.to_bytes(size, "little")


class RunObject:
    """An object in the kernel. Leaving the context frees programs, maps and attachments."""

    def __init__(
        self,
        path: Path,
        programs: Iterable[str],
        btf: Optional[Path] = None,
        entries: Optional[Mapping[str, int]] = None,
    ) -> None:
        """
        :param programs: those to load; the others stay out of the kernel.
        :param btf: types to relocate against instead of the running kernel's.
        :param entries: of maps that need more than the object says.
        """
        self._lib = _ffi.dlopen("libbpf.so.1")
        self._log: dict[str, Any] = {}
        self._links: list[Any] = []
        self._programs: dict[str, Any] = {}
        self.btf = Btf.load(path)
        options = _ffi.new("struct bpf_object_open_opts *")
        options.sz = _ffi.sizeof("struct bpf_object_open_opts")
        custom = _ffi.new("char[]", str(btf).encode()) if btf else _ffi.NULL
        options.btf_custom_path = custom
        silent = self._lib.libbpf_set_print(_ffi.NULL)
        try:
            self._object = self._lib.bpf_object__open_file(str(path).encode(), options)
            if not self._object:
                raise OSError(_ffi.errno, f"cannot open {path}")
            self._choose(set(programs))
            for name, count in (entries or {}).items():
                found = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
                self._lib.bpf_map__set_max_entries(found, count)
            if self._lib.bpf_object__load(self._object):
                raise OSError(_ffi.errno, self._failure())
        finally:
            self._lib.libbpf_set_print(silent)

    def _choose(self, wanted: set[str]) -> None:
        program = _ffi.NULL
        while True:
            program = self._lib.bpf_object__next_program(self._object, program)
            if not program:
                break
            name = _ffi.string(self._lib.bpf_program__name(program)).decode()
            self._lib.bpf_program__set_autoload(program, name in wanted)
            if name in wanted:
                self._programs[name] = program
                self._log[name] = _ffi.new("char[]", 1 << 20)
                # Level 4: only the statistics, and the error if there is one.
                self._lib.bpf_program__set_log_level(program, 4)
                self._lib.bpf_program__set_log_buf(program, self._log[name], 1 << 20)
        missing = wanted - set(self._programs)
        assert not missing, missing

    def _failure(self) -> str:
        logs = {name: _ffi.string(log).decode() for name, log in self._log.items()}
        return "\n".join(f"{name}: {log[-3000:]}" for name, log in logs.items() if log)

    def __enter__(self) -> RunObject:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.detach()
        self._lib.bpf_object__close(self._object)

    def verifier(self, program: str) -> str:
        """What the verifier said about a program."""
        return _ffi.string(self._log[program]).decode()

    def attach(self, *programs: str) -> None:
        """Attaches programs where their sections say."""
        for name in programs:
            link = self._lib.bpf_program__attach(self._programs[name])
            if not link:
                raise OSError(_ffi.errno, f"cannot attach {name}")
            self._links.append(link)

    def detach(self) -> None:
        """Detaches everything."""
        for link in self._links:
            self._lib.bpf_link__destroy(link)
        self._links.clear()

    def run(self, program: str, times: int = 1) -> None:
        """Runs a raw tracepoint program, with no arguments."""
        options = _ffi.new("struct bpf_test_run_opts *")
        options.sz = _ffi.sizeof("struct bpf_test_run_opts")
        descriptor = self._lib.bpf_program__fd(self._programs[program])
        for _ in range(times):
            if self._lib.bpf_prog_test_run_opts(descriptor, options):
                raise OSError(_ffi.errno, f"cannot run {program}")

    def _map(self, name: str) -> int:
        return self._lib.bpf_object__find_map_fd_by_name(self._object, name.encode())

    def fd(self, program: str) -> int:
        """Descriptor of a program."""
        return int(self._lib.bpf_program__fd(self._programs[program]))

    def update(self, name: str, key: bytes, value: bytes) -> None:
        """Writes an element of a map."""
        if self._lib.bpf_map_update_elem(self._map(name), key, value, 0):
            raise OSError(_ffi.errno, name)

    def delete(self, name: str, key: bytes) -> None:
        """Removes an element of a map."""
        if self._lib.bpf_map_delete_elem(self._map(name), key):
            raise OSError(_ffi.errno, name)

    def lookup(self, name: str, key: bytes, size: int) -> bytes:
        """Reads an element of a map."""
        value = _ffi.new("char[]", size)
        if self._lib.bpf_map_lookup_elem(self._map(name), key, value):
            raise OSError(_ffi.errno, name)
        return bytes(_ffi.buffer(value, size))

    def keys(self, name: str, size: int) -> list[bytes]:
        """All keys of a map nobody changes."""
        found: list[bytes] = []
        key: Any = _ffi.NULL
        while True:
            following = _ffi.new("char[]", size)
            if self._lib.bpf_map_get_next_key(self._map(name), key, following):
                return found
            found.append(bytes(_ffi.buffer(following, size)))
            key = following


def index(number: int) -> bytes:
    """Key of an array map."""
    return struct.pack("=I", number)
