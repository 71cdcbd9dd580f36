# SPDX-License-Identifier: GPL-2.0-only
"""The reader of perf pages on pages made by the test, one ring per CPU."""

from __future__ import annotations

import mmap
import struct

import pytest

from ntools._loader.btf import Field, StructType
from ntools._loader.perf import PerfChannel

PAGE = mmap.PAGESIZE
SAMPLE, LOST, THROTTLE = 9, 2, 5
HEAD, TAIL = 1024, 1032
RECORD = StructType(
    "nt_test_event", 24, [Field("ts_ns", 0, "Q", ""), Field("number", 8, "Q", ""),
                          Field("tag", 16, "8s", "B")],
)  # fmt: skip
STRIDE = 40  # header 8, length 4, payload 24, padding 4


class FakeCpu:
    """Pages of one CPU, written as the kernel does; the data area exists once."""

    def __init__(self, data_pages: int = 1) -> None:
        self.size = data_pages * PAGE
        self.pages = mmap.mmap(-1, PAGE + self.size)

    def place(self, at: int, value: int | None = None) -> int:
        if value is not None:
            struct.pack_into("<Q", self.pages, at, value)
        return struct.unpack_from("<Q", self.pages, at)[0]

    def raw(self, kind: int, body: bytes) -> bool:
        """Append one record; False when there is no room."""
        head = self.place(HEAD)
        data = struct.pack("<IHH", kind, 1, 8 + len(body)) + body
        assert len(data) % 8 == 0
        if head + len(data) - self.place(TAIL) > self.size:
            return False
        for index, byte in enumerate(data):
            self.pages[PAGE + (head + index) % self.size] = byte
        self.place(HEAD, head + len(data))
        return True

    def sample(self, ts_ns: int, number: int) -> bool:
        payload = struct.pack("<QQ8s", ts_ns, number, b"ntools..")
        return self.raw(SAMPLE, struct.pack("<I", len(payload) + 4) + payload + bytes(4))

    def lost(self, count: int) -> bool:
        return self.raw(LOST, struct.pack("<QQ", 1, count))


def channel(*cpus: FakeCpu) -> PerfChannel:
    return PerfChannel(None, RECORD, [cpu.pages for cpu in cpus])


def test_empty():
    reader = channel(FakeCpu(), FakeCpu())
    assert list(reader.read()) == []
    assert (reader.unread_bytes, reader.lost) == (0, 0)
    assert reader.fields == ["ts_ns", "number", "tag"]
    reader.close()
    reader.close()


def test_in_order_and_only_once():
    cpu = FakeCpu()
    reader = channel(cpu)
    for number in range(5):
        assert cpu.sample(100 + number, number)
    assert reader.unread_bytes == 5 * STRIDE
    assert list(reader.read()) == [(100 + n, n, b"ntools..") for n in range(5)]
    assert list(reader.read()) == []
    assert cpu.place(TAIL) == cpu.place(HEAD) == 5 * STRIDE
    assert reader.unread_bytes == 0


def test_cpus_are_merged_by_time():
    one, two, three = FakeCpu(), FakeCpu(), FakeCpu()
    reader = channel(one, two, three)
    for ts_ns in (10, 40, 50):
        one.sample(ts_ns, 1)
    for ts_ns in (5, 20, 60):
        two.sample(ts_ns, 2)
    assert [row[:2] for row in reader.read()] == [
        (5, 2), (10, 1), (20, 2), (40, 1), (50, 1), (60, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("pages", [1, 4])
def test_many_laps_and_every_way_to_cross_the_end(pages):
    cpu = FakeCpu(pages)
    reader = channel(cpu)
    sent = seen = 0
    cut = set()
    for _ in range(40):
        while True:
            at = cpu.place(HEAD) % cpu.size
            if not cpu.sample(sent, sent):
                break
            if at + STRIDE > cpu.size:
                cut.add(cpu.size - at)
            sent += 1
        rows = list(reader.read())
        assert [row[1] for row in rows] == list(range(seen, sent))
        assert all(row[0] == row[1] and row[2] == b"ntools.." for row in rows)
        seen = sent
    # Behind the header, behind the length, inside the payload, before the padding.
    assert cut == {8, 16, 24, 32}


def test_the_kernels_count_of_what_did_not_fit():
    cpu, other = FakeCpu(), FakeCpu()
    reader = channel(cpu, other)
    sent = 0
    while cpu.sample(sent, sent):
        sent += 1
    assert [row[1] for row in reader.read()] == list(range(sent))
    assert reader.lost == 0
    cpu.lost(7)
    cpu.sample(1000, 1000)
    other.lost(3)
    assert [row[1] for row in reader.read()] == [1000]
    assert reader.lost == 10


def test_other_kinds_of_records_are_skipped():
    cpu = FakeCpu()
    reader = channel(cpu)
    cpu.sample(1, 1)
    cpu.raw(THROTTLE, bytes(24))
    cpu.sample(2, 2)
    assert [row[1] for row in reader.read()] == [1, 2]


def test_position_far_into_the_life_of_a_ring():
    cpu = FakeCpu()
    far = (1 << 41) + 24
    cpu.place(HEAD, far)
    cpu.place(TAIL, far)
    reader = channel(cpu)
    cpu.sample(1, 11)
    cpu.sample(2, 12)
    assert [row[1] for row in reader.read()] == [11, 12]
    assert cpu.place(TAIL) == far + 2 * STRIDE
