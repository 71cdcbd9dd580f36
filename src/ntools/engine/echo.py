# SPDX-License-Identifier: GPL-2.0-only
"""Echo requests and their replies on a path through this host: which stage was the last.

Four stages: the request comes in and leaves, its reply comes in and leaves. The kernel follows each
of the two packets and says when it has left; the reply knows when its request came in. A verdict is
made when the next stage did not come in time.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any, Dict, Iterable, NamedTuple, Optional, Tuple

from ntools._loader import BpfObject
from ntools.engine.budget import echo_identity
from ntools.engine.lookups import Lookups
from ntools.engine.path import PathEngine
from ntools.host.sides import Sides
from ntools.model.filter import PacketFilter
from ntools.model.flow import Flow
from ntools.model.hist import Histogram
from ntools.model.packet import Packet

if TYPE_CHECKING:
    from ntools.output.jsonl import Writer

__all__ = ["PARTS", "STATUSES", "EchoEngine", "EchoOptions"]

#: Status -> what it means. Their sum is the number of echoes.
STATUSES: Dict[str, str] = {
    "complete": "the reply left this host",
    "internal_drop_req": "the request came in and did not leave",
    "external_drop": "the request left, no reply came",
    "internal_drop_rep": "the reply came in and did not leave",
    "timeout": "not to be told: the run ended before, records were lost or sampled out",
}
_NOT_LOST = ("complete", "timeout")
#: Parts of the way, and the stages each lies between.
PARTS: Dict[str, Tuple[str, str]] = {
    "req_internal": ("req_rx", "req_tx"),
    "external": ("req_tx", "rep_rx"),
    "rep_internal": ("rep_rx", "rep_tx"),
    "total": ("req_rx", "rep_tx"),
}
_REPLY = 1
_REPLIED = 2  # in struct nt_echo


class EchoOptions(NamedTuple):
    """What to follow and show.

    :ivar timeout_s: longest wait for the next stage.
    :ivar echo_id: identifier of the requests, None: all.
    :ivar everything: also show complete echoes.
    :ivar explain: count what was not followed, by step of the filter.
    """

    filter: PacketFilter
    timeout_s: float = 1.0
    echo_id: Optional[int] = None
    everything: bool = False
    explain: bool = False


class _Echo:
    """One request, and what became of it."""

    __slots__ = ("fields", "left_ns", "nat", "record", "stages")

    def __init__(self, fields: Dict[str, Any], record: Tuple[Any, ...]) -> None:
        self.fields, self.record = fields, record
        self.stages: Dict[str, Dict[str, Any]] = {}
        self.nat: Optional[Dict[str, Any]] = None
        self.left_ns = 0


def _histogram() -> Histogram:
    """One as the kernel makes them: 256 ns to 68 s."""
    return Histogram(sub=2, first=28, last=139)


class EchoEngine(PathEngine):
    """One run: ``echo`` records as they end, ``path_stats`` per interval and for the whole run."""

    counts_events = makes_records = True

    def __init__(
        self,
        obj: BpfObject,
        sides: Sides,
        options: EchoOptions,
        lookups: Optional[Lookups] = None,
    ) -> None:
        super().__init__(obj, sides, options.filter, options.timeout_s, options.explain, lookups)
        self._everything = options.everything
        self._open: Dict[int, _Echo] = {}
        self._done: Dict[int, int] = {}
        self._counts: "Counter[str]" = Counter()
        self._before: Dict[str, int] = {}
        self._times = {name: _histogram() for name in PARTS}
        self._fresh = {name: _histogram() for name in PARTS}
        self._shown = 0
        anybody = obj.types.enum("nt_flight_size")["NT_ECHO_ANY"]
        self.configure(
            ("ECHO",),
            echo_ns=self._timeout_ns,
            echo_id=anybody if options.echo_id is None else options.echo_id,
        )

    # -- what the run calls --------------------------------------------------------------------

    def channel(self) -> Any:
        """Packets that have left."""
        return self.obj.channel("events")

    def take(self, records: Iterable[Any], writer: "Writer") -> int:
        """Put replies together with their requests."""
        before = self._shown
        direction = self._at["direction"]
        for record in records:
            if record[direction] == _REPLY:
                self._reply_left(record, writer)
            else:
                self._request_left(record)
        return self._shown - before

    def sweep(self, writer: "Writer") -> None:
        """Pronounce on what did not go on in time."""
        super().sweep(writer)
        limit = self.now_ns - self._timeout_ns
        self._without_reply(limit, writer)
        self._forget(limit)

    def report(self, writer: "Writer", last: bool) -> None:
        """Counts and times: of the interval, or of the whole run at its end."""
        if self._narrow is None:
            missing = self.matched() - sum(self._counts.values()) - len(self._open)
            if last and missing > 0:  # their records were lost
                self._counts["timeout"] += missing
        agg = "total" if last else "delta"
        for name, hist in (self._times if last else self._fresh).items():
            if hist.count:
                writer.record("hist", name="echo", labels={"part": name}, agg=agg, **hist.fields())
        self._fresh = {name: _histogram() for name in PARTS}
        counts = {**{name: self._counts[name] for name in STATUSES}, **self._unpaired()}
        before = {} if last else self._before
        shown = {name: count - before.get(name, 0) for name, count in counts.items()}
        self._before = counts
        echoes = sum(shown[name] for name in STATUSES)
        writer.record("path_stats", agg=agg, echoes=echoes, **shown)

    def finish(self, writer: "Writer") -> None:
        """What has no end yet is not to be told."""
        self.sweep(writer)
        self._give_up((*self._under_way.all(), *self._graves), writer)

    def lost(self) -> int:
        """See :meth:`PathEngine.lost`."""
        return sum(self._counts[name] for name in STATUSES if name not in _NOT_LOST)

    def matched(self) -> int:
        """Requests that came in."""
        return int(self.obj.map("ends").sums()[0])

    def resume(self, writer: "Writer") -> None:
        """What was under way when the programs fell asleep went on unseen."""
        self._give_up((*self._under_way.given_up(), *self.given_up()), writer)

    def state(self) -> Dict[str, Any]:
        """Counts so far."""
        return {
            **super().state(),
            "shown": self._shown,
            "counts": dict(self._counts),
            "times": {name: hist.fields() for name, hist in self._times.items()},
        }

    def restore(self, state: Dict[str, Any]) -> None:
        """See :meth:`Engine.restore`."""
        super().restore(state)
        self._shown = int(state["shown"])
        self._counts.update({name: int(n) for name, n in state["counts"].items()})
        self._times = {name: Histogram.from_fields(state["times"][name]) for name in PARTS}

    # -- inside --------------------------------------------------------------------------------

    def _of_request(self, record: Tuple[Any, ...]) -> _Echo:
        """An echo whose request came in."""
        at, flow = self._at, self._read.flow(record)
        echo = _Echo(self._fields(flow, record), record)
        self._stage(echo, "req_rx", record[at["start_ns"]], record[at["entry_ifindex"]])
        return echo

    def _of_reply(self, record: Tuple[Any, ...]) -> _Echo:
        """An echo of whose request nothing is known but the time."""
        flow = self._read.flow(record).reversed()
        echo = _Echo(self._fields(flow, record), record)
        self._stage(echo, "req_rx", record[self._at["request_ns"]], 0)
        return echo

    def _fields(self, flow: Flow, record: Tuple[Any, ...]) -> Dict[str, Any]:
        fields = flow.fields()
        for name in ("icmp_type", "icmp_code"):  # an echo has two of each
            fields.pop(name, None)
        fields["icmp_seq"] = record[self._at["seq"]]
        fields["len_bytes"] = record[self._at["len_bytes"]]
        fields["vlan_id"] = self._read.vlan(record)
        return fields

    def _stage(self, echo: _Echo, name: str, ts_ns: int, ifindex: int) -> None:
        echo.stages[name] = {
            "ts_ns": ts_ns,
            "interface": self._read.name(ifindex) if ifindex else None,
            "ifindex": ifindex or None,
        }

    def _request_left(self, record: Tuple[Any, ...]) -> None:
        """A request came in and left."""
        at, start = self._at, record[self._at["start_ns"]]
        if start in self._done:  # later than the verdict
            return
        echo = self._of_request(record)
        echo.left_ns = record[at["last_ns"]]
        self._stage(echo, "req_tx", echo.left_ns, record[at["last_ifindex"]])
        echo.nat = self._translated(record)
        self._open[start] = echo

    def _translated(self, record: Tuple[Any, ...]) -> Optional[Dict[str, Any]]:
        """Addresses and identifier a request left with, if they are others."""
        first = self._at["out__src"]
        before = self._read.flow(record)
        after = Flow.from_kernel(record[first : first + 7])
        if (before.src, before.dst, before.dst_port) == (after.src, after.dst, after.dst_port):
            return None
        fields = after.fields()
        return {name: fields[name] for name in ("src_ip", "dst_ip", "icmp_id") if name in fields}

    def _reply_left(self, record: Tuple[Any, ...], writer: "Writer") -> None:
        at = self._at
        request_ns = record[at["request_ns"]]
        if request_ns in self._done:
            return
        echo = self._open.pop(request_ns, None) or self._of_reply(record)
        self._stage(echo, "rep_rx", record[at["start_ns"]], record[at["entry_ifindex"]])
        self._stage(echo, "rep_tx", record[at["last_ns"]], record[at["last_ifindex"]])
        self._end(echo, "complete", writer)

    def _taken_out(self, record: Tuple[Any, ...]) -> Optional[_Echo]:
        """The echo of a flight that did not leave; None if it has left as another buffer."""
        at = self._at
        if record[at["direction"]] == _REPLY:
            request_ns = record[at["request_ns"]]
            if request_ns in self._done:
                return None
            echo = self._open.pop(request_ns, None) or self._of_reply(record)
            self._stage(echo, "rep_rx", record[at["start_ns"]], record[at["entry_ifindex"]])
            return echo
        start = record[at["start_ns"]]
        if start in self._open or start in self._done:
            return None
        return self._of_request(record)

    def _give_up(self, records: Iterable[Tuple[Any, ...]], writer: "Writer") -> None:
        """What is under way has no end that could be told."""
        for record in records:
            echo = self._taken_out(record)
            if echo is not None:
                self._end(echo, "timeout", writer)
        for echo in self._open.values():
            self._end(echo, "timeout", writer)
        self._open.clear()

    def stuck(self, record: Tuple[Any, ...], writer: "Writer") -> None:
        """See :meth:`PathEngine.stuck`."""
        echo = self._taken_out(record)
        if echo is None:
            return
        reply = record[self._at["direction"]] == _REPLY
        evidence = self._read.evidence(record)
        if evidence:
            echo.fields["evidence"] = evidence
        self._end(echo, "internal_drop_rep" if reply else "internal_drop_req", writer)

    def _without_reply(self, limit_ns: int, writer: "Writer") -> None:
        """Requests that have left, and whose reply is not even on its way back through here."""
        late = [start for start, echo in self._open.items() if echo.left_ns < limit_ns]
        for start in late:
            echo = self._open[start]
            key = self._echo_key(echo.record)
            known = self.obj.map("echoes").lookup(key)
            if known is not None and known[_REPLIED] >= limit_ns:
                continue  # it came in: its own packet has the time it needs
            self.obj.map("echoes").delete(key)
            del self._open[start]
            # It came in long ago, and nothing was heard of it: its record was lost.
            replied = known is not None and known[_REPLIED]
            self._end(echo, "timeout" if replied else "external_drop", writer)

    def _echo_key(self, record: Tuple[Any, ...]) -> Tuple[Any, ...]:
        """``struct nt_echo_key`` of a request that left."""
        first = self._at["out__src"]
        src, dst, _, echo_id, eth_proto, family, protocol = record[first : first + 7]
        return dst, src, 0, echo_id, eth_proto, family, protocol, record[self._at["seq"]]

    def _forget(self, limit_ns: int) -> None:
        """Drop what the kernel and we remember of echoes that are over."""
        echoes = self.obj.map("echoes")
        for key, value in list(echoes.items()):
            if max(value[:3]) < limit_ns:
                echoes.delete(key)
        for start in [start for start, ended in self._done.items() if ended < limit_ns]:
            del self._done[start]

    def _end(self, echo: _Echo, status: str, writer: "Writer") -> None:
        """Count an echo, and show it if it is wanted."""
        stages = echo.stages
        start = stages["req_rx"]["ts_ns"]
        self._done[start] = self.now_ns
        if self._narrow and not self._narrow.matches(self._packet_of(echo)):
            return
        self._counts[status] += 1
        parts: Dict[str, int] = {}
        for name, (first, last) in PARTS.items():
            if first in stages and last in stages:
                parts[name] = max(0, stages[last]["ts_ns"] - stages[first]["ts_ns"])
                self._times[name].add(parts[name])
                self._fresh[name].add(parts[name])
        if status == "complete" and not self._everything:
            return
        if not self.gate.passes(self._identity(echo)):
            return
        writer.record(
            "echo",
            ts_ns=start,
            status=status,
            stages=stages,
            nat=echo.nat,
            **{name + "_ns": ns for name, ns in parts.items()},
            **echo.fields,
        )
        self._shown += 1

    def _identity(self, echo: _Echo) -> int:
        at = self._at
        return echo_identity(echo.record[at["tuple__dst_port"]], echo.record[at["seq"]])

    def _packet_of(self, echo: _Echo) -> Packet:
        return Packet.from_flow(self._read.flow(echo.record), self._read.vlan(echo.record))

    def _unpaired(self) -> Dict[str, int]:
        """Echoes seen at a stage without the one before, or twice at one."""
        return {name: self.rejected(name) for name in ("unpaired", "duplicate")}
