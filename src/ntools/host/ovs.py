# SPDX-License-Identifier: GPL-2.0-only
"""What Open vSwitch's own daemons say: bridges, ports, patch links, learned addresses.

Asked over their local sockets (JSON-RPC, RFC 7047 section 4) in one exchange: no process is
started and no OVS program has to be in the path, also when OVS runs in a container.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ntools.host.netns import current_netns, process_netns
from ntools.model.flow import parse_mac

__all__ = ["OvsBridge", "OvsLayout", "OvsPort", "fdb_macs", "layout_from_rows", "read_layout"]

_TIMEOUT_S = 1.0
#: Times the timeout: a peer that always sends a little more must not hold up the command.
_PATIENCE = 5
#: Sockets asked at most: any process may call itself ovsdb-server.
_MAX_SOCKETS = 8
_MAX_FILE_BYTES = 1 << 20
_MAX_ANSWER_BYTES = 32 << 20
_DEFAULT_RUNDIR = "/var/run/openvswitch"
_COLUMNS = {
    "Open_vSwitch": ["other_config"],
    "Bridge": ["name", "ports", "datapath_type"],
    "Port": ["_uuid", "interfaces"],
    "Interface": ["_uuid", "name", "type", "options", "ofport"],
}

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class OvsPort:
    """One interface of a bridge (a bond of OVS has several).

    :ivar type: ``""`` system device, ``internal``, ``patch``, ``vxlan``, ``dpdk``...
    :ivar peer: name of the other patch port.
    :ivar number: OpenFlow port number, None when OVS could not open the device.
    """

    name: str
    type: str
    peer: Optional[str]
    number: Optional[int]


@dataclass(frozen=True)
class OvsBridge:
    """A bridge; ``in_kernel`` is False for the user-space datapath."""

    name: str
    in_kernel: bool
    ports: Tuple[OvsPort, ...]


@dataclass(frozen=True)
class OvsLayout:
    """All bridges of one OVS; ``rundir`` holds its control sockets."""

    bridges: Tuple[OvsBridge, ...]
    hw_offload: bool = False
    rundir: str = _DEFAULT_RUNDIR

    def bridge_of(self, port_name: str) -> Optional[OvsBridge]:
        """The bridge that has an interface of this name."""
        for bridge in self.bridges:
            if any(port.name == port_name for port in bridge.ports):
                return bridge
        return None

    def connected(self, bridge: OvsBridge) -> List[OvsBridge]:
        """``bridge`` and all that patch ports lead to, nearest first."""
        found = [bridge]
        for one in found:
            for port in one.ports:
                beyond = self.bridge_of(port.peer) if port.peer else None
                if beyond is not None and beyond not in found:
                    found.append(beyond)
        return found


def read_layout(timeout_s: float = _TIMEOUT_S) -> Optional[OvsLayout]:
    """Ask the first database that answers; None when none does.

    Looked for in $OVS_RUNDIR, in /var/run/openvswitch and on the command lines of the
    ovsdb-server processes of this network namespace.
    """
    operations = [
        {"op": "select", "table": table, "where": [], "columns": columns}
        for table, columns in _COLUMNS.items()
    ]
    for path in islice(_database_sockets(), _MAX_SOCKETS):
        try:
            result = _call(path, "transact", ["Open_vSwitch", *operations], timeout_s)
            return _layout(result, os.path.dirname(path))
        except (OSError, ValueError):
            continue
    return None


def layout_from_rows(tables: Mapping[str, Rows], rundir: str = _DEFAULT_RUNDIR) -> OvsLayout:
    """Join the selected rows of the four tables.

    :raises ValueError: rows of another shape.
    """
    try:
        return _joined(tables, rundir)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"rows of another shape: {error}") from None


def _layout(result: Any, rundir: str) -> OvsLayout:
    try:
        tables = {table: part["rows"] for table, part in zip(_COLUMNS, result)}
    except (KeyError, TypeError) as error:
        raise ValueError(f"an answer of another shape: {error}") from None
    return layout_from_rows(tables, rundir)


def _joined(tables: Mapping[str, Rows], rundir: str) -> OvsLayout:
    interfaces = {row["_uuid"][1]: _port(row) for row in tables["Interface"]}
    of_port = {row["_uuid"][1]: _uuids(row["interfaces"]) for row in tables["Port"]}
    bridges = []
    for row in tables["Bridge"]:
        members = [uuid for port in _uuids(row["ports"]) for uuid in of_port.get(port, [])]
        ports = tuple(interfaces[uuid] for uuid in members if uuid in interfaces)
        bridges.append(OvsBridge(_name(row), row["datapath_type"] in ("", "system"), ports))
    settings = [_map(row["other_config"]) for row in tables["Open_vSwitch"]]
    offload = any(str(one.get("hw-offload")).lower() == "true" for one in settings)
    return OvsLayout(tuple(bridges), offload, rundir)


def fdb_macs(layout: OvsLayout, device: str, timeout_s: float = _TIMEOUT_S) -> List[str]:
    """MAC addresses ovs-vswitchd has learned on the port of this device; [] when it is silent."""
    bridge = layout.bridge_of(device)
    if bridge is None:
        return []
    numbers = {str(port.number) for port in bridge.ports if port.name == device}
    for path in islice(Path(layout.rundir).glob("ovs-vswitchd.*.ctl"), _MAX_SOCKETS):
        try:
            table = str(_call(str(path), "fdb/show", [bridge.name], timeout_s))
        except (OSError, ValueError):
            continue
        lines = [line.split() for line in table.splitlines()[1:]]
        return [
            line[2] for line in lines if len(line) >= 4 and line[0] in numbers and _is_mac(line[2])
        ]
    return []


def _is_mac(text: str) -> bool:
    try:
        return len(parse_mac(text)) == 6
    except ValueError:
        return False


def _port(row: Mapping[str, Any]) -> OvsPort:
    number = row["ofport"] if isinstance(row["ofport"], int) and row["ofport"] > 0 else None
    peer = _map(row["options"]).get("peer") if row["type"] == "patch" else None
    return OvsPort(_name(row), str(row["type"]), None if peer is None else str(peer), number)


def _name(row: Mapping[str, Any]) -> str:
    name = row["name"]
    if not isinstance(name, str):
        raise TypeError("a name that is no text")
    return name


def _uuids(value: List[Any]) -> List[str]:
    """One uuid is ``["uuid", x]``, any other number of them ``["set", [["uuid", x], ...]]``."""
    return [value[1]] if value[0] == "uuid" else [item[1] for item in value[1]]


def _map(value: List[Any]) -> Dict[str, str]:
    return dict(value[1])


def _database_sockets() -> Iterator[str]:
    for directory in dict.fromkeys((os.environ.get("OVS_RUNDIR", ""), _DEFAULT_RUNDIR)):
        path = os.path.join(directory, "db.sock")
        if directory and os.path.exists(path):
            yield path
    own = current_netns()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or _read(f"/proc/{entry}/comm") != b"ovsdb-server\n":
            continue
        if process_netns(int(entry)) != own:
            continue
        for argument in _read(f"/proc/{entry}/cmdline").split(b"\0"):
            _, found, path_bytes = argument.partition(b"punix:")
            if found:  # as the process sees it: it may live in a container
                yield f"/proc/{entry}/root{os.fsdecode(path_bytes)}"


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            # Bounded: a process may point its command line at all of its memory.
            return stream.read(_MAX_FILE_BYTES)
    except OSError:
        return b""


def _call(path: str, method: str, params: Sequence[Any], timeout_s: float) -> Any:
    """One request and its answer.

    :raises OSError: nobody listens, or no answer in time.
    :raises ValueError: an answer that is an error or no JSON.
    """
    deadline = time.monotonic() + _PATIENCE * timeout_s
    request = json.dumps({"method": method, "params": params, "id": 1}).encode()
    decoder = json.JSONDecoder()
    received = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(timeout_s)
        channel.connect(path)
        channel.sendall(request)
        while len(received) < _MAX_ANSWER_BYTES:
            part = channel.recv(1 << 18)
            if not part:
                break
            received += part
            if time.monotonic() > deadline:
                raise socket.timeout("no whole answer in time")
            if not part.rstrip().endswith(b"}"):
                continue
            try:
                answer, _ = decoder.raw_decode(received.decode())
            except ValueError:  # not whole yet
                continue
            except RecursionError:
                raise ValueError("an answer nested too deep") from None
            if not isinstance(answer, dict) or "result" not in answer or answer.get("error"):
                raise ValueError("the answer is an error")
            return answer["result"]
    raise ValueError("no whole answer")
