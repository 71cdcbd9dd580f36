# SPDX-License-Identifier: GPL-2.0-only
"""Where recordings are written, what a full disk leaves of them, and rings of files."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import stat
from pathlib import Path

import pytest
from unit.recordings import (
    HEADER,
    LAYOUTS,
    MIB,
    no_longer_than,
    record,
    replay,
)

from ntools.errors import RecordingProblem
from ntools.output.recording import Frame, Recorder, Recording


def noise(count, size=10000, seed=9):
    """Frames that nothing can compress."""
    rand = random.Random(seed)
    return [Frame(1, number % 7, number, rand.randbytes(size)) for number in range(count)]


def names(folder):
    return sorted(str(path) for path in folder.iterdir())


# -- where a recording is written ----------------------------------------------------------------


def test_nothing_that_exists_is_written_to(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name, expected in [
        ("file", "the file exists"),
        ("link", "it is a link"),
        ("dangling", "it is a link"),
        ("fifo", "exists"),
        (".", "exists"),
    ]:
        with no_longer_than(10), pytest.raises(RecordingProblem, match=expected) as caught:
            Recorder(tmp_path / name, HEADER, LAYOUTS)
        assert "Remove it or give another name." in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 4
    for name in (
        tmp_path / "none" / "a",
        "",
        "a\0b",
        tmp_path / "file" / "a",
        "/proc/ntools.ntrec",
    ):
        with pytest.raises(RecordingProblem, match="Give a name in a directory"):
            Recorder(name, HEADER, LAYOUTS)


def test_a_message_shows_any_name(tmp_path):
    name = os.fsdecode(b"bad\n\x1b[2J\xff")
    record(tmp_path / name, [])
    with pytest.raises(RecordingProblem) as caught:
        Recorder(tmp_path / name, HEADER, LAYOUTS)
    assert r"bad\x0a\x1b[2J\xff" in str(caught.value)
    with pytest.raises(RecordingProblem) as caught:
        Recording(tmp_path / (name + "x"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
@pytest.mark.parametrize("umask", [0, 0o022, 0o277])
def test_permissions_are_what_was_asked_for(tmp_path, mode, umask):
    before = os.umask(umask)
    try:
        record(tmp_path / "a", [], mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_nobody_else_may_read_unless_asked(tmp_path):
    assert stat.S_IMODE(record(tmp_path / "a", []).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "header, expected",
    [
        ({"a": "x" * 3_000_000}, "are too large"),
        ({"a": float("nan")}, "not JSON compliant"),
        ({"a": 2**64}, "beyond 64 bits"),
        ({"a": 1, 1: 2, "1": 3}, "a key twice"),
    ],
)
def test_a_header_that_nobody_could_read_is_refused(tmp_path, header, expected):
    with pytest.raises(RecordingProblem, match=expected):
        Recorder(tmp_path / "a", header, {})
    assert not (tmp_path / "a").exists()


@contextlib.contextmanager
def file_size_limit(size):
    """What a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [300_000, 2**18 + 300, 555_555])
def test_a_full_disk_leaves_what_was_written(tmp_path, limit):
    path = tmp_path / "a"
    rand = random.Random(6)
    written = []
    recorder = Recorder(path, HEADER, LAYOUTS, level=0)
    with file_size_limit(limit):
        with pytest.raises(RecordingProblem) as caught:
            while len(written) < 1000:
                frame = Frame(1, 2, len(written), rand.randbytes(3000))
                recorder.frame(frame.kind, frame.ts_ns, frame.body, frame.cpu)
                written.append(frame)
        assert str(caught.value) == (
            f"cannot record to '{path}': File too large. What was written before can be replayed."
        )
    # There is room again, but a hole in the recording would not be seen.
    for _ in range(100):
        with contextlib.suppress(RecordingProblem):
            recorder.frame(1, 1, bytes(3000))
    with pytest.raises(RecordingProblem, match="File too large"):
        recorder.frame(1, 1, bytes(2**18))
    recorder.close()
    recorder.close()
    frames, cut = replay(path)
    assert len(frames) >= (limit // 2**18) * 86
    assert frames == written[: len(frames)]
    assert cut.endswith("without mark of the end")
    assert recorder.bytes_written == path.stat().st_size


def test_a_disk_that_is_full_at_the_end_or_at_once(tmp_path):
    with file_size_limit(40):
        with pytest.raises(RecordingProblem, match="File too large"):
            Recorder(tmp_path / "a", HEADER, LAYOUTS)
    assert not (tmp_path / "a").exists()
    recorder = Recorder(tmp_path / "a", HEADER, LAYOUTS)
    recorder.frame(1, 1, b"abc")
    with file_size_limit(recorder.bytes_written + 10):
        with pytest.raises(RecordingProblem, match="File too large"):
            recorder.close()
    recorder.close()
    assert replay(tmp_path / "a") == ([], "the file ends behind block 1, without mark of the end")


def test_a_full_disk_does_not_hide_another_problem(tmp_path):
    with file_size_limit(2000), pytest.raises(KeyError):
        with Recorder(tmp_path / "a", HEADER, LAYOUTS, level=0) as recorder:
            recorder.frame(1, 1, bytes(3000))
            raise KeyError
    assert replay(tmp_path / "a") == ([], "the file ends behind block 1, without mark of the end")
    with file_size_limit(2000), pytest.raises(RecordingProblem, match="File too large"):
        with Recorder(tmp_path / "b", HEADER, LAYOUTS, level=0) as recorder:
            recorder.frame(1, 1, bytes(3000))


def test_an_end_by_an_exception_is_an_end(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with Recorder(tmp_path / "a", HEADER, LAYOUTS) as recorder:
            recorder.frame(1, 2, b"3", 4)
            raise KeyboardInterrupt
    assert replay(tmp_path / "a") == ([Frame(1, 4, 2, b"3")], None)


def test_interrupted_and_short_writes_leave_no_gap(tmp_path, monkeypatch):
    sizes = random.Random(7)
    frames = [frame for _ in range(300) for frame in noise(1, sizes.randrange(20000))]
    system, rand = os.pwrite, random.Random(8)

    def pwrite(fd, data, at):
        done = system(fd, data[: rand.randrange(1, 60000)], at)
        if rand.random() < 0.1:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(os, "pwrite", pwrite)
    interrupts = 0
    recorder = None
    while recorder is None:
        with contextlib.suppress(KeyboardInterrupt):
            recorder = Recorder(tmp_path / "a", HEADER, LAYOUTS)
    for frame in frames:
        while True:
            try:
                recorder.frame(frame.kind, frame.ts_ns, frame.body, frame.cpu)
                break
            except KeyboardInterrupt:
                interrupts += 1
    monkeypatch.undo()
    recorder.close()
    assert interrupts > 3
    assert replay(tmp_path / "a") == (frames, None)


# -- rings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep, size", [(1, 10000), (3, 10000), (3, 131), (4, 200_000)])
def test_a_ring_keeps_its_bounds_and_the_newest_frames(tmp_path, keep, size):
    frames = noise(7 * MIB // size, size)
    calls = []

    def preamble():
        calls.append(len(calls) + 1)
        return [Frame(9, 0, calls[-1], b"names"), Frame(9, 1, calls[-1], b"")]

    with Recorder(
        tmp_path / "r", HEADER, LAYOUTS, max_bytes=MIB, keep=keep, preamble=preamble
    ) as recorder:
        before = 0
        for frame in frames:
            recorder.frame(frame.kind, frame.ts_ns, frame.body, frame.cpu)
            if recorder.bytes_written != before:
                before = recorder.bytes_written
                assert names(tmp_path) == recorder.files
                assert len(recorder.files) <= keep
                assert all(os.path.getsize(name) <= MIB for name in recorder.files)
    assert names(tmp_path) == recorder.files and len(recorder.files) == keep
    assert recorder.part == len(calls) >= 7
    assert recorder.bytes_written > len(frames) * size > 6.8 * MIB
    first = recorder.part - keep + 1
    found = []
    for number, name in enumerate(recorder.files, first):
        assert name == str(tmp_path / "r") + (f".{number:06}" if number > 1 else "")
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600
        with Recording(name) as read:
            assert (read.part, read.header, read.layouts) == (number, HEADER, LAYOUTS)
            begin, second, *rest = read.frames()
            assert read.cut is None
            assert read.continued == (number < recorder.part)
        assert (begin, second) == (Frame(9, 0, number, b"names"), Frame(9, 1, number, b""))
        assert rest or number == recorder.part
        found += rest
    assert found == frames[-len(found) :]
    assert len(found) * size > (keep - 1) * (MIB - 600_000)


def test_a_ring_that_never_fills_is_one_file(tmp_path):
    frames = noise(20)
    path = record(tmp_path / "r", frames, max_bytes=MIB, keep=3)
    assert names(tmp_path) == [str(path)]
    with Recording(path) as read:
        assert list(read.frames()) == frames
        assert (read.cut, read.part, read.continued) == (None, 1, False)


def test_frames_larger_than_a_part_keep_the_bound_but_for_themselves(tmp_path):
    with Recorder(tmp_path / "r", HEADER, LAYOUTS, max_bytes=MIB, keep=2, level=0) as recorder:
        for number in range(6):
            recorder.frame(1, number, bytes(3 * MIB))
            recorder.frame(2, number, bytes(100))
            assert all(os.path.getsize(name) < 5 * MIB for name in recorder.files)
            assert names(tmp_path) == recorder.files
    assert [f.ts_ns for name in recorder.files for f in replay(name)[0]][-3:] == [4, 5, 5]


def test_a_ring_needs_room(tmp_path):
    for options in ({"max_bytes": MIB - 1}, {"max_bytes": MIB, "keep": 0}, {"max_bytes": -1}):
        with pytest.raises(RecordingProblem, match="Allow one file and 1048576 bytes at least"):
            Recorder(tmp_path / "r", HEADER, LAYOUTS, **options)
    with pytest.raises(RecordingProblem, match=r"begins with \d+ bytes. Allow larger files"):
        Recorder(tmp_path / "r", HEADER, LAYOUTS, max_bytes=MIB, preamble=lambda: noise(90))
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["r.000002", "r.000077", "r.1000000"])
def test_leftovers_of_another_ring_are_seen_at_the_start(tmp_path, name):
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(RecordingProblem, match=f"part '{name}' exists. Remove it"):
        Recorder(tmp_path / "r", HEADER, LAYOUTS, max_bytes=MIB, keep=3)
    assert names(tmp_path) == [str(tmp_path / name)]
    record(tmp_path / "r", [])  # no ring, no matter


def test_others_beside_a_ring_do_not_matter(tmp_path):
    for other in ("r.1", "r.json", "r.00000x", "q.000002", "rr.000002", "r000002", "r.²²²²²²"):
        (tmp_path / other).write_text("mine")
    before = names(tmp_path)
    record(tmp_path / "r", noise(300), max_bytes=MIB, keep=1)
    assert len(names(tmp_path)) == len(before) + 1
    assert {Path(name).read_text() for name in before} == {"mine"}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_foreign_file_in_the_way_ends_the_ring(tmp_path, kind):
    frames = noise(400)
    with pytest.raises(RecordingProblem) as caught:
        with Recorder(tmp_path / "r", HEADER, LAYOUTS, max_bytes=MIB, keep=3) as recorder:
            if kind == "file":
                (tmp_path / "r.000003").write_text("foreign")
            else:
                (tmp_path / "r.000003").symlink_to("target")
            for frame in frames:
                recorder.frame(frame.kind, frame.ts_ns, frame.body, frame.cpu)
    expected = {"file": "the file exists", "link": "it is a link, and links are not followed"}
    assert f"'{tmp_path}/r.000003': {expected[kind]}. Remove it" in str(caught.value)
    if kind == "file":
        assert (tmp_path / "r.000003").read_text() == "foreign"
    assert not (tmp_path / "target").exists()
    assert recorder.files == [str(tmp_path / "r"), str(tmp_path / "r.000002")]
    found, cut = zip(*map(replay, recorder.files))
    assert cut[0] is None and cut[1].endswith("without mark of the end")
    found = [frame for part in found for frame in part]
    assert found == frames[: len(found)] and len(found) > 150


def test_a_ring_removes_only_what_it_wrote(tmp_path):
    with Recorder(tmp_path / "r", HEADER, LAYOUTS, max_bytes=MIB, keep=2) as recorder:
        for frame in noise(500):
            recorder.frame(frame.kind, frame.ts_ns, frame.body, frame.cpu)
            if recorder.part == 2 and (tmp_path / "r").exists():
                (tmp_path / "other").write_text("foreign")
                (tmp_path / "other").rename(tmp_path / "r")
            if recorder.part == 4 and (tmp_path / "r.000003").exists():
                (tmp_path / "r.000003").unlink()  # the user needed the room
    assert (tmp_path / "r").read_text() == "foreign"
    assert recorder.part >= 5
    assert names(tmp_path) == [str(tmp_path / "r"), *recorder.files]


def test_a_disk_that_fills_while_the_part_changes(tmp_path):
    """At the mark of the end: the new file goes, the old one remains as it is."""
    frames = noise(200)
    recorder = Recorder(tmp_path / "r", HEADER, LAYOUTS, max_bytes=MIB, keep=3, level=0)
    size = recorder.bytes_written
    per_block = 2**18 // 10015
    with file_size_limit(size + 4 * (per_block * 10015 + 10) + 5):
        with pytest.raises(RecordingProblem, match="File too large"):
            for frame in frames:
                recorder.frame(frame.kind, frame.ts_ns, frame.body, frame.cpu)
    recorder.close()
    assert names(tmp_path) == recorder.files == [str(tmp_path / "r")]
    found, cut = replay(tmp_path / "r")
    assert found == frames[: 4 * per_block] and cut.endswith("without mark of the end")


def test_a_preamble_may_be_large(tmp_path):
    before = noise(40)
    with Recorder(
        tmp_path / "r", HEADER, LAYOUTS, max_bytes=MIB, keep=2, preamble=lambda: iter(before)
    ) as recorder:
        for frame in noise(200, seed=10):
            recorder.frame(frame.kind, frame.ts_ns, frame.body, frame.cpu)
    for name in recorder.files:
        assert os.path.getsize(name) <= MIB
        found, cut = replay(name)
        assert (found[:40], cut) == (before, None)
