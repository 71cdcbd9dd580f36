# SPDX-License-Identifier: GPL-2.0-only
"""The file format of recordings: what was written is read, and nothing else ever is."""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.recordings import (
    HEADER,
    LAYOUTS,
    SECOND,
    random_frames,
    record,
    replay,
)

from ntools.errors import RecordingProblem
from ntools.output import container, recording
from ntools.output.recording import Frame, Recorder, Recording

quick = settings(database=None, deadline=None, max_examples=60)
frames_of_any_kind = st.builds(
    Frame,
    st.integers(0, 255),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**64 - 1),
    st.one_of(st.binary(max_size=40), st.integers(0, 300_000).map(bytes)),
)


# -- what is written is read ---------------------------------------------------------------------


def test_round_trip(tmp_path):
    frames = [Frame(1, 3, 5, b"abc"), Frame(255, 2**16 - 1, 2**64 - 1, b""), Frame(0, 0, 0, b"\0")]
    path = record(tmp_path / "a.ntrec", frames)
    with Recording(path) as read:
        assert (read.version, read.part, read.byteorder) == (1, 1, sys.byteorder)
        assert (read.header, read.layouts) == (HEADER, LAYOUTS)
        assert (read.cut, read.continued) == (None, None)
        for _ in range(2):  # every call begins anew
            assert list(read.frames()) == frames
            assert (read.cut, read.continued) == (None, False)


def test_an_empty_recording_is_whole(tmp_path):
    assert replay(record(tmp_path / "a", [])) == ([], None)


@quick
@given(
    st.lists(st.tuples(frames_of_any_kind, st.sampled_from((0, 0, 1, 3 * SECOND))), max_size=30),
    st.sampled_from((0, 1, 9)),
)
def test_round_trip_of_any_frames_and_flushes(tmp_path_factory, steps, level):
    path = tmp_path_factory.mktemp("round") / "a"
    now = 0
    with Recorder(path, HEADER, LAYOUTS, level=level) as recorder:
        for frame, wait in steps:
            recorder.frame(frame.kind, frame.ts_ns, frame.body, frame.cpu)
            now += wait
            recorder.tick(now)
    assert recorder.bytes_written == path.stat().st_size
    assert replay(path) == ([frame for frame, _ in steps], None)


@quick
@given(st.integers(1, 600), st.integers(0, 3000), st.integers(0, 255))
def test_batches_hold_whole_records(tmp_path_factory, size, count, fill):
    path = tmp_path_factory.mktemp("batch") / "a"
    data = bytes([fill]) * (size * count)
    with Recorder(path, HEADER, LAYOUTS) as recorder:
        recorder.frame(1, 1, b"before")
        recorder.batch(7, 11, memoryview(data), size, cpu=3)
        recorder.frame(1, 2, b"behind")
    frames, cut = replay(path)
    assert cut is None
    assert (frames[0].body, frames[-1].body) == (b"before", b"behind")
    batches = frames[1:-1]
    assert b"".join(frame.body for frame in batches) == data
    assert all(frame[:3] == (7, 3, 11) and len(frame.body) % size == 0 for frame in batches)
    assert len(batches) == -(-len(data) // max((2**18 - 15) // size * size, 1))


def test_a_batch_of_another_size_is_refused(tmp_path):
    with Recorder(tmp_path / "a", HEADER, LAYOUTS) as recorder:
        recorder.batch(1, 1, b"", 560)
        with pytest.raises(ValueError, match="561 bytes"):
            recorder.batch(1, 1, bytes(561), 560)
    assert replay(tmp_path / "a") == ([], None)


def test_a_body_may_be_any_contiguous_buffer_and_is_copied(tmp_path):
    words = memoryview(bytes(range(32))).cast("Q")
    shared = bytearray(b"first")
    with Recorder(tmp_path / "a", HEADER, LAYOUTS) as recorder:
        recorder.frame(1, 1, words)
        recorder.frame(1, 2, memoryview(shared))
        shared[:] = b"later"
        recorder.frame(1, 3, shared)
        recorder.batch(1, 4, words, 16)
    bodies = [frame.body for frame in replay(tmp_path / "a")[0]]
    assert bodies == [bytes(range(32)), b"first", b"later", bytes(range(32))]


def test_a_wrong_frame_leaves_nothing_behind(tmp_path):
    with Recorder(tmp_path / "a", HEADER, LAYOUTS) as recorder:
        recorder.frame(1, 1, b"a")
        with pytest.raises(TypeError):
            recorder.frame(1, 1, "text")
        with pytest.raises(struct.error):
            recorder.frame(256, 1, b"b")
        with pytest.raises(struct.error):
            recorder.frame(1, -1, b"b")
        recorder.frame(1, 1, b"c")
    frames, cut = replay(tmp_path / "a")
    assert ([frame.body for frame in frames], cut) == ([b"a", b"c"], None)


def test_the_largest_frame(tmp_path):
    largest = bytes(container.MAX_BODY_BYTES)
    with pytest.raises(RecordingProblem, match="'.*/a': a frame of 16777202 bytes is too large"):
        with Recorder(tmp_path / "a", HEADER, LAYOUTS) as recorder:
            recorder.frame(1, 1, b"a")
            recorder.frame(2, 2, largest)
            recorder.frame(3, 3, b"c")
            recorder.frame(4, 4, largest + b"\0")
    frames, cut = replay(tmp_path / "a")
    assert [(frame.kind, len(frame.body)) for frame in frames] == [
        (1, 1),
        (2, len(largest)),
        (3, 1),
    ]
    assert cut == "the file ends behind block 4, without mark of the end"


def test_blocks_are_as_large_as_they_may_be(tmp_path):
    body = bytes(1009)
    per_block = 2**18 // (15 + len(body))
    with Recorder(tmp_path / "a", HEADER, LAYOUTS) as recorder:
        for written in range(1, 3 * per_block):
            before = recorder.bytes_written
            recorder.frame(1, written, body)
            assert (recorder.bytes_written != before) == (written % per_block == 1 and written > 1)
    assert len(plain_blocks((tmp_path / "a").read_bytes())) == 1 + 3 + 1


def test_the_same_frames_make_the_same_file(tmp_path):
    frames = random_frames(1, 200)
    first, second = record(tmp_path / "a", frames), record(tmp_path / "b", frames)
    assert first.read_bytes() == second.read_bytes()


def plain_blocks(data):
    """A reader made from the documentation alone: (flags, payload before compression)."""
    assert data[:10] == b"\x8fntrec\r\n\x01\x00"
    blocks, at = [], 10
    while at < len(data):
        length, crc, flags = struct.unpack_from("<IIH", data, at)
        stored = data[at + 10 : at + 10 + length]
        assert len(stored) == length
        place = struct.pack("<QIH", len(blocks) + 1, length, flags)
        assert crc == zlib.crc32(place + stored)
        blocks.append((flags, zlib.decompress(stored) if flags & 1 else stored))
        at += 10 + length
    return blocks


@pytest.mark.parametrize("level", [0, 1])
def test_the_format_is_the_documented_one(tmp_path, level):
    path = record(tmp_path / "a", [Frame(5, 6, 7, b"x" * 100)], level=level)
    first, frames, last = plain_blocks(path.read_bytes())
    packed = 1 if level else 0
    assert first[0] == 2 | packed
    assert json.loads(first[1]) == {
        "part": 1, "byteorder": sys.byteorder, "header": HEADER, "layouts": LAYOUTS,
    }  # fmt: skip
    assert frames == (packed, struct.pack("<BHIQ", 5, 6, 100, 7) + b"x" * 100)
    assert last == (4, struct.pack("<QQB", 1, 2, 0))


# -- time: what a kill leaves --------------------------------------------------------------------


def test_a_kill_loses_a_second(tmp_path):
    path = tmp_path / "a"
    recorder = Recorder(path, HEADER, LAYOUTS)
    recorder.tick(100 * SECOND)
    written = []
    for step in range(1, 50):
        now = 100 * SECOND + step * SECOND // 10
        recorder.frame(1, now, b"x")
        written.append(now)
        recorder.tick(now)
        kept, cut = replay(path)
        assert cut.endswith("without mark of the end")
        assert [frame.ts_ns for frame in kept] == written[: len(kept)]
        assert all(now - lost < SECOND for lost in written[len(kept) :])
    assert len(plain_blocks(path.read_bytes())) == 1 + 4  # not one per tick
    recorder.close()
    assert [frame.ts_ns for frame in replay(path)[0]] == written


def test_a_tick_writes_no_empty_blocks(tmp_path):
    with Recorder(tmp_path / "a", HEADER, LAYOUTS) as recorder:
        for now in range(0, 100 * SECOND, SECOND):
            recorder.tick(now)
    assert len(plain_blocks((tmp_path / "a").read_bytes())) == 2


def test_a_block_is_not_old_because_nothing_happened_before(tmp_path):
    with Recorder(tmp_path / "a", HEADER, LAYOUTS) as recorder:
        for step in range(500):
            if step >= 400:
                recorder.frame(1, step, b"x")
            recorder.tick(step * SECOND // 100)
    assert len(plain_blocks((tmp_path / "a").read_bytes())) == 1 + 1 + 1


def test_closing_twice_and_writing_behind(tmp_path):
    recorder = Recorder(tmp_path / "a", HEADER, LAYOUTS)
    recorder.frame(1, 1, b"a")
    recorder.close()
    size = (tmp_path / "a").stat().st_size
    recorder.close()
    with pytest.raises(ValueError, match="closed"):
        recorder.frame(1, 1, bytes(2**19))
        recorder.frame(1, 1, bytes(2**19))
    assert (tmp_path / "a").stat().st_size == size
    assert replay(tmp_path / "a") == ([Frame(1, 0, 1, b"a")], None)


# -- damage: truncation and flipped bytes --------------------------------------------------------


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A recording, its frames, and (size, frames so far) behind every block."""
    path = tmp_path_factory.mktemp("sample") / "a"
    frames = random_frames(2, 600)
    bounds = []
    rand = random.Random(3)
    with Recorder(path, HEADER, LAYOUTS) as recorder:
        bounds.append((recorder.bytes_written, 0))
        for number, frame in enumerate(frames, 1):
            recorder.frame(frame.kind, frame.ts_ns, frame.body, frame.cpu)
            if rand.random() < 0.1 or number > 598:
                recorder.tick(number * 2 * SECOND)
                bounds.append((recorder.bytes_written, number))
    data = path.read_bytes()
    bounds.append((len(data), 600))
    assert len(bounds) == len(plain_blocks(data)) > 50
    assert replay(path) == (frames, None)
    return data, frames, bounds


def test_a_file_cut_anywhere_gives_its_whole_blocks(sample, tmp_path):
    data, frames, bounds = sample
    rand = random.Random(4)
    offsets = {rand.randrange(len(data)) for _ in range(1000)} | {size for size, _ in bounds}
    offsets |= set(range(bounds[-4][0], len(data) + 1))
    path = tmp_path / "cut"
    path.write_bytes(data)
    unreadable = 0
    for offset in sorted(offsets, reverse=True):
        os.truncate(path, offset)
        if offset < bounds[0][0]:
            unreadable += 1
            with pytest.raises(RecordingProblem, match="ends (inside|before)|behind block 0|empty"):
                Recording(path)
            continue
        kept, cut = replay(path)
        whole = max(count for size, count in bounds if size <= offset)
        assert kept == frames[:whole]
        assert (cut is None) == (offset == len(data))
        if cut is not None:
            number = sum(size <= offset for size, _ in bounds)
            at_bound = offset in [size for size, _ in bounds]
            assert f"behind block {number}," in cut if at_bound else cut.endswith(str(number + 1))
    assert 0 < unreadable < len(offsets) / 10


def test_a_first_block_cut_at_every_byte(sample, tmp_path):
    data, _, bounds = sample
    path = tmp_path / "cut"
    path.write_bytes(data)
    for offset in range(bounds[0][0] - 1, -1, -1):
        os.truncate(path, offset)
        with pytest.raises(RecordingProblem, match="^cannot replay '.*cut': .*[.]$"):
            Recording(path)


def test_a_flipped_byte_is_always_noticed(sample, tmp_path):
    data, frames, bounds = sample
    rand = random.Random(5)
    offsets = [rand.randrange(len(data)) for _ in range(1000)]
    offsets += [size + byte for size, _ in bounds[:-1] for byte in range(10)]  # all block heads
    offsets += range(bounds[0][0])  # everything that is looked at when opening
    offsets += range(bounds[-2][0], len(data))
    path = tmp_path / "flipped"
    path.write_bytes(data)
    seen = set()
    with open(path, "r+b", buffering=0) as file:
        for offset in offsets:
            flipped = data[offset] ^ rand.choice((1, 128, 255, rand.randrange(1, 256)))
            os.pwrite(file.fileno(), bytes([flipped]), offset)
            if offset < bounds[0][0]:
                with pytest.raises(RecordingProblem) as caught:
                    Recording(path)
                seen.add(str(caught.value).split(": ", 1)[1])
            else:
                kept, cut = replay(path)
                assert kept == frames[: max(count for size, count in bounds if size <= offset)]
                assert cut is not None
                seen.add(cut.partition(": ")[2])
            os.pwrite(file.fileno(), data[offset : offset + 1], offset)
    assert replay(path) == (frames, None)
    assert "checksum" in seen and any("no recording" in text for text in seen)
    assert any("is newer than 1" in text for text in seen)


def test_blocks_count_only_where_they_were_written(sample, tmp_path):
    data, frames, bounds = sample
    ends = [size for size, _ in bounds]
    blocks = [data[start:end] for start, end in zip([0, *ends], ends)]
    path = tmp_path / "moved"
    for changed, intact in [
        (blocks[:10] + blocks[11:], 9),  # one is missing
        (blocks[:10] + blocks[9:], 9),  # one is there twice
        (blocks[:10] + [blocks[11], blocks[10]] + blocks[12:], 9),
        (blocks[:10] + [bytes(4096)] + blocks[10:], 9),  # a hole
        (blocks[:10] + blocks[-1:], 9),  # the end too early
    ]:
        path.write_bytes(b"".join(changed))
        kept, cut = replay(path)
        assert kept == frames[: bounds[intact][1]]
        assert cut.startswith("block 11 is damaged: ")


def test_data_behind_the_end_are_no_frames(sample, tmp_path):
    data, frames, _ = sample
    path = tmp_path / "joined"
    for more in (b"\0", data):
        path.write_bytes(data + more)
        assert replay(path) == (frames, "other data follow the mark of the end")


@settings(quick, max_examples=300)
@given(st.data())
def test_any_number_of_flipped_and_missing_bytes(sample, tmp_path_factory, choose):
    data, frames, bounds = sample
    first = choose.draw(st.integers(bounds[0][0], len(data) - 1))
    size = choose.draw(st.integers(1, 600))
    junk = choose.draw(
        st.binary(max_size=600).filter(lambda junk: junk != data[first : first + size])
    )
    path = tmp_path_factory.mktemp("spoiled") / "a"
    path.write_bytes(data[:first] + junk + data[first + size :])
    kept, cut = replay(path)
    assert cut is not None
    assert kept == frames[: len(kept)]
    assert len(kept) >= max(count for size, count in bounds if size <= first)


def test_a_file_that_can_no_longer_be_read(sample, tmp_path, monkeypatch):
    data, frames, bounds = sample
    (tmp_path / "a").write_bytes(data)
    with Recording(tmp_path / "a") as read:
        system = os.pread

        def pread(fd, size, at):
            if at > bounds[5][0]:
                raise OSError(5, "Input/output error")
            return system(fd, size, at)

        monkeypatch.setattr(recording.os, "pread", pread)
        assert list(read.frames()) == frames[: bounds[5][1]]
        assert read.cut.endswith("Input/output error")
        monkeypatch.setattr(recording.os, "pread", lambda *_: pread(0, 0, len(data)))
        with pytest.raises(RecordingProblem, match="Input/output error"):
            Recording(tmp_path / "a")


def test_reads_may_be_short(sample, tmp_path, monkeypatch):
    data, frames, _ = sample
    (tmp_path / "a").write_bytes(data)
    system = os.pread
    monkeypatch.setattr(recording.os, "pread", lambda fd, size, at: system(fd, min(size, 7), at))
    assert replay(tmp_path / "a") == (frames, None)
