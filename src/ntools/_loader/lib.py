# SPDX-License-Identifier: GPL-2.0-only
"""The system's libbpf: found, checked, called.

Errors are read from ``errno`` only: return values differ between library versions, and the text
of a message is no interface (only the name of a program is taken from it).
"""

import errno as _errno
import os
import re
from typing import Any, List, Optional

from ntools.errors import EnvironmentProblem

from ._abi import ffi

__all__ = ["Library", "library", "ffi", "failed", "error_text"]

#: Oldest library whose section names may start with "?", which our objects rely on.
FLOOR = (0, 8)

_DEBUG = 2  # level of the library's chatter
_FALLBACKS = ("libbpf.so.1", "libbpf.so.0")
_FAILING_PROGRAM = re.compile(r"prog(?:ram)? '([^']+)'.*fail")


class Library:
    """libbpf, opened once per process.

    :ivar path: name or path it was opened by.
    :ivar version: ``(major, minor)``.
    :ivar log: messages of the library since the last :meth:`forget`.
    """

    def __init__(self) -> None:
        self.path, self.c = _open()
        self.version = _version(self.c)
        self.log: List[str] = []
        if self.version < FLOOR:
            raise EnvironmentProblem(
                "libbpf {} ('{}') is too old: {}.{} or newer is needed. Install a newer libbpf "
                "or point NTOOLS_LIBBPF at one.".format(
                    _version_text(self.version), self.path, *FLOOR
                )
            )
        if self.version[0] == 0:
            self.c.libbpf_set_strict_mode(-1)
        self._libc = ffi.dlopen(None)
        self._callback = self._make_callback()
        self.c.libbpf_set_print(self._callback)

    @property
    def version_text(self) -> str:
        return _version_text(self.version)

    def forget(self) -> None:
        """Drop collected messages (before an operation whose messages matter)."""
        del self.log[:]

    def failing_programs(self) -> List[str]:
        """Names of programs the collected messages call failed, in order, without repeats."""
        names: List[str] = []
        for line in self.log:
            match = _FAILING_PROGRAM.search(line)
            if match and match.group(1) not in names:
                names.append(match.group(1))
        return names

    def _make_callback(self) -> Any:
        def remember(level: int, form: Any, arguments: Any) -> int:
            if level >= _DEBUG:
                return 0
            text = ffi.new("char[]", 1024)
            self._libc.vsnprintf(text, 1024, form, arguments)
            if len(self.log) < 500:
                self.log.append(ffi.string(text).decode("utf-8", "replace").rstrip())
            return 0

        try:
            return ffi.callback("libbpf_print_fn_t", remember)
        except (MemoryError, OSError, SystemError):  # executable memory refused by a policy
            return ffi.NULL


_library: Optional[Library] = None


def library() -> Library:
    """The process's libbpf.

    :raises EnvironmentProblem: none found, or too old.
    """
    global _library
    if _library is None:
        _library = Library()
    return _library


def failed(pointer: Any) -> bool:
    """Whether a returned pointer means failure, in every error convention libbpf ever had."""
    value = int(ffi.cast("intptr_t", pointer))
    return -4095 <= value <= 0


def error_text(number: int) -> str:
    """``ENOENT (No such file or directory)`` for an errno value."""
    if number == 524:  # not in the C library's table: the kernel's own ENOTSUPP
        return "ENOTSUPP (not supported by this kernel)"
    return "{} ({})".format(_errno.errorcode.get(number, str(number)), os.strerror(number))


def _open() -> Any:
    wished = os.environ.get("NTOOLS_LIBBPF")
    problems = []
    for name in (wished,) if wished else _FALLBACKS:
        try:
            return name, ffi.dlopen(name)
        except OSError as error:
            problems.append(str(error).split("\n")[0])
    raise EnvironmentProblem(
        "cannot open libbpf: {}. Install the libbpf package (1.0 or newer), or point "
        "NTOOLS_LIBBPF at a library.".format("; ".join(problems))
    )


def _version(c: Any) -> Any:
    try:
        return int(c.libbpf_major_version()), int(c.libbpf_minor_version())
    except (AttributeError, ffi.error):  # the functions came with 0.6
        return 0, 5


def _version_text(version: Any) -> str:
    return "0.5 or older" if version == (0, 5) else "{}.{}".format(*version)
