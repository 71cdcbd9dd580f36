# SPDX-License-Identifier: GPL-2.0-only
"""The reader of the ring buffer on pages made by the test, record by record as the kernel does."""

from __future__ import annotations

import mmap
import struct
import threading

import pytest

from ntools._loader.btf import Field, StructType
from ntools._loader.ring import RingChannel

BUSY, DISCARDED = 1 << 31, 1 << 30
PAGE = mmap.PAGESIZE
CAPACITY = 4096
#: 20 bytes, so that a record takes 32 and is padded by 4.
RECORD = StructType(
    "nt_test_event",
    20,
    [Field("number", 0, "Q", ""), Field("inverse", 8, "Q", ""), Field("tag", 16, "4s", "B")],
)
STRIDE = 32


class FakeRing:
    """What the kernel does: reserve (busy), commit, discard. The data area exists twice."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.consumer = mmap.mmap(-1, PAGE)
        self.producer = mmap.mmap(-1, PAGE + 2 * capacity)
        self.channel = RingChannel(-1, RECORD, capacity, (self.consumer, self.producer))

    def place(self, page: mmap.mmap, value: int | None = None) -> int:
        if value is not None:
            struct.pack_into("<Q", page, 0, value)
        return struct.unpack_from("<Q", page)[0]

    def write(self, position: int, data: bytes) -> None:
        for index, byte in enumerate(data):
            at = PAGE + (position + index) % self.capacity
            self.producer[at] = self.producer[at + self.capacity] = byte

    def reserve(self, number: int, size: int = RECORD.size) -> int | None:
        """Position of a new busy record; None when the ring is full."""
        start = self.place(self.producer)
        end = start + 8 + (size + 7) // 8 * 8
        if end - self.place(self.consumer) > self.capacity:
            return None
        self.write(start, struct.pack("<II", size | BUSY, 0))
        body = struct.pack("<QQ4s", number, number ^ 0xFFFFFFFFFFFFFFFF, b"ntxy")
        # The padding behind a payload is whatever was there before.
        self.write(start + 8, body[:size].ljust(size, b"\xaa") + b"\xbb" * (-size % 8))
        self.place(self.producer, end)
        return start

    def commit(self, position: int, size: int = RECORD.size, flags: int = 0) -> None:
        self.write(position, struct.pack("<I", size | flags))

    def put(self, *numbers: int) -> None:
        for number in numbers:
            position = self.reserve(number)
            assert position is not None
            self.commit(position)

    def numbers(self) -> list[int]:
        rows = list(self.channel.read())
        for number, inverse, tag in rows:
            assert inverse == number ^ 0xFFFFFFFFFFFFFFFF
            assert tag == b"ntxy"
        return [row[0] for row in rows]


@pytest.fixture
def ring() -> FakeRing:
    return FakeRing()


def test_empty(ring):
    assert ring.numbers() == []
    assert ring.channel.unread_bytes == 0
    assert ring.channel.fields == ["number", "inverse", "tag"]
    assert ring.channel.lost == 0


def test_in_order_and_only_once(ring):
    ring.put(*range(5))
    assert ring.channel.unread_bytes == 5 * STRIDE
    assert ring.numbers() == [0, 1, 2, 3, 4]
    assert ring.numbers() == []
    assert ring.place(ring.consumer) == ring.place(ring.producer) == 5 * STRIDE


def test_busy_record_stops_the_reader_until_it_is_ready(ring):
    ring.put(1, 2)
    busy = ring.reserve(3)
    ring.put(4)
    assert ring.numbers() == [1, 2]
    assert ring.numbers() == []
    assert ring.place(ring.consumer) == 2 * STRIDE
    ring.commit(busy)
    assert ring.numbers() == [3, 4]


def test_busy_first_record(ring):
    busy = ring.reserve(1)
    ring.put(2)
    assert ring.numbers() == []
    ring.commit(busy)
    assert ring.numbers() == [1, 2]


@pytest.mark.parametrize("which", [{0}, {2}, {4}, {0, 1}, {1, 3}, {3, 4}, set(range(5))])
def test_discarded_records_are_skipped(ring, which):
    for number in range(5):
        position = ring.reserve(number)
        ring.commit(position, flags=DISCARDED if number in which else 0)
    assert ring.numbers() == [number for number in range(5) if number not in which]
    assert ring.place(ring.consumer) == 5 * STRIDE


def test_discarded_record_of_another_size(ring):
    ring.put(1)
    ring.commit(ring.reserve(2, size=11), size=11, flags=DISCARDED)
    ring.put(3)
    assert ring.numbers() == [1, 3]


def test_record_behind_a_discarded_and_a_busy_one(ring):
    ring.commit(ring.reserve(1), flags=DISCARDED)
    busy = ring.reserve(2)
    ring.put(3)
    assert ring.numbers() == []
    ring.commit(busy, flags=DISCARDED)
    assert ring.numbers() == [3]


def test_record_of_another_size_is_never_taken_for_one_of_ours(ring):
    ring.put(1)
    ring.commit(ring.reserve(2, size=12), size=12)
    ring.put(3)
    assert ring.numbers() == [1]
    assert ring.numbers() == []


def test_wrap_and_many_laps():
    """A capacity that is no multiple of the stride: every record crosses the end at some time."""
    ring = FakeRing(4096)
    record = StructType("nt_odd", 16, [Field("number", 0, "Q", ""), Field("inverse", 8, "Q", "")])
    ring.channel = RingChannel(-1, record, 4096, (ring.consumer, ring.producer))
    stride, sent, seen, crossed = 24, 0, 0, 0
    while sent < 1000:
        while True:
            position = ring.reserve(sent, size=16)
            if position is None:
                break
            ring.commit(position, size=16)
            crossed += (position % 4096) + stride > 4096
            sent += 1
        rows = list(ring.channel.read())
        assert [row[0] for row in rows] == list(range(seen, sent))
        assert all(row[0] ^ row[1] == 0xFFFFFFFFFFFFFFFF for row in rows)
        seen = sent
    assert crossed >= 4
    assert ring.place(ring.consumer) == sent * stride > 5 * 4096


def test_full_ring_refuses_until_it_was_read(ring):
    count = CAPACITY // STRIDE
    ring.put(*range(count))
    assert ring.reserve(count) is None
    assert ring.numbers() == list(range(count))
    ring.put(count)
    assert ring.numbers() == [count]


def test_position_far_into_the_life_of_a_ring(ring):
    far = (1 << 40) + 5 * CAPACITY + 3 * STRIDE
    ring.place(ring.consumer, far)
    ring.place(ring.producer, far)
    ring.put(7, 8)
    assert ring.numbers() == [7, 8]
    assert ring.place(ring.consumer) == far + 2 * STRIDE


def test_reader_that_stops_in_the_middle_sees_the_batch_again(ring):
    ring.put(*range(4))
    reader = ring.channel.read()
    assert [next(reader)[0], next(reader)[0]] == [0, 1]
    reader.close()
    assert ring.place(ring.consumer) == 0
    ring.put(4)
    assert ring.numbers() == [0, 1, 2, 3, 4]
    # Stopped behind the last record, but before the reader knows: all of it again.
    ring.put(5)
    reader = ring.channel.read()
    next(reader)
    reader.close()
    assert ring.numbers() == [5]


def test_large_ring_is_given_back_in_batches():
    ring = FakeRing(1 << 20)
    count = 20_000
    body = b"".join(
        struct.pack("<IIQQ4s4x", RECORD.size, 0, n, n ^ 0xFFFFFFFFFFFFFFFF, b"ntxy")
        for n in range(count)
    )
    ring.producer[PAGE : PAGE + len(body)] = body
    ring.place(ring.producer, len(body))
    reader = ring.channel.read()
    for _ in range(10_000):
        next(reader)
    # One whole batch was taken, the second is under way.
    assert ring.place(ring.consumer) == 8192 * STRIDE
    reader.close()
    assert [row[0] for row in ring.channel.read()] == list(range(8192, count))


def test_producer_at_the_same_time(ring):
    total = 20_000
    wrong: list[tuple] = []

    def produce() -> None:
        number = 0
        while number < total:
            position = ring.reserve(number)
            if position is not None:
                ring.commit(position)
                number += 1

    thread = threading.Thread(target=produce)
    thread.start()
    expected = 0
    while expected < total:
        for number, inverse, _ in ring.channel.read():
            if number != expected or inverse != number ^ 0xFFFFFFFFFFFFFFFF:
                wrong.append((expected, number, inverse))
            expected = number + 1
    thread.join()
    assert not wrong
    assert ring.numbers() == []


def test_close_twice_and_with_an_unfinished_reader(ring):
    ring.put(1, 2)
    reader = ring.channel.read()
    next(reader)
    ring.channel.close()
    ring.channel.close()
