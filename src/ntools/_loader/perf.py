# SPDX-License-Identifier: GPL-2.0-only
"""The channel of kernels without a BPF ring buffer: perf event pages, one ring per CPU.

A record is an 8-byte header (type, misc, size), a length word and the payload, rounded up to 8.
The kernel counts what did not fit and says so in a record of its own.
"""

import ctypes
import mmap
import os
import select
import struct
import threading
from typing import Any, Iterator, List, Optional

from ntools.errors import EnvironmentProblem

from .btf import StructType
from .channel import Channel
from .lib import error_text
from .maps import KernelMap

__all__ = ["PerfChannel"]

_LOST, _SAMPLE = 2, 9
_SYSCALL = {"x86_64": 298, "aarch64": 241}
_ENABLE = 0x2400
_PAGES = 64
_HEAD_AT = 1024  # and the position of the reader behind it
_HEADER = struct.Struct("<IHH")
_LOST_BODY = struct.Struct("<QQ")
_LOST_BYTES = 8 + _LOST_BODY.size


class PerfChannel(Channel):
    """Reader of a perf event array.

    Records of different CPUs come out in the order of their first field (a time) within one read.

    :ivar lost: records the kernel could not place, from its own count.
    """

    def __init__(self, array: Optional[KernelMap], record: StructType, pages: Any = ()) -> None:
        super().__init__(record)
        # Tests hand in their own pages, and no array.
        self._rings = [_Ring(own, -1) for own in pages]
        self._fence = threading.Lock()
        self._epoll = select.epoll()
        self.fd = self._epoll.fileno()
        try:
            for cpu in _online_cpus() if array else ():
                self._add(array, cpu)
        except BaseException:
            self.close()
            raise
        self.capacity = sum(ring.size for ring in self._rings)

    def wait(self, timeout_s: float) -> bool:
        """Wait for records; whether there may be some."""
        return bool(self._epoll.poll(timeout_s))

    def batches(self) -> Iterator[Any]:
        """Everything that lies in the rings now, as one batch ordered by the first field."""
        records: List[bytes] = []
        for ring in self._rings:
            records += self._drain(ring)
        if not records:
            return
        decode = self.codec.unpack_from
        records.sort(key=lambda record: decode(record)[0])
        yield b"".join(records)

    @property
    def unread_bytes(self) -> int:
        """Bytes that wait in all rings."""
        return sum(int(ring.positions[0] - ring.positions[1]) for ring in self._rings)

    def close(self) -> None:
        """Unmap the rings and close their events."""
        self._epoll.close()
        for ring in self._rings:
            ring.close()
        self._rings = []

    def _add(self, array: Any, cpu: int) -> None:
        import fcntl

        descriptor = _open_event(cpu)
        try:
            pages = mmap.mmap(descriptor, (_PAGES + 1) * mmap.PAGESIZE)
        except OSError as error:
            os.close(descriptor)
            raise EnvironmentProblem(
                "cannot map the perf ring of CPU {}: {}. Raise kernel.perf_event_mlock_kb, or run "
                "as root.".format(cpu, error_text(error.errno or 0))
            ) from None
        self._rings.append(_Ring(pages, descriptor))
        array.update(struct.pack("<I", cpu), struct.pack("<I", descriptor))
        fcntl.ioctl(descriptor, _ENABLE, 0)
        self._epoll.register(descriptor, select.EPOLLIN)

    def _drain(self, ring: "_Ring") -> List[bytes]:
        head, tail = ring.positions[0], ring.positions[1]
        self._barrier()
        data, size = ring.data, ring.size
        wanted = self.record.size
        least = 8 + 4 + wanted
        found = []
        if head - tail > size or head % 8 or tail % 8:
            tail = head  # no positions of a ring: begin anew where the kernel is
        while tail < head:
            at = tail % size
            kind, _, length = _HEADER.unpack_from(data, at)
            if length < 8 or length % 8 or tail + length > head:
                tail = head  # these bytes are no records, and nothing tells where one begins
                break
            body = data[at + 8 : at + length]
            if at + length > size:  # across the end: the area is mapped once
                body = memoryview(bytes(body) + bytes(data[: at + length - size]))
            if kind == _SAMPLE and length >= least:
                payload = bytes(body[4 : 4 + wanted])
                found.append((b"\0" * 8 + payload).ljust(self.stride, b"\0"))
            elif kind == _LOST and length >= _LOST_BYTES:
                self.lost += _LOST_BODY.unpack_from(body)[1]
            tail += length
        self._barrier()
        ring.positions[1] = tail
        return found

    def _barrier(self) -> None:
        self._fence.acquire()
        self._fence.release()


class _Ring:
    """Pages of one CPU: one with the positions, then the data."""

    def __init__(self, pages: Any, descriptor: int) -> None:
        self.pages = pages
        self.descriptor = descriptor
        # 64-bit items: the kernel moves its position while we read, and reads ours while we
        # write; byte by byte (struct with "<") either side would see a torn number.
        self.positions = memoryview(pages)[_HEAD_AT : _HEAD_AT + 16].cast("Q")
        self.data = memoryview(pages)[mmap.PAGESIZE :]
        self.size = len(self.data)

    def close(self) -> None:
        self.positions.release()
        self.data.release()
        if self.descriptor >= 0:
            self.pages.close()
            os.close(self.descriptor)


def _online_cpus() -> List[int]:
    with open("/sys/devices/system/cpu/online") as file:
        cpus: List[int] = []
        for part in file.read().strip().split(","):
            first, _, last = part.partition("-")
            cpus += range(int(first), int(last or first) + 1)
    return cpus


def _open_event(cpu: int) -> int:
    """A software event of type BPF output on one CPU, raw samples, waking on each."""
    attributes = bytearray(112)
    struct.pack_into("<IIQQQ", attributes, 0, 1, 112, 10, 1, 1 << 10)
    struct.pack_into("<I", attributes, 48, 1)
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYSCALL[os.uname().machine]
    descriptor = int(libc.syscall(number, buffer, -1, cpu, -1, ctypes.c_ulong(8)))
    if descriptor < 0:
        raise EnvironmentProblem(
            "cannot open the perf ring of CPU {}: {}.".format(cpu, error_text(ctypes.get_errno()))
        )
    return descriptor
