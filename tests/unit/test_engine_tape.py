# SPDX-License-Identifier: GPL-2.0-only
"""The tape: what a run read comes back in the same order, and nothing made up does harm."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest

import ntools
from ntools._loader.btf import Field, StructType, Types
from ntools._loader.channel import Channel
from ntools._loader.elf import sections
from ntools._loader.maps import MapView
from ntools._loader.obj import PointReport, Refusal
from ntools.engine import tape as module
from ntools.engine.tape import Playback, ReplayedObject, Tape, TapedObject
from ntools.errors import NtoolsError, RecordingProblem
from ntools.output.recording import Frame

OBJECT = Path(ntools.__file__).parent / "bpf" / "drop.x86.bpf.o"
NUMBER = StructType("", 8, [Field("value", 0, "Q", "")])


class Recorder:
    def __init__(self):
        self.frames = []

    def frame(self, kind, ts_ns, body, cpu=0):
        self.frames.append(Frame(kind, cpu, ts_ns, bytes(body)))

    def tick(self, now_ns):
        pass


class Store:
    reads_in_batches = True

    def __init__(self):
        self.rows = {}

    def items(self):
        return iter(list(self.rows.items()))

    def lookup(self, key):
        return self.rows.get(key)

    def update(self, key, value):
        self.rows[key] = bytes(value)

    def delete(self, key):
        return self.rows.pop(key, None) is not None


class RealChannel(Channel):
    fd = 3
    capacity = 4096
    unread_bytes = 0

    def __init__(self, record):
        super().__init__(record)
        self.waiting = []

    def batches(self):
        while self.waiting:
            yield self.waiting.pop(0)


class Object:
    """A loaded object as far as recordings need one."""

    name, build_id = "drop", "12345678"

    def __init__(self):
        self.types = Types(sections(OBJECT.read_bytes())[".BTF"])
        self.manifest = self.types.manifest()
        self.report = [
            PointReport("free_drop", "tp_btf", "kfree_skb", []),
            PointReport("other", None, None, [Refusal("kprobe", "f", 2, "no")]),
        ]
        self.view = MapView("counts", Store(), 8, NUMBER, NUMBER, 0)
        self.reader = RealChannel(NUMBER)

    def map(self, name):
        return {"counts": self.view}[name]

    def maps(self):
        return [self.view]

    def channel(self, name):
        return self.reader

    def programs(self):
        return [("free_drop", 100, 7, 0)]


class Recording:
    cut = None

    def __init__(self, header, layouts, frames):
        self.header, self.layouts, self._frames = header, layouts, frames

    def frames(self):
        return iter(self._frames)


@pytest.fixture
def taped():
    if not OBJECT.exists():
        pytest.skip("no object: make build")
    obj, tape, recorder = Object(), Tape(pytest.fail), Recorder()
    tape.fact("symbol", 7, ["f", 1, None])
    layouts = json.loads(json.dumps(module.layouts(obj)))
    # The channel of this test carries plain numbers.
    layouts["structs"]["nt_drop_event"] = ["nt_drop_event", 8, [["value", 0, "Q", ""]]]
    for frame in tape.preamble():
        recorder.frame(*frame)
    tape.begin(lambda: recorder, dict)
    return obj, TapedObject(obj, tape), tape, recorder, layouts


def replayed(recorder, layouts):
    playback = Playback(Recording({}, layouts, recorder.frames))
    return playback, ReplayedObject(playback, "drop")


def test_taped_channel_is_one_to_those_who_wait_for_it(taped):
    obj, recording, *_ = taped
    channel = recording.channel()
    for name in ("fd", "capacity", "unread_bytes", "stride", "fields"):
        assert getattr(channel, name) == getattr(obj.reader, name), name


def test_reads_of_a_step_come_back(taped):
    obj, recording, tape, recorder, layouts = taped
    counts = recording.map("counts")
    counts.update(1, 10)
    counts.update(2, 20)
    list(counts.items())  # outside of a step: not recorded
    tape.step("sweep", 1000, {"why": "time"})
    live = [list(counts.items()), counts.lookup(2), counts.lookup(3), counts.delete(2)]
    live += [counts.delete(2), counts.lookup(2), recording.programs()]
    tape.fact("symbol", 8, None)
    tape.end_step()
    obj.reader.waiting = [struct.pack("<8xQ8xQ", 5, 6), struct.pack("<8xQ", 7)]
    tape.step("take", 2000, {})
    live.append(list(recording.channel().read()))
    tape.end_step()

    playback, again = replayed(recorder, layouts)
    assert playback.fact("symbol", 7) == ["f", 1, None]
    steps = playback.steps()
    step = next(steps)
    assert (step.name, step.now_ns, step.info) == ("sweep", 1000, {"why": "time"})
    again.feed(step)
    counts = again.map("counts")
    shown = [list(counts.items()), counts.lookup(2), counts.lookup(3), counts.delete(2)]
    shown += [counts.delete(2), counts.lookup(2), again.programs()]
    again.feed(next(steps))
    shown.append(list(again.channel().read()))
    assert shown == live
    assert live[0] == [(1, 10), (2, 20)] and live[-1] == [(5,), (6,), (7,)]
    assert list(steps) == []
    assert again.report == obj.report
    assert again.types.enum("nt_drop_mode") == obj.types.enum("nt_drop_mode")
    fields = obj.types.struct("nt_drop_cfg").fields
    assert again.types.struct("nt_drop_cfg").fields == fields


def test_asking_for_less_finds_the_later_answers(taped):
    _, recording, tape, recorder, layouts = taped
    counts = recording.map("counts")
    counts.update(1, 10)
    tape.step("sweep", 1, {})
    assert (counts.lookup(1), counts.lookup(9)) == (10, None)
    counts.update(1, 11)
    assert counts.lookup(1) == 11
    tape.end_step()
    playback, again = replayed(recorder, layouts)
    again.feed(next(playback.steps()))
    assert again.map("counts").lookup(9) is None
    assert [again.map("counts").lookup(1) for _ in range(3)] == [10, 11, None]


def test_map_nobody_recorded(taped):
    *_, recorder, layouts = taped
    recorder.frame(module.STEP, 1, b'{"step":"take","info":{}}')
    _, again = replayed(recorder, layouts)
    with pytest.raises(NtoolsError, match="has no map 'other'"):
        again.map("other")


def test_cut_in_the_first_step(taped):
    *_, recorder, layouts = taped
    with pytest.raises(NtoolsError, match="nothing of the recording"):
        replayed(recorder, layouts)


def test_series_begins_with_everything_known(taped):
    _, recording, tape, recorder, _ = taped
    counts = recording.map("counts")
    counts.update(1, 10)
    tape.step("report", 5, {"index": 0})
    list(counts.items())
    tape.end_step()
    kinds = [(kind, body) for kind, _, body in tape.preamble()]
    assert [kind for kind, _ in kinds] == [module.FACT, module.FACT, module.STEP, module.MAP]
    assert json.loads(kinds[1][1])[0] == "state"
    assert json.loads(kinds[2][1])["step"] == "baseline"


@pytest.mark.parametrize("call", ["frame", "tick", "close"])
def test_run_goes_on_without_a_recorder_that_failed(call):
    """A full disk must not take the measurement with it; said once."""
    said = []

    class Full(Recorder):
        closed = 0

        def close(self):
            self.closed += 1

    recorder = Full()
    tape = Tape(said.append)
    tape.begin(lambda: recorder, dict)
    tape.step("take", 1, {})
    tape.end_step()
    healthy = getattr(recorder, call)

    def refuse(*args):
        setattr(recorder, call, healthy)
        raise RecordingProblem("cannot record to 'x': the disk is full.")

    setattr(recorder, call, refuse)
    before = len(recorder.frames)
    for now in (2, 3):
        tape.step("take", now, {})
        tape.frame(module.EVENTS, b"x")
        tape.end_step()
    tape.close()
    assert said == ["cannot record to 'x': the disk is full. The run goes on."]
    assert tape.failed and recorder.closed == 1
    assert len(recorder.frames) - before == {"frame": 0, "tick": 2, "close": 4}[call]


#: Errors the replay of a command turns into one line.
DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
          struct.error, NtoolsError)  # fmt: skip


def use(recorder, layouts):
    """Everything an engine does with a recording; how many values came out."""
    playback, again = replayed(recorder, layouts)
    count = 0
    for step in playback.steps():
        again.feed(step)
        counts = again.map("counts")
        count += len(list(counts.items()))
        counts.lookup(1)
        counts.delete(1)
        count += len(list(again.channel().read()))
    return count


def test_made_up_frames_and_layouts(taped):
    """Random changes: an answer or one of the errors, and soon."""
    obj, recording, tape, recorder, layouts = taped
    counts = recording.map("counts")
    counts.update(1, 10)
    obj.reader.waiting = [struct.pack("<8xQ", 7)]
    tape.step("take", 1, {})
    list(counts.items())
    list(recording.channel().read())
    tape.end_step()
    assert use(recorder, layouts) == 2
    chosen = random.Random(3)
    frames = list(recorder.frames)
    for _ in range(3000):
        recorder.frames = list(frames)
        at = chosen.randrange(len(frames))
        body = bytearray(frames[at].body)
        for _ in range(chosen.randint(1, 4)):
            place = chosen.randrange(len(body))
            body[place : place + chosen.randint(0, 3)] = chosen.randbytes(chosen.randint(0, 3))
            body = body or bytearray(b"x")
        recorder.frames[at] = frames[at]._replace(body=bytes(body), kind=chosen.randint(0, 7))
        try:
            assert use(recorder, layouts) <= 4
        except DAMAGE:
            pass
    recorder.frames = frames
    text = json.dumps(layouts)
    for _ in range(1000):
        changed = list(text)
        for _ in range(chosen.randint(1, 3)):
            changed[chosen.randrange(len(changed))] = chosen.choice('0123456789"[]{},:-sQ')
        try:
            made_up = json.loads("".join(changed))
        except ValueError:
            continue
        try:
            use(recorder, made_up)
        except DAMAGE:
            pass
    for size in (-1, 1 << 40, 10**30, "9", None, 1.5):
        broken = dict(layouts, maps={"counts": [["", size, [["v", 0, "Q", ""]]], layouts["maps"]["counts"][1], 8, 0]})  # fmt: skip # noqa: E501
        with pytest.raises(DAMAGE):
            use(recorder, broken)
    for form in ("9999999999s", "Qs", "", "x", "0s1s", "p"):
        broken = dict(layouts, maps={"counts": [["", 8, [["v", 0, form, ""]]], layouts["maps"]["counts"][1], 8, 0]})  # fmt: skip # noqa: E501
        with pytest.raises(DAMAGE):
            use(recorder, broken)
