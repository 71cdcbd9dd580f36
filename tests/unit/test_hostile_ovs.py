# SPDX-License-Identifier: GPL-2.0-only
"""Daemons of Open vSwitch that answer anything, slowly, deeply, or never."""

from __future__ import annotations

import json
import socket
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.hostile import ANY, few, hang_guard

from ntools.host import ovs

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), ANY,
              st.sampled_from(["uuid", "set", "map", "system", "u1", "patch", "hw-offload"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(ANY, inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip
UUIDS = st.one_of(JSON, st.just(["uuid", "u1"]), st.just(["set", [["uuid", "u1"]]]))
ROW = st.one_of(JSON, st.fixed_dictionaries({}, optional={
    "_uuid": UUIDS, "interfaces": UUIDS, "ports": UUIDS, "name": st.one_of(ANY, JSON),
    "type": st.one_of(st.just("patch"), JSON), "datapath_type": JSON, "ofport": JSON,
    "options": st.one_of(JSON, st.just(["map", [["peer", "x"]]])),
    "other_config": st.one_of(JSON, st.just(["map", [["hw-offload", 1]]])),
}))  # fmt: skip
TABLES = st.fixed_dictionaries(
    {name: st.one_of(st.lists(ROW, max_size=3), JSON) for name in ovs._COLUMNS}
)
GOOD_TABLES = {
    "Open_vSwitch": [{"other_config": ["map", []]}],
    "Bridge": [{"name": "b", "ports": ["uuid", "p"], "datapath_type": ""}],
    "Port": [{"_uuid": ["uuid", "p"], "interfaces": ["uuid", "i"]}],
    "Interface": [
        {"_uuid": ["uuid", "i"], "name": "v", "type": "", "ofport": 3, "options": ["map", []]}
    ],
}


@given(tables=TABLES)
@example(tables={**GOOD_TABLES, "Bridge": [{**GOOD_TABLES["Bridge"][0], "name": ["x"]}]})
@example(tables={**GOOD_TABLES, "Open_vSwitch": [{"other_config": ["map", [["hw-offload", 1]]]}]})
@example(tables={**GOOD_TABLES, "Port": [{"_uuid": [], "interfaces": []}]})
def test_any_rows(tables):
    try:
        layout = ovs.layout_from_rows(tables)
    except ValueError as error:
        assert type(error) is ValueError
        return
    for bridge in layout.bridges:
        layout.connected(bridge)
        assert isinstance(bridge.name, str)
        assert all(isinstance(port.name, str) for port in bridge.ports)
        assert all(layout.bridge_of(port.name) for port in bridge.ports)


class Peer(threading.Thread):
    """Listens on a socket like a daemon of OVS, and sends what it is told."""

    def __init__(self, path: str, parts, gap_s: float = 0.0, hold: bool = False) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        self.parts, self.gap_s, self.hold = parts, gap_s, hold
        self.over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join()

    def run(self):
        try:
            while not self.over.is_set():
                channel, _ = self.listener.accept()
                with channel:
                    channel.recv(65536)  # a daemon answers; nobody's question meets a closed end
                    for part in self.parts:
                        channel.sendall(part)
                        if self.over.wait(self.gap_s):
                            break
                    if self.hold:
                        self.over.wait(20)
        except OSError:
            pass


def ask(tmp_path_factory, parts, **how):
    """What comes of a peer that sends these parts; None: refused as documented."""
    directory = tmp_path_factory.mktemp("ovs")
    path = str(directory / "ovs-vswitchd.1.ctl")
    layout = ovs.layout_from_rows(GOOD_TABLES, str(directory))
    with Peer(path, parts, **how), hang_guard():
        assert isinstance(ovs.fdb_macs(layout, "v", 0.1), list)
        try:
            return ovs._call(path, "list", [], 0.1)
        except (OSError, ValueError) as error:
            assert isinstance(error, OSError) or type(error) is ValueError, repr(error)
    return None


@given(answer=st.one_of(
    JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60),
    JSON.map(lambda value: json.dumps({"id": 1, "error": None, "result": value}).encode()),
))  # fmt: skip
@few(40)
def test_any_answer_of_ovs(tmp_path_factory, answer):
    ask(tmp_path_factory, [answer])


@pytest.mark.parametrize(
    "parts, how",
    [
        ([b'{"result":' + b"[" * 200000 + b"]" * 200000 + b"}"], {}),
        ([b'{"a":' * 5000 + b"1" + b"}" * 5000], {}),
        ([b"[" * 1000] * 200, {}),
        ([b'{"result": 1' + b"1" * 5000 + b"}"], {}),
        ([b'{"result": "\xff"}'], {}),
        ([b"[1]}"], {}),
        ([b'{"result": ['], {"hold": True}),
        ([b'{"a": "'] + [b"}"] * 600, {"gap_s": 0.05}),  # a little more, again and again
    ],
)
def test_peers_that_mean_no_good(tmp_path_factory, parts, how):
    assert ask(tmp_path_factory, parts, **how) is None


def test_addresses_from_ovs_are_addresses(tmp_path_factory):
    lines = [" port  VLAN  MAC                Age", "    3     0  52:54:00:00:00:01    1",
             "    3     0  \x1b[2J    1", "    3     0  52:54:00:00:00    1"]  # fmt: skip
    answer = json.dumps({"id": 1, "error": None, "result": "\n".join(lines)}).encode()
    directory = tmp_path_factory.mktemp("ovs")
    layout = ovs.layout_from_rows(GOOD_TABLES, str(directory))
    with Peer(str(directory / "ovs-vswitchd.1.ctl"), [answer]):
        assert ovs.fdb_macs(layout, "v", 30.0) == ["52:54:00:00:00:01"]
