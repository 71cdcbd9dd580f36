# SPDX-License-Identifier: GPL-2.0-only
"""Files that are no recordings, or pretend to be: refused in one line, at little cost."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.recordings import (
    HEADER,
    LAYOUTS,
    MIB,
    no_longer_than,
    record,
    replay,
)

from ntools.errors import RecordingProblem
from ntools.output import container, recording
from ntools.output.recording import Frame, Recorder, Recording

quick = settings(database=None, deadline=None, max_examples=60)


def prelude(version=1):
    return container.PRELUDE.pack(container.MAGIC, version)


def blocks(*parts, start=1):
    """Blocks with right checksums, of (payload, flags)."""
    return b"".join(
        container.pack_block(number, payload, flags, len(payload) > 4096 and not flags & 1)
        for number, (payload, flags) in enumerate(parts, start)
    )


def first_block(text):
    return prelude() + blocks((text.encode("utf-8", "surrogatepass"), container.HEADER))


GOOD = '{"part":1,"byteorder":"little","header":{},"layouts":{}}'


def refuse(path, data):
    path.write_bytes(data)
    with pytest.raises(RecordingProblem) as caught:
        Recording(path)
    text = str(caught.value)
    assert text.startswith(f"cannot replay '{path}': ") and text.endswith(".")
    assert text.isprintable() and len(text) < 300 + len(str(path))
    return text


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"", "it is empty. Give a file"),
        (b"x", "no recording"),
        (b"\x8fnt", "the file ends before block 1"),
        (b"\x8fntx", "no recording"),
        (b"\x8fntrec\n\x01\0" + bytes(100), "no recording"),
        (b'{"type":"header"}\n', "no recording"),
        (b"\0" * 10000, "no recording"),
        (
            prelude(2) + bytes(100),
            "format 2 is newer than 1, the newest known here. Use the ntools",
        ),
        (prelude(65535), "format 65535 is newer"),
        (prelude(0) + bytes(100), "there is no format 0"),
        (prelude(), "behind block 0"),
        (prelude() + bytes(9), "inside block 1"),
        (prelude() + bytes(100), "damaged: length 0"),
        (prelude() + b"\xff" * 100, "damaged: length 4294967295"),
        (prelude() + struct.pack("<IIH", 1000, 0, 0) + bytes(999), "inside block 1"),
        (prelude() + struct.pack("<IIH", 1000, 0, 0) + bytes(1000), "damaged: checksum"),
        (prelude() + blocks((GOOD.encode(), 0)), "no first block"),
        (prelude() + blocks((GOOD.encode(), 6)), "no first block"),
        (prelude() + blocks((GOOD.encode(), 4)), "no first block"),
        (prelude() + blocks((GOOD.encode(), 2 | 8)), "flags 0xa"),
        (prelude() + blocks((GOOD.encode(), 3)), "compressed data"),
        (prelude() + blocks((zlib.compress(GOOD.encode()) + b"x", 3)), "compressed data"),
        (prelude() + blocks((zlib.compress(GOOD.encode())[:-5], 3)), "compressed data"),
        (prelude() + blocks((zlib.compress(bytes(64 * MIB), 9), 3)), "larger than 2097152 bytes"),
        (prelude() + blocks((b" " * (2 * MIB + 1), 2)), "larger than 2097152 bytes"),
    ],
)
def test_no_recording_or_no_first_block(tmp_path, data, expected):
    assert expected in refuse(tmp_path / "hostile", data)


def test_the_good_first_block_is_taken(tmp_path):
    """The ones refused below differ from it in what their test says, and in nothing else."""
    path = tmp_path / "good"
    path.write_bytes(first_block(GOOD))
    with Recording(path) as read:
        assert (read.part, read.header, read.layouts) == (1, {}, {})
        assert list(read.frames()) == []
        assert read.cut == "the file ends behind block 1, without mark of the end"
    for value in ("18446744073709551615", "-9223372036854775808", "1.5e3", '"\\ud800"', "[[[1]]]"):
        path.write_bytes(first_block(GOOD.replace("{}", f'{{"a":{value}}}', 1)))
        with Recording(path) as read:
            assert read.header == {"a": json.loads(value)}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "larger|length 0"),
        ("x", "Expecting value"),
        ("[]", "no object"),
        ("1", "no object"),
        (GOOD + "x", "Extra data"),
        (GOOD[:-1], "delimiter"),
        ("\ufeff" + GOOD, "Expecting value"),
        ("\ud800", "no UTF-8"),
        (GOOD.replace('"part":1,', ""), "'part' is missing"),
        (GOOD.replace("1", "true", 1), "'part' is missing or of a wrong type"),
        (GOOD.replace("1", '"1"', 1), "'part'"),
        (GOOD.replace("1", "1.0", 1), "'part'"),
        (GOOD.replace("1", "0", 1), "impossible"),
        (GOOD.replace("1", "-1", 1), "impossible"),
        (GOOD.replace("little", "x" * 100000), "impossible"),
        (GOOD.replace('"little"', "null"), "'byteorder'"),
        (GOOD.replace("{}", "[]", 1), "'header'"),
        (GOOD.replace("{}", "null", 1), "'header'"),
        (GOOD.replace('"layouts":{}', '"layouts":[]'), "'layouts'"),
        (GOOD.replace('"layouts":{}', '"layouts":{},"part":1'), "a key twice"),
        (GOOD.replace("{}", '{"a":1,"a":2}', 1), "a key twice"),
        (GOOD.replace("{}", '{"a":NaN}', 1), "NaN is no number"),
        (GOOD.replace("{}", '{"a":-Infinity}', 1), "-Infinity is no number"),
        (GOOD.replace("{}", '{"a":1e999}', 1), "not finite"),
        (GOOD.replace("{}", '{"a":18446744073709551616}', 1), "beyond 64 bits"),
        (GOOD.replace("{}", '{"a":-9223372036854775809}', 1), "beyond 64 bits"),
        (GOOD.replace("{}", '{"a":' + "9" * 2_000_000 + "}", 1), "beyond 64 bits"),
        (GOOD.replace("{}", '{"a":' + "[" * 33 + "]" * 33 + "}", 1), "nested too deeply"),
        (GOOD.replace("{}", '{"a":' + "[" * 900_000 + "]" * 900_000 + "}", 1), "nested too deeply"),
        (GOOD.replace("{}", '{"a":' * 250_000 + "1" + "}" * 250_000, 1), "nested too deeply"),
    ],
)
def test_no_header(tmp_path, text, expected):
    with no_longer_than(20):
        problem = refuse(tmp_path / "hostile", first_block(text))
    assert any(part in problem for part in expected.split("|"))


def head(kind=1, cpu=0, length=0, ts_ns=0):
    return container.FRAME_HEAD.pack(kind, cpu, length, ts_ns)


def mark(frames, number_of_blocks, more=0):
    return container.LAST.pack(frames, number_of_blocks, more), container.END


@pytest.mark.parametrize(
    "parts, count, expected",
    [
        ([(head() * 3, 0), mark(3, 2)], 3, None),
        ([(head(length=4) + b"abcd", 0), mark(1, 2)], 1, None),
        ([(head(length=5) + b"abcd", 0), mark(1, 2)], 0, "block 2 is damaged: a frame larger"),
        ([(head() + head(length=2**32 - 1), 0), mark(2, 2)], 1, "a frame larger than the block"),
        ([(head()[:-1], 0), mark(1, 2)], 0, "block 2 is damaged: half a frame"),
        ([(head() + b"x", 0), mark(1, 2)], 1, "half a frame"),
        ([(head(), 0), (GOOD.encode(), 2), mark(1, 3)], 1, "block 3 is damaged: a first block"),
        ([(head(), 8), mark(1, 2)], 0, "flags 0x8"),
        ([(head(), 0x8000), mark(1, 2)], 0, "flags 0x8000"),
        ([(head(), 1), mark(1, 2)], 0, "block 2 is damaged: compressed data"),
        ([(zlib.compress(head())[:-1], 1), mark(1, 2)], 0, "compressed data"),
        ([(zlib.compress(head()) + b"\0", 1), mark(1, 2)], 0, "compressed data"),
        ([(zlib.compress(b""), 1), mark(0, 2)], 0, None),
        ([(b"", 0), mark(0, 2)], 0, "length 0"),
        ([(zlib.compress(bytes(64 * MIB), 9), 1)], 0, "larger than 16777216 bytes"),
        ([(head(), 0), mark(2, 2)], 1, "1 frames in 2 blocks were found, 2 in 2 were written"),
        ([(head(), 0), mark(1, 3)], 1, "1 in 3 were written"),
        ([(head(), 0), mark(2**64 - 1, 2**64 - 1)], 1, "18446744073709551615"),
        ([(head(), 0), (b"", 4)], 1, "length 0"),
        ([(head(), 0), (b"x" * 16, 4)], 1, "block 3 is damaged: length 16"),
        ([(head(), 0), (zlib.compress(bytes(64 * MIB), 9), 5)], 1, "larger than"),
        ([(head(), 0), (head(), 6)], 1, "first block in the middle"),
    ],
)
def test_hostile_blocks_behind_a_good_first_one(tmp_path, parts, count, expected):
    path = tmp_path / "hostile"
    path.write_bytes(first_block(GOOD) + blocks(*parts, start=2))
    with Recording(path) as read:
        frames = list(read.frames())
        assert len(frames) == count
        assert (read.cut or "") == "" if expected is None else expected in read.cut
        assert read.continued is (False if expected is None else None)


@settings(quick, max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(zlib.compress)),
            st.sampled_from((0, 0, 1, 1, 2, 4, 5, 7, 9)),
        ),
        max_size=5,
    ),
    st.one_of(st.just(GOOD.encode()), st.binary(max_size=99), st.text(max_size=99).map(str.encode)),
)
def test_any_payload_under_a_right_checksum(tmp_path_factory, parts, first):
    path = tmp_path_factory.mktemp("hostile") / "a"
    path.write_bytes(prelude() + blocks((first, container.HEADER), *parts))
    try:
        read = Recording(path)
    except RecordingProblem:
        return
    with read:
        assert len(list(read.frames())) <= 60 * 5 / 15
        assert read.cut is not None or read.continued is not None


def test_a_bomb_costs_little_memory(tmp_path):
    """Blocks that are just small enough, and one that is not."""
    many = (head(length=1000) + bytes(1000)) * (16 * MIB // 1015)
    one = head(length=16 * MIB - 15) + bytes(16 * MIB - 15)
    bomb = zlib.compress(bytes(256 * MIB), 9)
    path = tmp_path / "bomb"
    path.write_bytes(first_block(GOOD) + blocks((many, 0), (one, 0), (bomb, 1), start=2))
    assert path.stat().st_size < 600_000
    tracemalloc.start()
    try:
        with Recording(path) as read:
            count = sum(1 for _ in read.frames())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 16 * MIB // 1015 + 1
    assert read.cut == "block 4 is damaged: larger than 16777216 bytes"
    assert 16 * MIB < peak < 80 * MIB


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to("loop")
    for name, expected in [
        (tmp_path / "fifo", "it is no regular file. Save the recording to a file first."),
        (tmp_path / "socket", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (Path("/dev/null"), "no regular file"),
        (tmp_path, "it is a directory"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "fifo" / "a", "Not a directory"),
        (tmp_path / "loop", "symbolic links"),
        ("", "No such file or directory"),
        ("a\0b", "null byte"),
        ("x" * 300, "File name too long"),
    ]:
        with no_longer_than(10), pytest.raises(RecordingProblem, match=expected):
            Recording(name)


def test_a_fifo_that_took_the_name_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    regular = os.stat(tmp_path / "file")
    with monkeypatch.context() as patched:
        patched.setattr(recording.os, "stat", lambda path: regular)
        with no_longer_than(10), pytest.raises(RecordingProblem, match="no regular file"):
            Recording(tmp_path / "fifo")


def test_a_recording_may_be_read_through_a_link(tmp_path):
    record(tmp_path / "a", [Frame(1, 2, 3, b"4")])
    (tmp_path / "link").symlink_to("a")
    assert replay(tmp_path / "link") == ([Frame(1, 2, 3, b"4")], None)


@contextlib.contextmanager
def nobody():
    """Root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_permission():
    with tempfile.TemporaryDirectory() as folder:
        path = record(Path(folder) / "a", [], mode=0)
        os.chmod(folder, 0o555)
        with nobody():
            with pytest.raises(RecordingProblem, match="^cannot replay '.*a': Permission denied"):
                Recording(path)
            with pytest.raises(
                RecordingProblem, match="^cannot record to '.*b': Permission denied"
            ):
                Recorder(Path(folder) / "b", HEADER, LAYOUTS)
        os.chmod(folder, 0o700)
