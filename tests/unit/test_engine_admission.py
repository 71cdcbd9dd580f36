# SPDX-License-Identifier: GPL-2.0-only
"""Refusals before a run: figures, the lock, and what the admission test makes of its counts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ntools.engine.admission import (
    Admission,
    Memory,
    RunLock,
    busiest,
    check_memory,
    flow_options,
    is_one_flow,
)
from ntools.errors import SafetyRefusal
from ntools.model.filter import PacketFilter
from ntools.model.flow import Flow

GIB = 1 << 30
FLOW = Flow(4, 17, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)), 4001, 53, 0x800)
KEY = (FLOW.src.ljust(16, b"\0"), FLOW.dst.ljust(16, b"\0"), 4001, 53, 0x800, 4, 17)


def test_memory_is_read():
    text = "MemTotal:  2048000 kB\nMemFree: 1 kB\nMemAvailable:   1024000 kB\n"
    memory = Memory.from_text(text)
    assert memory == (2048000 << 10, 1024000 << 10) and memory.available_pct == 50.0
    assert Memory.from_text("MemTotal: 5 kB\n") is None
    assert Memory.now().available_pct > 0


@pytest.mark.parametrize(
    "memory, maps, text",
    [
        (Memory(1 * GIB, 60 << 20), 0, "60 MiB of 1 GiB"),
        (Memory(64 * GIB, 3 * GIB), 0, r"4\.7 %"),
        (Memory(1 * GIB, GIB), 52 << 20, "52 MiB of 1 GiB"),
    ],
)
def test_short_of_memory(memory, maps, text):
    with pytest.raises(SafetyRefusal, match=text):
        check_memory(memory, maps)


def test_enough_memory():
    check_memory(Memory(1 * GIB, 64 << 20), 51 << 20)
    check_memory(None, 1 << 40)


@pytest.mark.parametrize(
    "rules, enough",
    [
        ([], False),
        ([{"src_ip": "10.0.0.1"}], False),
        ([{"src_ip": "10.0.0.1", "bidir": True}], False),
        ([{"dst_port": "53", "protocol": "udp"}], False),
        ([{"src_ip": "10.0.0.1", "dst_ip": "10.0.0.2"}], True),
        ([{"src_ip": "10.0.0.1", "dst_port": "53"}], True),
        ([{"dst_ip": "10.0.0.1", "dst_port": "53"}, {"protocol": "udp"}], False),
    ],
)
def test_one_flow(rules, enough):
    assert is_one_flow(PacketFilter.from_fields({"rules": rules})) is enough


def test_lock_is_of_one_process(tmp_path):
    first, second = (RunLock("drop", [str(tmp_path / "d")]) for _ in range(2))
    assert first.take("ntools-drop")
    with pytest.raises(SafetyRefusal, match=r"process {} \(ntools-drop\)".format(os.getpid())):
        second.take("ntools-drop")
    assert RunLock("flight", [str(tmp_path / "d")]).take("other engine")
    first.release()
    assert second.take("ntools-drop")
    second.release()


def test_lock_does_not_outlive_its_process(tmp_path):
    code = (
        "import os, sys, signal\nfrom ntools.engine.admission import RunLock\n"
        "print(RunLock('drop', [sys.argv[1]]).take('x'), flush=True)\n"
        "lock = RunLock('flight', [sys.argv[1]])\nlock.take('y')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    directory = str(tmp_path / "d")
    done = subprocess.run([sys.executable, "-c", code, directory], stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (-9, b"True\n")
    assert (tmp_path / "d" / "flight.lock").read_text().startswith("process ")
    assert RunLock("flight", [directory]).take("z")


def test_lock_takes_only_safe_places(tmp_path):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "drop.lock").symlink_to(tmp_path / "victim")
    assert not RunLock("drop", [str(open_to_all), str(linked)]).take("x")
    assert not (tmp_path / "victim").exists()


def admission(events=100.0, pct=0.1, flows=((FLOW, 0.75),)):
    return Admission(5000.0, 120.0, 100.0, pct, events, flows)


def test_admitted():
    admission().judge(2000, 1.0, "")
    admission(events=None, pct=0.5).judge(2000, 1.0, "")
    admission(events=1e9, pct=99.0).judge(0, 0, "")


@pytest.mark.parametrize(
    "made, parts",
    [
        (admission(events=30000.0), ("30000 events/s", "2000/s (--max-events)")),
        (admission(pct=1.25), ("1.25 % of all CPUs", "5000 hook runs/s", "1 % (--max-overhead)")),
    ],
)
def test_refusal_names_figures_and_a_way_out(made, parts):
    with pytest.raises(SafetyRefusal) as refused:
        made.judge(2000, 1.0, "do something else")
    flow = "--protocol udp --src-ip 10.0.0.1 --dst-ip 10.0.0.2 --src-port 4001 --dst-port 53"
    for part in (*parts, flow + " (75 % of the matches)", "do something else", "--force"):
        assert part in str(refused.value)
    assert refused.value.exit_status == 5


def test_lines():
    assert len(admission(flows=()).lines()) == 1
    assert len(admission().lines()) == 2
    assert "not known" in admission()._replace(hooks_per_s=None).lines()[0]


def test_busiest_flows():
    other = (KEY[1], KEY[0], *KEY[2:])
    found = busiest([(other, 10), (KEY, 30)], 50)
    assert [round(share, 2) for _, share in found] == [0.6, 0.2]
    assert found[0][0] == FLOW
    assert busiest([], 0) == ()
    assert flow_options(Flow(0, 0, b"\0" * 4, b"\0" * 4, 0, 0, 0x88CC)) == "lldp"
