# SPDX-License-Identifier: GPL-2.0-only
"""Recordings to write and read in tests."""

from __future__ import annotations

import contextlib
import random
import signal

from ntools.output.recording import Frame, Recorder, Recording

HEADER = {
    "type": "header",
    "run": "00ff",
    "args": ["--vm-interface", "vnet0\n\udcff"],
    "n": 2**64 - 1,
}
LAYOUTS = {"nt_flight": {"size": 560, "fields": [["start_ns", 0, 8, "u", 1]]}}
SECOND = 10**9
MIB = 1 << 20


def record(path, frames, **options):
    with Recorder(path, HEADER, LAYOUTS, **options) as recorder:
        for frame in frames:
            recorder.frame(frame.kind, frame.ts_ns, frame.body, frame.cpu)
    return path


def replay(path):
    """Frames and the note why they are not all; a header that could be read was the right one."""
    with Recording(path) as read:
        assert (read.header, read.layouts) == (HEADER, LAYOUTS)
        return list(read.frames()), read.cut


def random_frames(seed, count, size=400):
    rand = random.Random(seed)
    return [
        Frame(
            rand.randrange(256),
            rand.randrange(2**16),
            rand.randrange(2**64),
            rand.choice((rand.randbytes, bytes))(rand.randrange(size)),
        )
        for _ in range(count)
    ]


@contextlib.contextmanager
def no_longer_than(seconds):
    def give_up(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
