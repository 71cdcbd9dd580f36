# SPDX-License-Identifier: GPL-2.0-only
"""One file of a recording while it is written."""

from __future__ import annotations

import os
import stat
from errno import ENOSPC
from typing import NoReturn, Optional, Tuple, Union

from ntools.errors import RecordingProblem

from . import container
from .stream import printable

__all__ = ["PartWriter", "why"]


class PartWriter:
    """A new file that takes blocks.

    A block is always written behind the last whole one: an attempt that was interrupted leaves
    nothing between two blocks.

    :param mode: permissions, exactly; the umask does not count.
    :param level: of compression, 0 for none.
    :raises RecordingProblem: here and when writing: the file exists, is a link, cannot be
        written, or the disk is full.

    :ivar size_bytes: of all whole blocks.
    """

    def __init__(self, name: str, mode: int, level: int) -> None:
        self.name = name
        self.size_bytes = 0
        self._level = level
        self._frames = 0
        self._blocks = 0
        self._mark: Optional[Tuple[int, int, int]] = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(name, flags, mode)
        except FileExistsError:
            link = os.path.islink(name)
            fact = "it is a link, and links are not followed" if link else "the file exists"
            self._fail(fact, "Remove it or give another name.")
        except (OSError, ValueError) as problem:
            self._fail(why(problem), "Give a name in a directory that can be written.")
        try:
            if stat.S_IMODE(os.fstat(self._fd).st_mode) != mode:
                os.fchmod(self._fd, mode)
        except OSError as problem:
            self.remove()
            self._fail(f"mode {mode:04o} is refused: {why(problem)}", "Give another place or mode.")

    def begin(self, first: bytes) -> None:
        """Write what every file begins with."""
        prelude = container.PRELUDE.pack(container.MAGIC, container.VERSION)
        self._append(prelude + container.pack_block(1, first, container.HEADER, self._level))

    def write(self, payload: Union[bytes, bytearray], frames: int) -> None:
        """Write a block of so many frames."""
        self._append(container.pack_block(self._blocks + 1, payload, 0, self._level))
        self._frames += frames

    def end(self, more: bool) -> None:
        """Write the mark of the end and close.

        :param more: another part follows.
        """
        payload = container.LAST.pack(self._frames, self._blocks, more)
        self._append(container.pack_block(self._blocks + 1, payload, container.END, 0))
        self.close()

    def close(self) -> None:
        """Close the file as it is; without mark its reader knows that it was cut."""
        if self._fd >= 0:
            self._mark = _mark(os.fstat(self._fd))
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Close and remove the file, unless another one has its name by now."""
        self.close()
        try:
            if _mark(os.lstat(self.name)) == self._mark:
                os.unlink(self.name)
        except OSError:
            pass  # It has gone already, or its directory was made read-only: not ours to force.

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                count = os.pwrite(self._fd, view[done:], self.size_bytes + done)
                if not count:
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
                done += count
        except OSError as problem:
            self._cut_back()
            self._fail(why(problem), "What was written before can be replayed.")
        self.size_bytes += done
        self._blocks += 1

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self.size_bytes)
        except OSError:
            pass  # A reader does without half a block, too.

    def _fail(self, fact: str, advice: str) -> NoReturn:
        raise RecordingProblem(f"cannot record to '{printable(self.name)}': {fact}. {advice}")


def why(problem: Exception) -> str:
    """The reason the system gives."""
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return str(problem)


def _mark(status: os.stat_result) -> Tuple[int, int, int]:
    """What tells a file from another of the same name; an inode may be used again."""
    return status.st_dev, status.st_ino, status.st_size
