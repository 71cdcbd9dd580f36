# SPDX-License-Identifier: GPL-2.0-only
"""Attach targets that modules describe, found by their bytes.

libbpf looks for a target in every module, and each time through the kernel's type information
first: 0.7 ms for each of a hundred modules and each program. Here the module is found by its
strings, and libbpf is told the answer when it loads the program.
"""

import errno
import os
import struct
from typing import Any, Dict, Iterable, NamedTuple, Optional, Set, Tuple

from .external import find_name, find_text, records, text_section
from .kernel import KernelFacts
from .lib import Library, failed, ffi, library

__all__ = ["ModuleTargets", "module_targets", "type_ids"]

_TRACING = 26  # BPF_PROG_TYPE_TRACING


class _Kind(NamedTuple):
    """How a mechanism names its target: attach type, prefix of the name, kind of the record."""

    attach_type: int
    prefix: str
    record: int


_KINDS = {
    "tp_btf": _Kind(23, "btf_trace_", 8),
    "fentry": _Kind(24, "", 12),
    "fexit": _Kind(25, "", 12),
}


class ModuleTargets:
    """Answers libbpf's question for the type of a target in a module.

    One for the process, as libbpf's handlers are. Where a policy forbids callbacks, libbpf finds
    the targets itself.
    """

    def __init__(self, library: Library) -> None:
        self._c = library.c
        self._handled: Set[str] = set()
        self._kernel: Optional[KernelFacts] = None
        self._found: Dict[str, Tuple[int, int]] = {}  # section -> id of the type, descriptor
        self._fds: Dict[str, int] = {}
        self._options = ffi.new("struct libbpf_prog_handler_opts *")
        self._options.sz = ffi.sizeof("struct libbpf_prog_handler_opts")
        try:
            self._callback = ffi.callback("libbpf_prog_prepare_load_fn_t", self._prepare)
        except (MemoryError, OSError, SystemError):  # executable memory refused by a policy
            self._callback = ffi.NULL
        self._options.prog_prepare_load_fn = self._callback

    def expect(self, sections: Iterable[str], kernel: KernelFacts) -> None:
        """Before an object is opened: take over those of its sections that need a module."""
        self._kernel = kernel
        if not self._callback or not kernel.has_own_btf or not kernel.btf_modules:
            return
        for section in sections:
            section = section.lstrip("?")
            mechanism, _, target = section.partition("/")
            kind = _KINDS.get(mechanism)
            if kind is None or section in self._handled:
                continue
            name = kind.prefix + target
            if find_text(kernel.own_btf, name) < 0 and find_name(kernel.module_names, name) >= 0:
                self._c.libbpf_register_prog_handler(
                    section.encode(), _TRACING, kind.attach_type, self._options
                )
                self._handled.add(section)

    def forget(self) -> None:
        """After a load: close what was open for it; modules may come and go until the next."""
        for descriptor in self._fds.values():
            os.close(descriptor)
        self._fds.clear()
        self._found.clear()

    def _prepare(self, program: Any, options: Any, _cookie: int) -> int:
        section = ffi.string(self._c.bpf_program__section_name(program)).decode().lstrip("?")
        try:
            if section not in self._found:
                self._resolve()
            options.attach_btf_id, options.attach_btf_obj_fd = self._found[section]
        except (KeyError, OSError, ValueError, struct.error):  # the module has just gone
            return -errno.ENOENT
        return 0

    def _resolve(self) -> None:
        """Find every target that was taken over."""
        kernel = self._kernel
        assert kernel is not None
        wanted = {}
        for section in self._handled:
            mechanism, _, target = section.partition("/")
            wanted[section] = (_KINDS[mechanism].prefix + target, _KINDS[mechanism].record)
        base = _valid(self._c.btf__new(kernel.own_btf, len(kernel.own_btf)))
        try:
            start, end = text_section(kernel.own_btf)
            for module in kernel.btf_modules:
                missing = {key: value for key, value in wanted.items() if key not in self._found}
                if not missing:
                    break
                path = kernel.module_path(module)
                try:
                    ids = type_ids(self._c, base, end - start, path, missing)
                    for section, number in ids.items():
                        self._found[section] = (number, self._descriptor(module))
                except (OSError, ValueError, struct.error):  # this one is gone, others are not
                    continue
        finally:
            self._c.btf__free(base)

    def _descriptor(self, module: str) -> int:
        """A descriptor of a module's type information: the kernel names them by number."""
        number = ffi.new("uint32_t *")
        while not self._fds.get(module):
            if self._c.bpf_btf_get_next_id(number[0], number):
                raise OSError(ffi.errno, "no type information of module", module)
            descriptor = self._c.bpf_btf_get_fd_by_id(number[0])
            if descriptor < 0:
                continue
            if self._name(descriptor) == module:
                self._fds[module] = descriptor
            else:
                os.close(descriptor)
        return self._fds[module]

    def _name(self, descriptor: int) -> str:
        text = ffi.new("char[]", 64)
        info, length = ffi.new("struct bpf_btf_info *"), ffi.new("uint32_t *", 32)
        info.name, info.name_len = int(ffi.cast("uintptr_t", text)), 64
        if self._c.bpf_obj_get_info_by_fd(descriptor, info, length):
            return ""
        return bytes(ffi.string(text)).decode("utf-8", "replace")


_targets: Optional[ModuleTargets] = None


def module_targets() -> ModuleTargets:
    """The process's targets in modules."""
    global _targets
    if _targets is None:
        _targets = ModuleTargets(library())
    return _targets


def type_ids(
    c: Any, base: Any, base_text: int, path: str, wanted: Dict[str, Tuple[str, int]]
) -> Dict[str, int]:
    """Ids of the functions and typedefs that a module describes.

    :param base, base_text: parsed type information of the kernel, and the bytes of its strings.
    :param wanted: by a key of the caller, the name and the kind of the record.
    :raises OSError, ValueError: the module is gone, or its file is no type information.
    """
    with open(path, "rb") as file:
        blob = file.read()
    places = {key: _record(blob, *names, base_text) for key, names in wanted.items()}
    places = {key: place for key, place in places.items() if place >= 0}
    if not places:
        return {}
    found = {}
    split = _valid(c.btf__parse_raw_split(path.encode(), base))
    try:
        first, count = c.btf__type_cnt(base), c.btf__type_cnt(split)
        zero = int(ffi.cast("uintptr_t", c.btf__type_by_id(split, first)))
        for key, place in places.items():
            low, high = first, count - 1
            while low < high:
                middle = (low + high + 1) // 2
                at = int(ffi.cast("uintptr_t", c.btf__type_by_id(split, middle))) - zero
                low, high = (middle, high) if at <= place else (low, middle - 1)
            found[key] = low
    finally:
        c.btf__free(split)
    return found


def _valid(parsed: Any) -> Any:
    if failed(parsed):
        raise OSError(ffi.errno, "type information that cannot be read")
    return parsed


def _record(blob: bytes, name: str, kind: int, base_text: int) -> int:
    """Where in its type section a module describes a function or typedef; -1: nowhere.

    Only names that are no string of the kernel itself: those the module keeps.
    """
    at = find_text(blob, name)
    if at < 0:
        return -1
    header, first = struct.unpack_from("<II", blob, 4)
    for place in records(blob, at - text_section(blob)[0] + base_text):
        if blob[place + 7] & 0x1F == kind:
            return int(place - header - first)
    return -1
