# SPDX-License-Identifier: GPL-2.0-only
"""Several BTF blobs made one, by libbpf."""

from typing import Any, List

from ntools.errors import EnvironmentProblem, NtoolsError

from .kernel_types import KernelTypes
from .lib import error_text, failed, ffi, library

__all__ = ["join", "with_text"]


def join(parts: List[bytes]) -> bytes:
    """All types of all parts, equal ones once.

    :raises ValueError: a part is damaged; libbpf trusts what it reads.
    :raises EnvironmentProblem: no libbpf, or one that does not know a kind of type.
    """
    for part in parts:
        KernelTypes(part)
    first = _Btf(parts[0])
    try:
        for part in parts[1:]:
            other = _Btf(part)
            try:
                first.add(other)
            finally:
                other.close()
        if len(parts) > 1:
            first.dedup()
        return first.data()
    finally:
        first.close()


def with_text(blob: bytes, text: str) -> bytes:
    """The same types, and a string in the string section that no type uses.

    :raises ValueError, EnvironmentProblem: as :func:`join`.
    """
    KernelTypes(blob)
    whole = _Btf(blob)
    try:
        whole.add_text(text)
        return whole.data()
    finally:
        whole.close()


class _Btf:
    """A ``struct btf`` of libbpf."""

    def __init__(self, blob: bytes) -> None:
        self._library = library()
        self._handle: Any = self._library.c.btf__new(blob, len(blob))
        if failed(self._handle):
            raise EnvironmentProblem(
                "libbpf {} cannot read this type information: {}. Install libbpf 1.0 or newer, "
                "or point NTOOLS_LIBBPF at one.".format(
                    self._library.version_text, error_text(ffi.errno)
                )
            )

    def add(self, other: "_Btf") -> None:
        self._check(self._library.c.btf__add_btf(self._handle, other._handle), "joined")

    def dedup(self) -> None:
        self._check(self._library.c.btf__dedup(self._handle, ffi.NULL), "deduplicated")

    def add_text(self, text: str) -> None:
        self._check(self._library.c.btf__add_str(self._handle, text.encode()), "marked")

    def data(self) -> bytes:
        size = ffi.new("uint32_t *")
        start = self._library.c.btf__raw_data(self._handle, size)
        if failed(start):
            raise NtoolsError("libbpf cannot write type information: out of memory.")
        return bytes(ffi.buffer(start, size[0]))

    def close(self) -> None:
        self._library.c.btf__free(self._handle)

    @staticmethod
    def _check(status: int, what: str) -> None:
        if status < 0:
            raise NtoolsError(
                "type information cannot be {}: {}.".format(what, error_text(ffi.errno or -status))
            )
