# SPDX-License-Identifier: GPL-2.0-only
"""Recordings of hostile names, and recordings with anything in them: shown safely, or refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.caps import capabilities
from lab.drops import watch
from lab.hostile import COMMS, DEVICES, flaws, shown
from lab.latency import follow
from lab.netns import Namespace
from lab.topo import bridge_topo
from lab.traffic import udp
from unit.hostile import ANY, few, hang_guard

from ntools.output.recording import Recorder, Recording
from ntools.tools import drop, vm_latency

NAME, COMM = DEVICES[0], COMMS[1]


def replay(main, path, *args):
    """Status and both outputs; the outputs are safe whatever the file holds."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), hang_guard():
        status = main(["--replay", str(path), *args])
    for text in (out.getvalue(), err.getvalue()):
        assert flaws(text.replace("\n", "")) == [], text
    assert "internal error" not in err.getvalue(), err.getvalue()
    assert status in (0, 1, 2, 4)
    if "json" in args:
        for line in out.getvalue().splitlines():
            assert line.isascii() and isinstance(json.loads(line), dict)
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """(command, recording, live output) of short runs over hostile names."""
    home = tmp_path_factory.mktemp("recordings")
    found = []
    with Namespace("h") as host, Namespace("e") as peer:
        peer.ip(f"link add w0 type veth peer name v0 netns {host.name}")
        host.run(["ip", "link", "set", "v0", "name", os.fsdecode(NAME)])
        for ns, device, end in ((peer, "w0", 2), (host, os.fsdecode(NAME), 1)):
            ns.run(["ip", "addr", "add", f"10.8.0.{end}/24", "dev", device])
            ns.run(["ip", "link", "set", device, "up"])
        assert any(udp(peer, "10.8.0.1", 7776, 1, wait_s=1).refused for _ in range(30))
        for name, args in (("events", ()), ("table", ("--group-by", "all"))):
            path = home / name
            with watch(host, "--dst-port", "7777", "--record", str(path), *args) as tool:
                udp(peer, "10.8.0.1", 7777, 5, wait_s=1)
                script = (
                    "import ctypes, socket; ctypes.CDLL(None).prctl(15, bytes.fromhex('%s'), 0, 0,"
                    " 0); socket.socket(2, 2).sendto(b'x', ('127.0.0.1', 7777))" % COMM.hex()
                )
                host.run([sys.executable, "-c", script])
                result = tool.stop()
                assert result.status == 0, result.tail()
                found.append((drop.main, path, result.stdout))
    if {"tun", "bridge"} <= capabilities():
        with bridge_topo(static_neigh=True) as topo:
            path = home / "flights"
            with follow(topo, "--details", "--force", "--record", str(path)) as tool:
                topo.ping(3)
                found.append((vm_latency.main, path, tool.stop().stdout))
    return found


def test_replay_shows_what_the_run_showed(recordings):
    for main, path, live in recordings:
        status, text, problem = replay(main, path, "--format", "json")
        assert status == 0, problem
        kinds = ("drop", "drop_group", "packet", "hist")
        records = [
            [rec for rec in map(json.loads, lines.splitlines()) if rec["type"] in kinds]
            for lines in (live, text)
        ]
        assert records[0] == records[1] and records[0]
        replay(main, path, "-v", "--explain")
    drops = replay(*recordings[0][:2], "-v")[1]
    assert shown(NAME) in drops and "a\\x0aready" in drops


LEAF = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), ANY, st.just([]),
                 st.just({}), st.just([1, "\x1b"]))  # fmt: skip


def changed(value, draw):
    """The value with one leaf or branch of it replaced."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: changed(value[name], draw)}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], changed(value[at], draw), *value[at + 1 :]]
    return draw(LEAF)


@few(150)
@given(data=st.data())
def test_recordings_made_by_others(recordings, tmp_path_factory, data):
    """Frames, header and layouts with anything in them, in a container that is whole."""
    main, source, _ = data.draw(st.sampled_from(recordings))
    path = tmp_path_factory.mktemp("made") / "up"
    with Recording(source) as original:
        frames, header, layouts = list(original.frames()), original.header, original.layouts
    what = data.draw(st.sampled_from(["frames", "header", "layouts", "order"]))
    if what == "header":
        header = {**header, **{name: changed(header[name], data.draw) for name in data.draw(
            st.sets(st.sampled_from(sorted(header)), max_size=2))}}  # fmt: skip
    elif what == "layouts":
        name = data.draw(st.sampled_from(sorted(layouts)))
        layouts = {**layouts, name: changed(layouts[name], data.draw)}
    elif what == "order":
        frames = data.draw(st.lists(st.sampled_from(frames), max_size=30))
    with Recorder(path, header, layouts) as recorder:
        for frame in frames:
            body = bytearray(frame.body)
            if what == "frames" and data.draw(st.integers(0, 9)) == 0:
                for _ in range(data.draw(st.integers(0, 6))):
                    if body:
                        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(
                            st.integers(0, 255)
                        )
            recorder.frame(frame.kind, frame.ts_ns, bytes(body), frame.cpu)
    replay(main, path, "--format", data.draw(st.sampled_from(["json", "text"])))


@few(60)
@given(data=st.data())
def test_damaged_recordings(recordings, tmp_path_factory, data):
    main, source, _ = data.draw(st.sampled_from(recordings))
    content = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "file"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    replay(main, path, "--format", "json")
