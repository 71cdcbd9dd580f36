# SPDX-License-Identifier: GPL-2.0-only
"""Names of network namespaces that cannot be."""

import os

import pytest

from ntools.errors import UsageProblem
from ntools.host import netns


def test_own_namespace():
    assert netns.current_netns() == netns.process_netns(os.getpid())
    with netns.open_netns(None) as inum:
        assert inum == netns.current_netns()


def test_files_that_are_no_namespace_are_not_listed(tmp_path):
    (tmp_path / "leftover").touch()
    (tmp_path / "real").symlink_to("/proc/self/ns/net")
    assert netns.named_netns(tmp_path) == {"real": netns.current_netns()}
    assert netns.named_netns(tmp_path / "none") == {}


def test_path_name_pid(tmp_path, monkeypatch):
    monkeypatch.setattr(netns, "_NAMED", tmp_path)
    (tmp_path / "1").touch()
    assert netns.netns_path("1") == str(tmp_path / "1")  # a name goes before a process id
    assert netns.netns_path(os.getpid()) == f"/proc/{os.getpid()}/ns/net"
    assert netns.netns_path("/proc/self/ns/net") == "/proc/self/ns/net"


@pytest.mark.parametrize("which", ["", "no-such-name", "4194305", "/no/such/file", "../x"])
def test_not_found(which):
    with pytest.raises(UsageProblem, match="not found"):
        netns.netns_path(which)


def test_near_name(monkeypatch):
    monkeypatch.setattr(netns, "named_netns", lambda: {"blue": 1, "red": 2})
    with pytest.raises(UsageProblem) as caught:
        netns.netns_path("bleu")
    assert str(caught.value) == (
        "network namespace 'bleu' not found. Did you mean 'blue'? See 'ip netns'."
    )
