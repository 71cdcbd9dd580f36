# SPDX-License-Identifier: GPL-2.0-only
"""ntools-path-merge: of two hosts and the network between them, who lost the packets."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from lab.chain import A_IP, B_IP, chain
from lab.expect import at_least, at_most, equal
from lab.faults import NftDrop
from lab.netns import Namespace
from lab.routed import stream
from lab.scenario import scenario
from lab.tool import PATIENT, Tool, side_by_side
from lab.traffic import ping

_COUNT = 60
_PORT = 7000
_ECHO, _UDP, _TCP = "ntools-icmp-path", "ntools-udp-path", "ntools-tcp-path"


def _watch(ns: Namespace, command: str, path: Path) -> Tool:
    words = ["--src-ip", A_IP, "--dst-ip", B_IP, "--rx-iface", "in", "--tx-iface", "out"]
    more = ["--force", "-v"] if command == _UDP else []
    return Tool(ns, command, [*words, "--record", str(path), *more, *PATIENT])


def _send(ns: Namespace) -> None:
    with ns.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(_COUNT):
            sock.sendto(b"%04d" % number * 5, (B_IP, _PORT))
            time.sleep(0.01)


def _recorded(hosts: Dict[str, Namespace], command: str, home: Path) -> Tuple[Path, Path]:
    """The same packets as both hosts saw them."""
    paths = home / "a", home / "b"
    tools = [_watch(hosts[name], command, path) for name, path in zip(("h1", "h2"), paths)]
    with side_by_side(*tools):
        time.sleep(0.3)
        if command == _ECHO:
            ping(hosts["a"], B_IP, _COUNT, 0.02, 56, 2)
        elif command == _UDP:
            _send(hosts["a"])
        else:
            sent = stream(hosts["a"], hosts["b"], B_IP, _PORT, 300_000)
            equal(sent.received, 300_000, "received")
        time.sleep(2)
        for tool in tools:
            equal(tool.stop().status, 0, "exit status")
    return paths


def _merged(
    paths: Tuple[Path, Path], *args: str, kind: str = "merge_summary"
) -> Tuple[List[Dict[str, Any]], int]:
    words = ["--a", str(paths[0]), "--b", str(paths[1]), "--guard-ms", "0", "--format", "json"]
    with Tool(None, "ntools-path-merge", [*words, *args], ready=False) as tool:
        result = tool.wait()
    equal(result.stderr, "", "stderr")
    return result.of_type(kind), result.status


def _everywhere(command: str, places: Sequence[Tuple[str, str, str, str]]) -> None:
    """Every tenth packet dropped at each place has that place's verdict; the others came through.

    :param places: namespace, match and hook of the rule, verdict.
    """
    with chain() as hosts, tempfile.TemporaryDirectory() as home:
        rules = [
            (verdict, NftDrop(hosts[place], 10, hook, match))
            for place, match, hook, verdict in places
        ]
        paths = _recorded(hosts, command, Path(home))
        (found,), status = _merged(paths, "--exit-code")
        dropped = {verdict: rule.counter() for verdict, rule in rules}
    at_least(min(dropped.values()), 2, "dropped by each rule", dropped)
    counts = {name: count for name, count in found["counts"].items() if count}
    whole = {"complete": _COUNT - sum(dropped.values())}
    equal(counts, {**whole, **dropped}, "verdicts", found)
    equal(status, 10, "exit status")


_REQUEST, _REPLY = "icmp type echo-request", "icmp type echo-reply"


@scenario(requires=("nft",))
def echoes(lab: Any) -> None:
    _everywhere(
        _ECHO,
        (
            ("h1", _REQUEST, "forward", "a_internal_req"),
            ("m", _REQUEST, "forward", "network_a_to_b"),
            ("h2", _REQUEST, "forward", "b_internal_req"),
            ("b", _REQUEST, "input", "receiver_no_reply"),
            ("h2", _REPLY, "forward", "b_internal_rep"),
            ("m", _REPLY, "forward", "network_b_to_a"),
            ("h1", _REPLY, "forward", "a_internal_rep"),
        ),
    )


@scenario(requires=("nft",))
def datagrams(lab: Any) -> None:
    port = f"udp dport {_PORT}"
    _everywhere(
        _UDP,
        (
            ("h1", port, "forward", "a_internal"),
            ("m", port, "forward", "network"),
            ("h2", port, "forward", "b_internal"),
        ),
    )


@scenario(requires=("nft",))
def connections(lab: Any) -> None:
    """Of TCP, segments and bytes: as many as the rule of each place counted."""
    with chain() as hosts, tempfile.TemporaryDirectory() as home:
        for ns in hosts.values():
            for dev in ("in", "out"):
                plain = ["ethtool", "-K", dev, "tso", "off", "gso", "off", "gro", "off"]
                ns.run(plain, check=False)  # the two ends have one device each
        data = f"tcp dport {_PORT} meta length > 500"
        places = {"h1": "a_internal", "m": "network", "h2": "b_internal"}
        rules = {leg: NftDrop(hosts[place], 40, "forward", data) for place, leg in places.items()}
        paths = _recorded(hosts, _TCP, Path(home))
        found, status = _merged(paths, "--exit-code", kind="merge_counts")
        dropped = {leg: rule.counter() for leg, rule in rules.items()}
        octets = {leg: rule.octets() for leg, rule in rules.items()}
    forward, reply = (one for one in found)
    at_least(min(dropped.values()), 2, "dropped by each rule", dropped)
    equal(forward["lost_segs"], dropped, "segments", forward)
    headers = {leg: count * 52 for leg, count in dropped.items()}  # IP, TCP, time stamps
    payload = {leg: octets[leg] - headers[leg] for leg in octets}
    equal(forward["lost_bytes"], payload, "bytes", forward)
    equal(set(reply["lost_segs"].values()), {0}, "replies", reply)
    equal(status, 10, "exit status")


@scenario()
def another_clock(lab: Any) -> None:
    """What B printed, 750 ms later: the clock is found, the verdicts are the same."""
    with chain() as hosts, tempfile.TemporaryDirectory() as home:
        paths = _recorded(hosts, _ECHO, Path(home))
        (same,), _ = _merged(paths)
        printed: List[Path] = []
        for path in paths:
            with Tool(None, _ECHO, ["--replay", str(path), "--format", "json", "-v"],
                      ready=False) as tool:  # fmt: skip
                text = tool.wait().stdout
            printed.append(path.with_suffix(".jsonl"))
            printed[-1].write_text(text)
        late = [json.loads(line) for line in printed[1].read_text().splitlines()]
        late[0]["epoch_offset_ns"] += 750_000_000
        for rec in late:
            if "utc_ns" in rec:
                rec["utc_ns"] += 750_000_000
        printed[1].write_text("".join(json.dumps(rec) + "\n" for rec in late))
        (found,), status = _merged((printed[0], printed[1]))
    equal((same["counts"]["complete"], found["counts"]), (_COUNT, same["counts"]), "verdicts")
    at_most(abs(found["clock_offset_ns"] - same["clock_offset_ns"] - 750_000_000), 1_000_000, "ns")
    equal(status, 0, "exit status")
