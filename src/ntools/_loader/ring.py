# SPDX-License-Identifier: GPL-2.0-only
"""The BPF ring buffer, drained from its mapped pages in batches.

A record is 8 bytes of header (length, page offset) and the payload, rounded up to 8. The length
word carries a busy and a discarded bit, so "equals the size of our struct" says the record is
complete. The data area is mapped twice in a row, so every batch is contiguous.
"""

import mmap
import select
import threading
from typing import Any, Iterator

from .btf import StructType
from .channel import Channel

__all__ = ["RingChannel"]

_BATCH = 8192
_DISCARDED = 1 << 30
_BUSY = 1 << 31


class RingChannel(Channel):
    """Reader of one ring buffer map; a full ring refuses at the source, where it is counted.

    :ivar fd: pollable descriptor.
    :ivar capacity: bytes of the ring.
    """

    def __init__(self, fd: int, record: StructType, capacity: int, pages: Any = None) -> None:
        super().__init__(record)
        self.fd = fd
        self._size = record.size
        self.capacity = capacity
        self._mask = capacity - 1
        page = mmap.PAGESIZE
        if pages is None:
            self._consumer: Any = mmap.mmap(
                fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
            )
            self._producer: Any = mmap.mmap(
                fd, page + 2 * capacity, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
            )
        else:  # tests hand in their own pages
            self._consumer, self._producer = pages
        self._consumer_at = memoryview(self._consumer)[:8].cast("Q")
        self._producer_at = memoryview(self._producer)[:8].cast("Q")
        self._data = memoryview(self._producer)[page:]
        self._words = self._data.cast("I")
        self._fence = threading.Lock()
        self._epoll = select.epoll()
        if pages is None:
            self._epoll.register(fd, select.EPOLLIN)

    def wait(self, timeout_s: float) -> bool:
        """Wait for records; whether there may be some."""
        return bool(self._epoll.poll(timeout_s))

    def batches(self) -> Iterator[Any]:
        """Everything that lies in the ring now; see :meth:`Channel.batches`."""
        position = self._consumer_at[0]
        end = self._producer_at[0]
        self._barrier()
        if end - position > self.capacity or position % 8:
            return  # no positions of a ring buffer
        while end - position >= 8:
            start = position & self._mask
            count = min((end - position) // self.stride, _BATCH)
            span = count * self.stride
            headers = self._words[start // 4 : (start + span) // 4 : self.stride // 4].tolist()
            if headers.count(self._size) != count:
                count = next(i for i, word in enumerate(headers) if word != self._size)
            if not count:  # another word, or less room than one of our records takes
                word = self._words[start // 4]
                following = position + 8 + (((word & ~_DISCARDED) + 7) & ~7)
                if word & _BUSY or not word & _DISCARDED or following > end:
                    return
                self._consumer_at[0] = position = following
                continue
            self._barrier()
            span = count * self.stride
            yield self._data[start : start + span]
            self._barrier()
            position += span
            self._consumer_at[0] = position

    @property
    def unread_bytes(self) -> int:
        """Bytes that wait in the ring."""
        return int(self._producer_at[0] - self._consumer_at[0])

    def close(self) -> None:
        """Unmap; the map itself belongs to the object."""
        self._epoll.close()
        for view in (self._consumer_at, self._producer_at, self._words, self._data):
            view.release()
        for pages in (self._consumer, self._producer):
            if isinstance(pages, mmap.mmap):
                try:
                    pages.close()
                except BufferError:  # an unfinished read() has a view; the pages go with it
                    continue

    def _barrier(self) -> None:
        # Nothing in the interpreter orders the loads of header, payload and position on arm64;
        # taking and giving a lock does (0.1 us, once per batch).
        self._fence.acquire()
        self._fence.release()
