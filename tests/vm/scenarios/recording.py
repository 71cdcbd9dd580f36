# SPDX-License-Identifier: GPL-2.0-only
"""Recordings: what is replayed is what was seen, on a machine that is not the host."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from lab.drops import accounted, watch
from lab.expect import at_least, contains, equal
from lab.latency import complete, ends, follow
from lab.netns import Namespace
from lab.replay import keep, replay, replayed_equal
from lab.scenario import scenario
from lab.tool import Tool
from lab.topo import bridge_topo
from lab.traffic import udp

_LO = "127.0.0.1"


@contextmanager
def _place() -> Iterator[Path]:
    found = Path(tempfile.mkdtemp(prefix="ntrec"))
    try:
        yield found
    finally:
        shutil.rmtree(found)


@scenario()
def drops(lab: Any) -> None:
    """Events with stacks, and a table with intervals, stacks and flows."""
    with Namespace("h") as ns, _place() as place:
        with watch(ns, "--record", str(place / "events")) as tool:
            udp(ns, _LO, 7777, 23, wait_s=0.2)
            live = tool.stop()
        equal(accounted(live)["shown"], 23, "drops")
        keep(lab, place / "events", live)
        replayed_equal(live, replay("ntools-drop", place / "events"))
        table = ("--group-by", "reason,device,fivetuple", "--stack", "--interval", "1")
        with watch(ns, *table, "--record", str(place / "table")) as tool:
            udp(ns, _LO, 7777, 10, wait_s=0.2)
            tool.wait_for(lambda recs: len([r for r in recs if r["type"] == "interval"]) >= 2)
            udp(ns, _LO, 8888, 5, wait_s=0.2)
            live = tool.stop()
        equal(accounted(live)["shown"], 15, "drops in the table")
        keep(lab, place / "table", live)
        replayed_equal(live, replay("ntools-drop", place / "table"))


@scenario(requires=("tun", "bridge"))
def latency(lab: Any) -> None:
    """Histograms and ends of a summary; packets of the details."""
    with bridge_topo(static_neigh=True) as topo, _place() as place:
        topo.vm.delay(5)
        with follow(topo, "--interval", "1", "--record", str(place / "summary")) as tool:
            topo.ping(20)
            topo.udp(port=7777, count=7)
            live = tool.stop()
        at_least(len(live.of_type("hist")), 6, "histograms")
        keep(lab, place / "summary", live)
        replayed_equal(live, replay("ntools-vm-latency", place / "summary"))
        topo.vm.delay(0)
        with follow(topo, "--details", "--force", "--record", str(place / "details")) as tool:
            topo.ping(10)
            live = tool.stop()
        complete(live, 10)
        equal(len(live.of_type("packet")), 20, "packets")
        keep(lab, place / "details", live)
        replayed_equal(live, replay("ntools-vm-latency", place / "details"))


@scenario(requires=("tun", "bridge", "nft", "nft_bridge"))
def verdicts(lab: Any) -> None:
    """Packets that were dropped: last stage, next stage, reason and function, as recorded."""
    with bridge_topo(static_neigh=True) as topo, _place() as place:
        topo.nft_drop_every(5, "bridge-forward", "icmp type echo-request")
        with follow(topo, "--interval", "1", "--record", str(place / "summary")) as tool:
            topo.ping(10, wait_s=2)
            tool.wait_for(lambda recs: sum(r.get("dropped", 0) for r in recs) >= 2, 30)
            live = tool.stop()
        equal(ends(live, "tx")["dropped"], 2, "dropped")
        keep(lab, place / "summary", live)
        replayed_equal(live, replay("ntools-vm-latency", place / "summary"))


@scenario()
def refusals(lab: Any) -> None:
    """One line and nothing else for what cannot be recorded or replayed."""
    with Namespace("h") as ns, _place() as place:
        with watch(ns, "--record", str(place / "run"), "--dst-port", "7777") as tool:
            udp(ns, _LO, 7777, 3, wait_s=0.2)
            tool.stop()
        for command, args, status, text in (
            ("ntools-drop", ["--record", str(place / "run")], 1, "exists"),
            ("ntools-vm-latency", ["--replay", str(place / "run")], 1, "ntools-drop"),
            ("ntools-drop", ["--replay", str(place / "none")], 1, "none"),
            ("ntools-drop", ["--replay", "/dev/zero"], 1, "/dev/zero"),
            ("ntools-drop", ["--replay", str(place / "run"), "--netns", "x"], 2, "--netns"),
        ):
            with Tool(ns, command, args, ready=False) as tool:
                result = tool.wait()
            equal(result.status, status, f"exit status of {args}", result.tail())
            equal(len(result.stderr.splitlines()), 1, f"lines about {args}", result.stderr)
            contains(result.stderr, text, f"message about {args}")
            equal(result.stdout, "", f"stdout of {args}")
