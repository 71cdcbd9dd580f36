# SPDX-License-Identifier: GPL-2.0-only
"""Lines to a stream whose reader may go away, and text that is safe to show."""

from __future__ import annotations

import os
from typing import Iterable, TextIO

__all__ = ["LineStream", "printable", "printable_bytes"]


class LineStream:
    """Writes whole lines, flushed, so that a reader on a pipe sees each at once.

    When the reader has gone (EPIPE) the stream becomes ``broken``: later lines are discarded, and
    the run that feeds it should end as if interrupted. Other errors, such as a full disk, are
    raised.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.broken = False

    def write(self, lines: Iterable[str]) -> None:
        """Write ``lines``, none of which ends in a newline, and flush."""
        if self.broken:
            return
        text = "".join([line + "\n" for line in lines])
        if not text:
            return
        try:
            self._write(text)
            self._stream.flush()
        except BrokenPipeError:
            self.broken = True
            self._silence()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            # The locale's encoding has no such character.
            self._stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))

    def _silence(self) -> None:
        # What is still buffered would fail again when the interpreter flushes at exit, with a
        # traceback and exit status 120.
        try:
            target = self._stream.fileno()
        except (OSError, ValueError):
            return
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, target)
        finally:
            os.close(null)


def printable_bytes(data: bytes) -> str:
    """Bytes of unknown origin, such as a process name, as ASCII; anything else as ``\\xNN``.

    The backslash is escaped too, so that the bytes can be told from the text.
    """
    return "".join(
        [chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in data]
    )


def printable(text: str) -> str:
    """Text without characters that move a cursor, hide or reorder: these become ``\\xNN``."""
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else _escaped(char) for char in text])


def _escaped(char: str) -> str:
    try:
        data = char.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = char.encode("utf-8", "surrogatepass")
    return "".join([f"\\x{byte:02x}" for byte in data])
