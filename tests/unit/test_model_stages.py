# SPDX-License-Identifier: GPL-2.0-only
import pytest

from ntools.model import stages
from ntools.model.stages import PATHS, STAGES, expected_next, position

ALL = frozenset(STAGES)
TRACEPOINTS = frozenset(("dev.rx", "dev.queue", "qd.in", "qd.out", "dev.xmit", "vm.copied"))


def test_every_step_of_a_path_is_a_stage():
    for path, steps in PATHS.items():
        assert steps
        for step in steps:
            assert step.stage in STAGES, path


def test_meanings_are_one_line():
    for stage in STAGES:
        assert 0 < len(stages.meaning(stage)) < 80
    with pytest.raises(KeyError):
        stages.meaning("dev.nowhere")


@pytest.mark.parametrize(
    "symbol, name",
    [
        ("NT_STAGE_DEV_RX", "dev.rx"),
        ("NT_STAGE_OVS_CT_DONE", "ovs.ct_done"),
        ("ovs_int_tx", "ovs.int_tx"),
        ("l3_local_out", "l3.local_out"),
    ],
)
def test_names_of_symbols(symbol, name):
    assert stages.from_symbol(symbol) == name


def test_every_stage_can_be_written_as_a_symbol():
    for stage in STAGES:
        assert stages.from_symbol("NT_STAGE_" + stage.replace(".", "_").upper()) == stage


@pytest.mark.parametrize(
    "path, stage, attached, through, following",
    [
        # Tracepoints only: bridge, Open vSwitch and qdisc stages are not seen or not sure.
        ("vm.tx", "dev.rx", TRACEPOINTS, (), "dev.queue"),
        ("vm.tx", "dev.queue", TRACEPOINTS, (), "dev.xmit"),
        ("vm.tx", "dev.xmit", TRACEPOINTS, (), "vm.copied"),
        ("vm.tx", "vm.copied", TRACEPOINTS, (), None),
        ("vm.rx", "dev.xmit", TRACEPOINTS, (), None),
        # What is known of the way decides in front of a switch.
        ("vm.rx", "dev.rx", ALL, (), "dev.queue"),
        ("vm.rx", "dev.rx", ALL, ("ovs",), "ovs.hook"),
        ("vm.rx", "dev.rx", ALL, ("bridge",), "br.hook"),
        ("vm.rx", "dev.queue", ALL, ("queued",), "qd.in"),
        # Inside a switch the stage itself tells.
        ("vm.rx", "ovs.in", ALL, (), "ovs.key"),
        ("vm.rx", "ovs.lookup", ALL, (), "ovs.exec"),
        ("vm.rx", "ovs.miss", ALL, (), "ovs.upq"),
        ("vm.rx", "ovs.back", ALL, (), "ovs.exec"),
        ("vm.rx", "ovs.ct", ALL, (), "ovs.ct_done"),
        ("vm.rx", "ovs.ct_done", ALL, (), "ovs.out"),
        ("vm.rx", "ovs.send", ALL, (), "dev.queue"),
        ("vm.rx", "br.hook", ALL, (), "br.fwd"),
        ("vm.tx", "vm.xmit", ALL, ("vhost",), "vm.take"),
        ("vm.tx", "vm.xmit", ALL, (), "vm.copied"),
        ("sys.rx", "l3.in", ALL, (), "l3.deliver"),
        ("sys.rx", "l4.in", ALL, (), None),
        ("sys.rx", "l4.in", ALL, ("stack",), "sk.queue"),
        ("sys.tx", "l3.neigh", ALL, (), "dev.queue"),
        # To the host itself.
        ("vm.rx", "ovs.send", ALL, ("internal",), "ovs.int_rx"),
        ("vm.rx", "br.up", ALL, (), "dev.rx"),
        ("vm.rx", "dev.bklg", ALL, (), "dev.rx"),
        ("vm.tx", "ovs.int_tx", ALL, ("ovs",), "ovs.in"),
        # Not attached, or no part of the path.
        ("vm.rx", "dev.rx", frozenset(("dev.rx", "dev.xmit")), ("ovs",), "dev.xmit"),
        ("vm.rx", "sk.read", ALL, (), None),
    ],
)
def test_expected_next(path, stage, attached, through, following):
    assert expected_next(path, stage, attached, through) == following


def test_a_stage_passed_twice_is_told_by_its_device():
    through = ("ovs", "internal")
    assert expected_next("sys.rx", "ovs.int_rx", ALL, through) == "dev.bklg"
    assert expected_next("sys.rx", "dev.rx", ALL, through, device="phy") == "ovs.hook"
    assert expected_next("sys.rx", "dev.rx", ALL, ("internal",), device="int") == "l3.in"
    assert position("sys.rx", "dev.rx", "phy") < position("sys.rx", "dev.rx", "int")


def test_order_of_a_pair_table():
    names = ["total", "what.else", "vm.copied", "dev.xmit", "ovs.exec", "ovs.in", "dev.rx"]
    ordered = sorted(names, key=lambda name: position("vm.tx", name))
    assert ordered == [
        "dev.rx",
        "ovs.in",
        "ovs.exec",
        "dev.xmit",
        "vm.copied",
        "what.else",
        "total",
    ]


def test_directions():
    assert stages.direction_of("from-vm") == "rx"
    assert stages.direction_of("to-vm") == "tx"
    with pytest.raises(ValueError, match="'up'"):
        stages.direction_of("up")
