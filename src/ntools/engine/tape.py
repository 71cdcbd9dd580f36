# SPDX-License-Identifier: GPL-2.0-only
"""What a run saw, put on tape at the edge between kernel and engine, and given back at replay.

A run is a series of *steps* (take the events, sweep, report...), and what an engine makes of a step
depends on three things alone: the time of the step, what its reads of channel and maps returned,
and what it was told of the host. All three go into frames of a recording; the engine that replays
them cannot tell them from a kernel, so live and replayed records come from the same code.

======  ====================================================================================
kind    body
======  ====================================================================================
STEP    JSON: name and arguments of a step; the frames behind it are what it saw
EVENTS  records of the channel, each with 8 bytes before it and padded to 8
MAP     a whole map: name, sizes, rows
ENTRY   one lookup: name, key, value if there was one
GONE    one deletion: name, key, whether the key was there
FACT    JSON: what the host said, by subject and key
DECISION  one byte: whether a record made in user space was within the budget
======  ====================================================================================
"""

import json
import re
import struct
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from ntools._loader import BpfObject, MapView, PointReport, Refusal
from ntools._loader.btf import Field, StructType
from ntools._loader.channel import Channel
from ntools.errors import RecordingProblem

__all__ = ["Playback", "ReplayedObject", "Step", "Tape", "TapedObject", "layouts"]

STEP, EVENTS, MAP, ENTRY, GONE, FACT, DECISION = 1, 2, 3, 4, 5, 6, 7

#: Key bytes, value bytes, rows of a map.
_SHAPE = struct.Struct("<III")
_KEY = struct.Struct("<H")
_FRAME_BYTES = 128 << 10
#: More than any run makes; a damaged or made-up recording must not fill the memory.
_MAX_STEP_BYTES = 1 << 29
#: Names that later files of a series know from the start; further ones they may lack.
_MAX_FACTS = 65536
_MAX_STRUCT_BYTES = 1 << 20
_MAX_FIELDS = 4096
_FORMATS = re.compile(r"[bBhHiIqQ]|[0-9]{1,7}s")


class Tape:
    """Collects frames; a recorder takes them as soon as there is one.

    Reads outside of steps are not recorded: what a live run does while it waits is no part of what
    it makes of what it saw. When the recorder fails, the run goes on without it.

    :param warn: is told once, when that happens.
    :ivar failed: whether it has.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._recorder: Any = None
        self._warn = warn
        self.failed = False
        self._facts: Dict[bytes, bytes] = {}
        self._now_ns = 0
        self._is_open = False
        self._is_report = False
        self._report: List[Tuple[int, bytes]] = []
        self._state: Callable[[], Any] = dict

    def begin(self, recorder: Callable[[], Any], state: Callable[[], Any]) -> None:
        """Record from now on; what was told before is in :meth:`preamble`.

        :param recorder: makes what keeps the frames; it asks for the preamble at once.
        :param state: what the engine has counted itself, for :meth:`Engine.restore`.
        """
        self._state = state
        self._recorder = recorder()

    @property
    def is_open(self) -> bool:
        """Whether a step is going on."""
        return self._is_open

    def preamble(self) -> Iterator[Tuple[int, int, bytes]]:
        """Frames every file of a series begins with: all that is known between two steps.

        What the host said, what the engine has counted, and the last report: differences are
        taken from there.
        """
        for body in self._facts.values():
            yield FACT, self._now_ns, body
        yield FACT, self._now_ns, _json(["state", 0, self._state()])
        if self._report:
            yield STEP, self._now_ns, _json({"step": "baseline", "info": {}})
            for kind, body in self._report:
                yield kind, self._now_ns, body

    def step(self, name: str, now_ns: int, info: Mapping[str, Any]) -> None:
        """A step begins; it lasts until :meth:`end_step`."""
        self._now_ns = now_ns
        self._is_open = True
        self._is_report = name == "report"
        if self._is_report:
            self._report = []
        self._put(STEP, _json({"step": name, "info": info}))

    def end_step(self) -> None:
        """The step is over; only here may another file begin."""
        self._is_open = False
        if self._recorder is not None:
            try:
                self._recorder.tick(self._now_ns)
            except RecordingProblem as problem:
                self._fail(problem)

    def fact(self, subject: str, key: Any, value: Any) -> None:
        """What the host said."""
        body = _json([subject, key, value])
        name = _json([subject, key])
        if name in self._facts or len(self._facts) < _MAX_FACTS:
            self._facts[name] = body
        self._put(FACT, body)

    def frame(self, kind: int, body: bytes) -> None:
        """Add a frame to the step."""
        if self._is_report:
            self._report.append((kind, body))
        self._put(kind, body)

    def decision(self, number: int) -> None:
        """A decision of the budget."""
        self.frame(DECISION, bytes([number]))

    def close(self) -> None:
        """Write the end of the recording."""
        if self._recorder is not None:
            try:
                self._recorder.close()
            except RecordingProblem as problem:
                self._fail(problem)

    def _put(self, kind: int, body: bytes) -> None:
        if self._recorder is not None:
            try:
                self._recorder.frame(kind, self._now_ns, body)
            except RecordingProblem as problem:
                self._fail(problem)

    def _fail(self, problem: RecordingProblem) -> None:
        recorder, self._recorder = self._recorder, None
        self.failed = True
        self._warn("{} The run goes on.".format(problem))
        recorder.close()  # only the file: a recorder that has failed writes nothing more


class TapedObject:
    """A BPF object whose reads during steps go on tape; everything else is the object's own."""

    def __init__(self, obj: BpfObject, tape: Tape) -> None:
        self._obj = obj
        self._tape = tape
        self._views: Dict[str, MapView] = {}
        self._channel: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._obj, name)

    def __enter__(self) -> "TapedObject":
        return self

    def __exit__(self, *_: Any) -> None:
        self._obj.close()

    def map(self, name: str) -> MapView:
        """A loaded map."""
        if name not in self._views:
            view = self._obj.map(name)
            store = _TapedMap(name, view.store, self._tape)
            self._views[name] = MapView(name, store, view.entries, view.key, view.value, view.cpus)
        return self._views[name]

    def channel(self, name: str = "events") -> Any:
        """Reader of a channel."""
        if self._channel is None:
            self._channel = _TapedChannel(self._obj.channel(name), self._tape)
        return self._channel

    def programs(self) -> List[Tuple[str, int, int, int]]:
        """See :meth:`BpfObject.programs`."""
        rows = self._obj.programs()
        if self._tape.is_open:
            self._tape.fact("programs", 0, rows)
        return rows


class _TapedMap:
    """The bytes of a map, noted as they are read."""

    def __init__(self, name: str, store: Any, tape: Tape) -> None:
        self._name = _name(name)
        self._store = store
        self._tape = tape

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def items(self) -> Iterator[Tuple[bytes, bytes]]:
        if not self._tape.is_open:
            yield from self._store.items()
            return
        rows = list(self._store.items())
        self._tape.frame(MAP, self._name + _rows(rows))
        yield from rows

    def lookup(self, key: bytes) -> Optional[bytes]:
        value: Optional[bytes] = self._store.lookup(key)
        if self._tape.is_open:
            answer = b"\0" if value is None else b"\1" + value
            self._tape.frame(ENTRY, self._name + _key(key) + answer)
        return value

    def delete(self, key: bytes) -> bool:
        was_there = bool(self._store.delete(key))
        if self._tape.is_open:
            self._tape.frame(GONE, self._name + _key(key) + bytes([was_there]))
        return was_there


class _TapedChannel(Channel):
    """A channel, noted as it is drained."""

    def __init__(self, channel: Any, tape: Tape) -> None:
        super().__init__(channel.record)
        self._real = channel
        self._tape = tape
        self.fd = channel.fd
        self.capacity = int(channel.capacity)

    @property
    def lost(self) -> int:  # type: ignore[override]
        """Losses the kernel reported."""
        if self._tape.is_open:
            self._tape.fact("channel_lost", 0, self._real.lost)
        return int(self._real.lost)

    @property
    def unread_bytes(self) -> int:
        """Bytes that wait."""
        return int(self._real.unread_bytes)

    def batches(self) -> Iterator[Any]:
        """See :meth:`Channel.batches`."""
        rows = max(1, _FRAME_BYTES // self.stride) * self.stride
        for batch in self._real.batches():
            for start in range(0, len(batch), rows):
                self._tape.frame(EVENTS, bytes(batch[start : start + rows]))
            yield batch


# -- replay ------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One step of a recorded run, with what it saw.

    :ivar now_ns: monotonic time of the recording host.
    """

    name: str
    now_ns: int
    info: Dict[str, Any]
    frames: List[Any]


class Playback:
    """The steps of a recording, and what the host had said.

    :param recording: has ``header``, ``layouts``, ``frames()`` and ``cut``.
    """

    def __init__(self, recording: Any) -> None:
        self.header: Dict[str, Any] = recording.header
        self.layouts: Dict[str, Any] = recording.layouts
        self._recording = recording
        self._facts: Dict[bytes, Any] = {}
        self._frames = recording.frames()
        self._ahead: Any = None
        self._read_facts()
        if self._ahead is None:
            raise RecordingProblem(
                "nothing of the recording can be shown: {}.".format(
                    self.cut or "it ends before the run began"
                )
            )

    @property
    def cut(self) -> Optional[str]:
        """Why the recording has no proper end; known when all steps have been read."""
        note: Optional[str] = self._recording.cut
        return note

    def fact(self, subject: str, key: Any = 0) -> Any:
        """What the host said when it was asked, None if it never was."""
        return self._facts.get(_json([subject, key]))

    def steps(self) -> Iterator[Step]:
        """All steps in order. Facts of a step are known as soon as it is given out."""
        while self._ahead is not None:
            first = self._ahead
            self._ahead = None
            found = _loads(first.body)
            frames = []
            room = _MAX_STEP_BYTES
            for frame in self._frames:
                if frame.kind == STEP:
                    self._ahead = frame
                    break
                if frame.kind == FACT:
                    self._keep(frame)
                    continue
                frames.append(frame)
                room -= len(frame.body)
                if room < 0:
                    raise RecordingProblem("a step of the recording is too large to be one.")
            if self._ahead is None and self.cut is not None:
                return  # the last step may lack what it saw
            yield Step(str(found["step"]), first.ts_ns, dict(found["info"]), frames)

    def _read_facts(self) -> None:
        for frame in self._frames:
            if frame.kind == STEP:
                self._ahead = frame
                return
            if frame.kind == FACT:
                self._keep(frame)

    def _keep(self, frame: Any) -> None:
        subject, key, value = _loads(frame.body)
        self._facts[_json([subject, key])] = value


class ReplayedObject:
    """Stands where the BPF object stood: answers every read of a step as the kernel did.

    :ivar report: what had become of the points.
    """

    def __init__(self, playback: Playback, name: str) -> None:
        found = playback.layouts
        if found.get("object") != name:
            raise RecordingProblem(
                "the recording is one of the object '{}', not '{}'.".format(
                    found.get("object"), name
                )
            )
        self._playback = playback
        self._frames: List[Any] = []
        self._views: Dict[str, MapView] = {}
        self._maps = found["maps"]
        self.name = found["object"]
        self.build_id = found["build"]
        self.types = _Types(found)
        self.manifest: Dict[str, Tuple[str, str]] = {
            name: (str(kind), str(what)) for name, (kind, what) in found["manifest"].items()
        }
        self.report = [
            PointReport(point, attach, target, [Refusal(*row) for row in failed])
            for point, attach, target, failed in found["report"]
        ]
        self._channel: Any = None

    def __enter__(self) -> "ReplayedObject":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def ignore(self, *_: Any, **__: Any) -> None:
        """What concerns only a kernel has been done when the recording was made."""

    want = need = resize = configure = close = ignore

    def feed(self, step: Step) -> None:
        """Let the reads that follow be those of a step."""
        self._frames = list(step.frames)

    def map(self, name: str) -> MapView:
        """A map as recorded."""
        if name not in self._views:
            try:
                key, value, entries, cpus = self._maps[name]
            except KeyError:
                raise RecordingProblem(
                    "the recording has no map '{}': this version of ntools wants more than the "
                    "one that recorded. Replay with that version.".format(name)
                ) from None
            store = _RecordedMap(name, self)
            self._views[name] = MapView(
                name, store, int(entries), _struct(key), _struct(value), int(cpus)
            )
        return self._views[name]

    def channel(self, name: str = "events") -> Any:
        """The channel as recorded."""
        if self._channel is None:
            self._channel = _RecordedChannel(self.types.struct(self.manifest[name][1]), self)
        return self._channel

    def programs(self) -> List[Tuple[str, int, int, int]]:
        """See :meth:`BpfObject.programs`."""
        rows = self.told("programs") or []
        return [(str(point), int(ns), int(runs), int(missed)) for point, ns, runs, missed in rows]

    def decision(self) -> int:
        """The next decision of the budget; a record nobody decided about is shown."""
        body = self.take(DECISION, b"")
        return body[0] if body else 0

    def told(self, subject: str) -> Any:
        """What the run was told of a subject that has no key."""
        return self._playback.fact(subject)

    def take(self, kind: int, start: bytes) -> Optional[bytes]:
        """Body of the next frame of a kind that begins so, None when the step has none.

        A replay that was narrowed asks for less than the run did: what it passes over is dropped.
        """
        for index, frame in enumerate(self._frames):
            if frame.kind == kind and frame.body.startswith(start):
                del self._frames[index]
                return bytes(frame.body[len(start) :])
        return None


class _RecordedMap:
    """The bytes of a map as they were read."""

    reads_in_batches = False

    def __init__(self, name: str, source: ReplayedObject) -> None:
        self._name = _name(name)
        self._source = source

    def items(self) -> Iterator[Tuple[bytes, bytes]]:
        body = self._source.take(MAP, self._name)
        return iter(()) if body is None else _unrows(body)

    def lookup(self, key: bytes) -> Optional[bytes]:
        answer = self._source.take(ENTRY, self._name + _key(key))
        return answer[1:] if answer and answer[0] else None

    def update(self, key: bytes, value: bytes) -> None:
        """Nothing to change."""

    def delete(self, key: bytes) -> bool:
        return self._source.take(GONE, self._name + _key(key)) == b"\1"


class _RecordedChannel(Channel):
    """The records a step took."""

    fd = -1
    unread_bytes = 0

    def __init__(self, record: StructType, source: ReplayedObject) -> None:
        super().__init__(record)
        self._source = source

    @property
    def lost(self) -> int:  # type: ignore[override]
        """Losses the kernel had reported."""
        return int(self._source.told("channel_lost") or 0)

    def batches(self) -> Iterator[Any]:
        """See :meth:`Channel.batches`."""
        while True:
            batch = self._source.take(EVENTS, b"")
            if batch is None:
                return
            if len(batch) % self.stride:
                raise RecordingProblem("the events of the recording do not fit its layouts.")
            yield batch


class _Types:
    """The layouts of a recording, in place of the type information of an object."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._structs = found["structs"]
        self._enums = found["enums"]
        self._made: Dict[str, StructType] = {}

    def struct(self, name: str) -> StructType:
        """Layout of ``struct name``."""
        if name not in self._made:
            self._made[name] = _struct(self._structs[name])
        return self._made[name]

    def enum(self, name: str) -> Dict[str, int]:
        """Enumerator name -> value."""
        return {str(label): int(value) for label, value in self._enums[name].items()}


def layouts(obj: BpfObject) -> Dict[str, Any]:
    """Everything needed to decode what an object left in its channel and maps."""
    structs, enums = obj.types.named("nt_")
    return {
        "object": obj.name,
        "build": obj.build_id,
        "structs": {struct_type.name: _fields(struct_type) for struct_type in structs},
        "enums": enums,
        "manifest": obj.manifest,
        "maps": {
            view.name: [_fields(view.key), _fields(view.value), view.entries, view.cpus]
            for view in obj.maps()
        },
        "report": [list(row) for row in obj.report],
    }


def _fields(kind: StructType) -> List[Any]:
    return [kind.name, kind.size, [list(field) for field in kind.fields]]


def _struct(found: Any) -> StructType:
    """A layout from a recording, which may be made up."""
    name, size, rows = found
    fields = [Field(str(label), int(at), str(form), str(each)) for label, at, form, each in rows]
    end = 0
    for field in fields:
        if field.offset < end or not _FORMATS.fullmatch(field.format):
            raise ValueError("layout of '{}'".format(name))
        end = field.offset + struct.calcsize("<" + field.format)
    if not end <= int(size) <= _MAX_STRUCT_BYTES or len(fields) > _MAX_FIELDS:
        raise ValueError("layout of '{}'".format(name))
    return StructType(str(name), int(size), fields)


def _name(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def _key(key: bytes) -> bytes:
    return _KEY.pack(len(key)) + key


def _rows(rows: List[Tuple[bytes, bytes]]) -> bytes:
    key_bytes, value_bytes = (len(rows[0][0]), len(rows[0][1])) if rows else (0, 0)
    return _SHAPE.pack(key_bytes, value_bytes, len(rows)) + b"".join(
        [part for row in rows for part in row]
    )


def _unrows(body: bytes) -> Iterator[Tuple[bytes, bytes]]:
    key_bytes, value_bytes, count = _SHAPE.unpack_from(body)
    width = key_bytes + value_bytes
    if len(body) != _SHAPE.size + width * count or (count and not width):
        raise RecordingProblem("a map of the recording does not fit its own sizes.")
    for at in range(_SHAPE.size, len(body), width or 1):
        yield body[at : at + key_bytes], body[at + key_bytes : at + width]


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _loads(body: bytes) -> Any:
    return json.loads(body.decode())
