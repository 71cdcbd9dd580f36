# SPDX-License-Identifier: GPL-2.0-only
"""Recordings: what the kernel told, kept in a file to be shown again elsewhere.

:class:`Recorder` writes one, :class:`Recording` reads one. What the frames mean is the business
of whoever writes and reads them; docs/recording.md describes the container.
"""

from __future__ import annotations

import os
import stat
from io import FileIO
from types import TracebackType
from typing import (
    Any,
    Callable,
    Iterable,
    Iterator,
    List,
    Mapping,
    NoReturn,
    Optional,
    Tuple,
    Type,
    Union,
)

from ntools.errors import RecordingProblem

from . import container
from .container import BLOCK_BYTES, FRAME_HEAD, Damaged, Frame
from .part import PartWriter, why
from .stream import printable

__all__ = ["FLUSH_NS", "Frame", "MIN_PART_BYTES", "Recorder", "Recording"]

#: A block is written when the time that :meth:`Recorder.tick` tells has advanced by so much.
FLUSH_NS = 10**9
#: Smaller parts would consist of beginnings.
MIN_PART_BYTES = 1 << 20

# What a part must have room for to be worth continuing: a block that nothing could compress.
_ROOM_BYTES = container.BLOCK_HEAD.size + BLOCK_BYTES + container.END_BYTES

Path = Union[str, "os.PathLike[str]"]
Bytes = Union[bytes, bytearray, memoryview]


def _nothing() -> Iterable[Frame]:
    return ()


class Recorder:
    """Writes a recording.

    With ``max_bytes`` it is a ring of files, each of which can be replayed alone: part 1 is
    ``path`` itself, part 2 ``path.000002``, part 3 ``path.000003`` and so on. The order of names
    is the order of time; no file is ever renamed. When a part is begun, the one ``keep`` parts
    before it is removed. A part is larger than ``max_bytes`` only if a single frame was larger
    than a block.

    :param header: the header record; it and ``layouts`` stand in the first block of every part.
    :param layouts: the structs in the frames: what a reader needs to decode them.
    :param max_bytes: size of a part, at least :data:`MIN_PART_BYTES`; 0: one file without bound.
    :param only_at_ticks: a part ends in :meth:`tick`, never between two frames that belong
        together; it may then be larger by what comes between two ticks.
    :param keep: so many parts remain. With 1, every new part begins with nothing behind it.
    :param preamble: called at the beginning of every part, of the first one in this constructor:
        frames without which the ones that follow would mean nothing. Must not call the recorder.
    :param mode: permissions of the files, exactly.
    :param level: of compression, 1 to 9; 0: none.
    :raises RecordingProblem: here and in every method: a file exists, is a link, cannot be
        written, the disk is full. What was written remains readable; nothing more is written.

    :ivar part: number of the part that is being written, from 1.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, Any],
        layouts: Mapping[str, Any],
        *,
        max_bytes: int = 0,
        only_at_ticks: bool = False,
        keep: int = 1,
        preamble: Callable[[], Iterable[Frame]] = _nothing,
        mode: int = 0o600,
        level: int = 1,
    ) -> None:
        self._path = os.fsdecode(path)
        self._max_bytes = max_bytes
        self._only_at_ticks = only_at_ticks
        self._keep = keep
        self._preamble = preamble
        self._mode = mode
        self._level = level
        self._block = bytearray()
        self._frames = 0  # of the block
        self._now_ns = self._since_ns = 0
        self._failed = ""
        self._closed = False
        self._finished: List[PartWriter] = []
        self._finished_bytes = 0
        self.part = 1
        try:
            self._first = container.first_json(header, layouts)
        except ValueError as problem:
            self._fail(str(problem), "Nothing was written.")
        if max_bytes:
            self._check_ring()
        self._file = PartWriter(self._path, mode, level)
        try:
            self._begin()
        except BaseException:
            self._file.remove()
            raise

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        problem: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        try:
            self.close()
        except RecordingProblem:
            if problem is None:
                raise

    @property
    def files(self) -> List[str]:
        """Names of the files that were written and not removed again, oldest first."""
        return [part.name for part in self._finished] + [self._file.name]

    @property
    def bytes_written(self) -> int:
        """Size of all parts, the removed ones included; what is still buffered does not count."""
        return self._finished_bytes + self._file.size_bytes

    def frame(self, kind: int, ts_ns: int, body: Bytes, cpu: int = 0) -> None:
        """Keep a frame of up to 16 MiB; the body is copied."""
        size = body.nbytes if isinstance(body, memoryview) else len(body)
        # One concatenation, so that a body of a wrong type leaves no half frame behind.
        piece = FRAME_HEAD.pack(kind, cpu, size, ts_ns) + body
        if len(self._block) + len(piece) > BLOCK_BYTES:
            self._flush()
            if size > container.MAX_BODY_BYTES:
                self._fail(f"a frame of {size} bytes is too large", "Please report this.")
        self._block += piece
        self._frames += 1

    def batch(self, kind: int, ts_ns: int, records: Bytes, size: int, cpu: int = 0) -> None:
        """Keep records of ``size`` bytes each that lie one behind the other.

        They become one frame, or several if they are more than fits into a block; each frame
        holds whole records.
        """
        view = memoryview(records).cast("B")
        if len(view) % size:
            raise ValueError(f"{len(view)} bytes are no multiple of {size}")
        step = max((BLOCK_BYTES - FRAME_HEAD.size) // size, 1) * size
        for start in range(0, len(view), step):
            self.frame(kind, ts_ns, view[start : start + step], cpu)

    def tick(self, now_ns: int) -> None:
        """Tell the time: a block that has waited for a second is written.

        A killed process loses a second and the time between two calls, at most.
        """
        if self._is_full():
            self._flush(at_tick=True)
        if not self._block:
            self._since_ns = now_ns
        elif now_ns - self._since_ns >= FLUSH_NS:
            self._flush(at_tick=True)
            self._since_ns = now_ns
        self._now_ns = now_ns

    def close(self) -> None:
        """Write what is left and the mark of the end. May be called again.

        After a failure only the file is closed: that it has no mark tells the reader.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if not self._failed:
                self._write_block()
                self._file.end(more=False)
        finally:
            self._file.close()

    def _flush(self, at_tick: bool = False) -> None:
        """Write the block; if another one might not fit, begin a new part."""
        if self._failed:
            raise RecordingProblem(self._failed)
        if self._closed:
            raise ValueError("the recorder is closed")
        try:
            self._write_block()
            if self._is_full() and (at_tick or not self._only_at_ticks):
                self._change_part()
        except RecordingProblem as problem:
            self._failed = str(problem)
            raise

    def _write_block(self) -> None:
        if self._block:
            self._file.write(self._block, self._frames)
            self._block = bytearray()
            self._frames = 0
            self._since_ns = self._now_ns

    # -- the ring ------------------------------------------------------------------------------

    def _is_full(self) -> bool:
        return bool(self._max_bytes) and self._file.size_bytes + _ROOM_BYTES > self._max_bytes

    def _change_part(self) -> None:
        """End this part and begin the next, which must not exist: it would not be ours."""
        fresh = PartWriter(f"{self._path}.{self.part + 1:06}", self._mode, self._level)
        try:
            self._file.end(more=True)
        except BaseException:
            fresh.remove()
            raise
        self._finished.append(self._file)
        self._finished_bytes += self._file.size_bytes
        while len(self._finished) >= self._keep:
            self._finished.pop(0).remove()
        self._file = fresh
        self.part += 1
        self._begin()

    def _begin(self) -> None:
        """Write the first block and the preamble."""
        self._file.begin(container.first_payload(self.part, self._first))
        for kind, cpu, ts_ns, body in self._preamble():
            piece = FRAME_HEAD.pack(kind, cpu, len(body), ts_ns) + body
            if len(self._block) + len(piece) > BLOCK_BYTES:
                self._write_block()
            self._block += piece
            self._frames += 1
        self._write_block()
        if self._is_full():
            size = self._file.size_bytes
            self._fail(f"every part begins with {size} bytes", "Allow larger files.")

    def _check_ring(self) -> None:
        """Refuse now what would end the recording at the change to another part."""
        if self._max_bytes < MIN_PART_BYTES or self._keep < 1:
            fact = f"{self._keep} files of {self._max_bytes} bytes are no ring"
            self._fail(fact, f"Allow one file and {MIN_PART_BYTES} bytes at least.")
        folder, name = os.path.split(self._path)
        try:
            others = os.listdir(folder or ".")
        except (OSError, ValueError):
            return  # Opening the file tells why.
        for other in sorted(others):
            number = other[len(name) + 1 :]
            if other.startswith(name + ".") and len(number) >= 6 and number.isdecimal():
                self._fail(f"part '{printable(other)}' exists", "Remove it or give another name.")

    def _fail(self, fact: str, advice: str) -> NoReturn:
        self._failed = f"cannot record to '{printable(self._path)}': {fact}. {advice}"
        raise RecordingProblem(self._failed)


class Recording:
    """Reads a recording, or one part of a ring.

    Nothing in the file is trusted but to be bytes of the sizes that docs/recording.md allows;
    what the frames and the header contain is for the caller to check.

    :raises RecordingProblem: it is no recording, too new, or damaged in its first block. Nothing
        else is ever raised, however the file was damaged or made.

    :ivar version: of the container.
    :ivar part: its number in a ring, else 1.
    :ivar byteorder: of the host where it was written: "little" or "big".
    :ivar header: the header record.
    :ivar layouts: the structs in the frames.
    :ivar cut: None, or, after :meth:`frames` has ended, why it is not all that was recorded.
    :ivar continued: after :meth:`frames` has ended: whether another part follows; None if cut.
    """

    def __init__(self, path: Path) -> None:
        self._name = printable(os.fsdecode(path))
        self.cut: Optional[str] = None
        self.continued: Optional[bool] = None
        self._file = self._open(path)
        try:
            self.version = self._check_prelude()
            first = self._read_first()
        except Damaged as problem:
            self._file.close()
            self._fail(str(problem), "Nothing of it can be shown: copy it again.")
        except BaseException:
            self._file.close()
            raise
        self.part, self.byteorder, self.header, self.layouts = first

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def frames(self) -> Iterator[Frame]:
        """All frames in the order of writing, up to the first damage; see :attr:`cut`.

        Every call begins at the beginning. Only one block is in memory.
        """
        self.cut = self.continued = None
        try:
            yield from self._frames()
        except Damaged as problem:
            self.cut = str(problem)

    # -- reading -------------------------------------------------------------------------------

    def _open(self, path: Path) -> FileIO:
        """A regular file; nothing else is touched, because opening a device may do something."""
        try:
            self._expect_regular(os.stat(path))
            # Between the two looks a FIFO may take the name, and opening it must not wait.
            file = FileIO(os.fspath(path), opener=_open_without_waiting)
            try:
                self._expect_regular(os.fstat(file.fileno()))
            except BaseException:
                file.close()
                raise
            return file
        except (OSError, ValueError) as problem:
            self._fail(why(problem), "Give a file written with --record.")

    def _expect_regular(self, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self._fail("it is a directory", "Give a file written with --record.")
        if not stat.S_ISREG(status.st_mode):
            self._fail("it is no regular file", "Save the recording to a file first.")

    def _check_prelude(self) -> int:
        prelude = self._read(0, container.PRELUDE.size)
        if not container.MAGIC.startswith(prelude[: len(container.MAGIC)]) or not prelude:
            fact = "it is no recording of ntools" if prelude else "it is empty"
            self._fail(fact, "Give a file written with --record.")
        if len(prelude) < container.PRELUDE.size:
            raise Damaged("the file ends before block 1")
        version = int(container.PRELUDE.unpack(prelude)[1])
        if version > container.VERSION:
            fact = f"its format {version} is newer than {container.VERSION}, the newest known here"
            self._fail(fact, "Use the ntools it was recorded with.")
        if version < container.VERSION:
            raise Damaged(f"there is no format {version}")
        return version

    def _read_first(self) -> container.First:
        flags, payload, self._behind_first = self._read_block(
            container.PRELUDE.size, 1, container.MAX_FIRST_BYTES
        )
        if flags != container.HEADER:
            raise Damaged("block 1 is damaged: it is no first block")
        return container.parse_first(payload)

    def _frames(self) -> Iterator[Frame]:
        at = self._behind_first
        number = 1
        count = 0
        while True:
            number += 1
            flags, payload, at = self._read_block(at, number, container.MAX_PAYLOAD_BYTES)
            if flags == container.END:
                self.continued = self._check_last(payload, count, number - 1, at)
                return
            if flags:
                raise Damaged(f"block {number} is damaged: a first block in the middle")
            for frame in _split(payload, number):
                count += 1
                yield frame

    def _read_block(self, at: int, number: int, limit: int) -> Tuple[int, bytes, int]:
        """Flags but for compression, payload as it was recorded, and the place behind."""
        head = self._read(at, container.BLOCK_HEAD.size)
        if not head:
            raise Damaged(f"the file ends behind block {number - 1}, without mark of the end")
        if len(head) < container.BLOCK_HEAD.size:
            raise Damaged(f"the file ends inside block {number}")
        length = container.BLOCK_HEAD.unpack(head)[0]
        if not 0 < length <= limit:
            raise Damaged(f"block {number} is damaged: length {length}")
        stored = self._read(at + len(head), length)
        if len(stored) < length:
            raise Damaged(f"the file ends inside block {number}")
        try:
            flags, payload = container.unpack_block(number, head, stored, limit)
        except Damaged as problem:
            raise Damaged(f"block {number} is damaged: {problem}") from None
        return flags, payload, at + len(head) + length

    def _check_last(self, payload: bytes, frames: int, blocks: int, at: int) -> bool:
        """What the mark of the end says, compared with what was read."""
        if len(payload) != container.LAST.size:
            raise Damaged(f"block {blocks + 1} is damaged: length {len(payload)}")
        wanted_frames, wanted_blocks, more = container.LAST.unpack(payload)
        if (wanted_frames, wanted_blocks) != (frames, blocks):
            raise Damaged(
                f"{frames} frames in {blocks} blocks were found,"
                f" {wanted_frames} in {wanted_blocks} were written"
            )
        if self._read(at, 1):
            raise Damaged("other data follow the mark of the end")
        return bool(more)

    def _read(self, at: int, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end of the file."""
        data = b""
        try:
            while len(data) < size:
                more = os.pread(self._file.fileno(), size - len(data), at + len(data))
                if not more:
                    break
                data += more
        except OSError as problem:
            raise Damaged(f"the file cannot be read behind byte {at}: {why(problem)}") from None
        return data

    def _fail(self, fact: str, advice: str) -> NoReturn:
        raise RecordingProblem(f"cannot replay '{self._name}': {fact}. {advice}")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _split(payload: bytes, number: int) -> Iterator[Frame]:
    """The frames of a block."""
    unpack, head = FRAME_HEAD.unpack_from, FRAME_HEAD.size
    at, end = 0, len(payload)
    while at < end:
        start = at + head
        if start > end:
            raise Damaged(f"block {number} is damaged: half a frame")
        kind, cpu, length, ts_ns = unpack(payload, at)
        at = start + length
        if at > end:
            raise Damaged(f"block {number} is damaged: a frame larger than the block")
        yield Frame(kind, cpu, ts_ns, payload[start:at])
