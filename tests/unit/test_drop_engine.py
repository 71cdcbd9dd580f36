# SPDX-License-Identifier: GPL-2.0-only
"""The drop engine without a kernel: its struct layouts come from the installed object."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest

import ntools
from ntools._loader.btf import Types
from ntools._loader.elf import sections
from ntools.engine.drop import DropEngine, DropOptions
from ntools.engine.lookups import HostLookups
from ntools.engine.places import Places
from ntools.errors import EnvironmentProblem, UsageProblem
from ntools.host.devices import DeviceNames
from ntools.host.symbols import Symbols
from ntools.output.jsonl import Writer

OBJECT = Path(ntools.__file__).parent / "bpf" / "drop.x86.bpf.o"
REASONS = {
    "skb_drop_reason": {
        2: "SKB_DROP_REASON_NOT_SPECIFIED", 3: "SKB_DROP_REASON_NO_SOCKET",
        9: "SKB_DROP_REASON_NETFILTER_DROP", 70: "SKB_DROP_REASON_QUEUE_PURGE",
    },
    "ovs_drop_reason": {0x20001: "OVS_DROP_LAST_ACTION", 0x20003: "OVS_DROP_METER"},
}  # fmt: skip
KALLSYMS = """\
ffffffff81000000 T kfree_skb_list_reason
ffffffff81000100 T kfree_skb_partial
ffffffff81000200 T sk_skb_reason_drop
ffffffff81001000 T __udp4_lib_rcv
ffffffff81002000 T nft_do_chain
ffffffff81003000 T ip_local_deliver
ffffffff81004000 T __dev_queue_xmit
ffffffff81004800 t __dev_queue_xmit.cold
ffffffff81005000 T skb_queue_purge_reason
ffffffff81006000 T last
"""
UDP = 0xFFFFFFFF81001044
NFT = 0xFFFFFFFF81002010
PURGE = 0xFFFFFFFF81005020
XMIT = 0xFFFFFFFF81004030


class FakeMap:
    def __init__(self, pairs=()):
        self.pairs = dict(pairs)

    def items(self):
        return iter(list(self.pairs.items()))

    def lookup(self, key):
        return self.pairs.get(key)

    def update(self, key, value):
        self.pairs[key] = value

    def sums(self):
        return [self.pairs.get(index, 0) for index in range(32)]


class FakeRows(FakeMap):
    """The rows of the kernel, which are read as bytes."""

    def __init__(self, obj, pairs):
        super().__init__(pairs)
        self.key, self.value = (obj.types.struct(f"nt_drop_{part}") for part in ("key", "val"))

    def items_bytes(self):
        for key, value in self.items():
            yield self.key.codec.pack(*key), self.value.codec.pack(*value)


class FakeObject:
    def __init__(self, names=REASONS):
        self.types = Types(sections(OBJECT.read_bytes())[".BTF"])
        self.kernel = self
        self.release = "6.12.0"
        self.enum_names = lambda enum: names.get(enum, {})
        self.sizes, self.config, self.maps = {}, {}, {}

    def resize(self, name, size):
        self.sizes[name] = size

    def configure(self, **values):
        self.config.update(values)

    def map(self, name):
        return self.maps.setdefault(name, FakeMap())

    def programs(self):
        return []

    def channel(self):
        return FakeChannel()


class FakeChannel:
    lost = 0
    fd = 0

    def read(self):
        return iter(())


@pytest.fixture(autouse=True)
def symbols(tmp_path, monkeypatch):
    if not OBJECT.exists():
        pytest.skip("no object: make build")
    path = tmp_path / "kallsyms"
    path.write_text(KALLSYMS)
    monkeypatch.setattr("ntools.host.symbols.Symbols", lambda: Symbols(path))
    monkeypatch.setattr(DeviceNames, "name", lambda self, netns, index: f"dev{index}")


def make(names=REASONS, **options):
    obj = FakeObject(names)
    engine = DropEngine(obj, DropOptions(**options))
    stream = io.StringIO()
    writer = Writer(stream, "ntools-drop")
    writer.header()
    engine.begin()
    return engine, obj, writer, stream


def records(stream, kind):
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [rec for rec in found if rec["type"] == kind]


def event(obj, location, reason=3, stack=(), **values):
    """A record as the channel decodes it."""
    kind = obj.types.struct("nt_drop_event")
    values.update(
        ts_ns=5, location=location, reason=reason, len_bytes=50, comm=b"sender",
        pkt__vlan_id=0xFFFF, pkt__inner_vlan_id=0xFFFF,
        stack=struct.pack(f"<{len(stack)}Q", *stack), stack_bytes=8 * len(stack),
    )  # fmt: skip
    return kind.codec.unpack(kind.pack(values))


def ranges(raw):
    words = struct.unpack(f"<{len(raw) // 8}Q", raw)
    return [pair for pair in zip(words[::2], words[1::2]) if pair != (0, 0)]


# -- configuration


def test_free_functions_are_told_as_ranges_that_touch_joined():
    _, obj, _, _ = make()
    assert ranges(obj.config["helpers"]) == [(0xFFFFFFFF81000000, 0x1000)]
    assert obj.config["reasons"] == 0 and obj.config["mode"] == 0


def test_locations_include_parts_the_compiler_split_off():
    _, obj, _, _ = make(locations=("__dev_queue_xmit", "nft_*"))
    assert obj.config["by_location"] == 1
    assert ranges(obj.config["locations"]) == [
        (0xFFFFFFFF81002000, 0x1000),
        (0xFFFFFFFF81004000, 0x1000),
    ]


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"locations": ("nowhere",)}, UsageProblem, "nowhere"),
        ({"only": ("no_sockett",)}, UsageProblem, "Did you mean 'no_socket'"),
        ({"without": ("nonsense",)}, UsageProblem, "nonsense"),
        ({"only": ("no_socket",), "names": {}}, EnvironmentProblem, "gives no drop reasons"),
    ],
)
def test_refusals(options, error, text):
    with pytest.raises(error, match=text):
        make(**options)


def test_wanted_reasons():
    engine, obj, _, _ = make(only=("NO_SOCKET", "openvswitch:*", "unknown_here"))
    assert set(obj.map("drop_reasons").pairs) == {3, 0x20001, 0x20003}
    assert obj.config["reasons"] == 1
    assert engine.warnings == ["this kernel has no drop reason 'unknown_here'"]
    _, obj, _, _ = make(only=("openvswitch:*",), without=("openvswitch:meter",))
    assert set(obj.map("drop_reasons").pairs) == {0x20001}
    _, obj, _, _ = make(without=("no_socket",))
    assert set(obj.map("drop_reasons").pairs) == {3} and obj.config["reasons"] == 2


def test_table_makes_the_maps_it_needs():
    _, obj, _, _ = make(group_by=("reason",), max_entries=512)
    always = {"nt_tables": 1, "nt_prefixes": 1, "drop_devices": 1}
    assert obj.sizes == {"drop_groups": 512, "events": 1, "drop_stacks": 1, **always}
    _, obj, _, _ = make()
    assert obj.sizes == {"drop_groups": 1, "drop_stacks": 1, **always}


# -- events


def test_event_has_names():
    engine, obj, writer, stream = make()
    tracer = 0xFFFFFFFF81000210
    raw = event(
        obj, UDP, stack=(tracer, UDP, 0xFFFFFFFF81003010), ifindex=3, netns=4026531840,
        device=b"vnet3", facts=0,
    )  # fmt: skip
    assert engine.take([raw], writer) == 1
    (rec,) = records(stream, "drop")
    assert (rec["reason"], rec["reason_code"], rec["class"]) == ("no_socket", 3, "drop")
    assert (rec["caller"], rec["caller_offset"]) == ("__udp4_lib_rcv", 0x44)
    assert (rec["interface"], rec["ifindex"], rec["comm"]) == ("vnet3", 3, "sender")
    assert [frame["function"] for frame in rec["stack"]] == ["__udp4_lib_rcv", "ip_local_deliver"]
    assert "reason_derived" not in rec


@pytest.mark.parametrize("device", [b"", b"a/b", b"\x01\x02", b"a b"])
def test_device_name_that_cannot_be_one_is_looked_up(device):
    engine, obj, writer, stream = make()
    engine.take([event(obj, UDP, ifindex=7, netns=4026531840, device=device)], writer)
    assert records(stream, "drop")[0]["interface"] == "dev7"


def test_unknown_device_is_absent():
    engine, obj, writer, stream = make()
    engine.take([event(obj, UDP)], writer)
    assert not {"interface", "ifindex", "netns_inum"} & set(records(stream, "drop")[0])


def test_reason_is_derived_where_the_kernel_gives_none():
    engine, obj, writer, stream = make(names={})
    engine.take([event(obj, NFT, reason=0)], writer)
    (rec,) = records(stream, "drop")
    assert (rec["reason"], rec["reason_derived"]) == ("netfilter_drop", True)
    assert "reason_code" not in rec
    assert engine.header()["degraded"][0]["feature"] == "drop reasons"


def test_reason_is_derived_where_it_is_not_specified():
    engine, obj, writer, stream = make()
    engine.take([event(obj, NFT, reason=2)], writer)
    (rec,) = records(stream, "drop")
    assert (rec["reason"], rec["reason_code"]) == ("netfilter_drop", 2)
    assert rec["reason_derived"] is True


def test_address_without_symbol():
    engine, obj, writer, stream = make()
    engine.take([event(obj, 0x1000)], writer)
    (rec,) = records(stream, "drop")
    assert "caller" not in rec and rec["reason"] == "no_socket"


@pytest.mark.parametrize(
    "normal, shown, hidden", [("mark", 2, 0), ("show", 2, 0), ("hide", 1, 1), ("only", 1, 1)]
)
def test_normal_frees(normal, shown, hidden):
    engine, obj, writer, stream = make(normal=normal)
    engine.take([event(obj, PURGE, reason=70), event(obj, UDP)], writer)
    assert (engine.shown, engine.hidden) == (shown, hidden)
    classes = [rec["class"] for rec in records(stream, "drop")]
    assert classes == [c for c in ("purge", "drop") if (c, normal) not in
                       (("purge", "hide"), ("drop", "only"))]  # fmt: skip


def test_count_shows_no_more():
    engine, obj, writer, stream = make(count=2)
    assert engine.take([event(obj, UDP)] * 5, writer) == 2
    assert (len(records(stream, "drop")), engine.after_count) == (2, 3)


# -- table


def key(obj, location, reason=3, ifindex=1, facts=0, dst_port=9, stack=0):
    kind = obj.types.struct("nt_drop_key")
    values = {
        "location": location, "reason": reason, "ifindex": ifindex, "netns": 4026531840,
        "facts": facts, "stack": stack, "tuple__family": 4, "tuple__protocol": 17,
        "tuple__dst_port": dst_port, "tuple__src_port": 1000, "tuple__src": b"\x0a\0\0\x01",
        "tuple__dst": b"\x0a\0\0\x02", "tuple__eth_proto": 0x800,
    }  # fmt: skip
    return kind.codec.unpack(kind.pack(values))


def test_rows_that_look_the_same_are_one():
    engine, obj, writer, stream = make(group_by=("reason", "device"))
    obj.maps["drop_groups"] = FakeRows(
        obj,
        {
            key(obj, UDP): (3, 300, 10, 20),
            key(obj, UDP + 8): (2, 200, 5, 15),
            key(obj, UDP, ifindex=2): (4, 400, 30, 40),
        },
    )
    engine.report(writer, True)
    found = records(stream, "drop_group")
    assert [(rec.get("interface"), rec["drop_packets"]) for rec in found] == [
        ("dev1", 5), ("dev2", 4), (None, 0),
    ]  # fmt: skip
    assert (found[0]["first_ns"], found[0]["last_ns"], found[0]["drop_bytes"]) == (5, 20, 500)
    assert found[-1]["other"] is True and "caller" not in found[0]


def test_reports_are_differences_and_the_rest_has_a_row():
    engine, obj, writer, stream = make(group_by=("location", "port"), top=1)
    table = obj.maps["drop_groups"] = FakeRows(obj, {key(obj, UDP): (3, 300, 10, 20)})
    engine.report(writer, False)
    table.pairs[key(obj, UDP)] = (4, 400, 10, 50)
    table.pairs[key(obj, XMIT)] = (7, 700, 40, 60)
    engine.report(writer, False)
    engine.report(writer, True)
    found = records(stream, "drop_group")
    assert [(rec["agg"], rec.get("caller"), rec["drop_packets"]) for rec in found] == [
        ("delta", "__udp4_lib_rcv", 3), ("delta", None, 0),
        ("delta", "__dev_queue_xmit", 7), ("delta", None, 1),
        ("total", "__dev_queue_xmit", 7), ("total", None, 4),
    ]  # fmt: skip
    assert found[0]["dst_port"] == 9 and "src_ip" not in found[0]
    assert engine.shown == 11


def test_hidden_rows_are_counted():
    engine, obj, writer, stream = make(group_by=("reason",), normal="hide")
    obj.maps["drop_groups"] = FakeRows(
        obj, {key(obj, PURGE, reason=70): (6, 1, 1, 1), key(obj, UDP): (2, 1, 1, 1)}
    )
    engine.report(writer, True)
    assert (engine.shown, engine.hidden) == (2, 6)
    assert [rec.get("reason") for rec in records(stream, "drop_group")] == ["no_socket", None]


def test_stack_is_sent_once_before_its_row():
    engine, obj, writer, stream = make(group_by=("stack",))
    obj.maps["drop_stacks"] = FakeMap({0xAB: struct.pack("<4Q", 0xFFFFFFFF81000210, UDP, NFT, 0)})
    obj.maps["drop_groups"] = FakeRows(obj, {key(obj, UDP, stack=0xAB): (2, 1, 1, 1)})
    engine.report(writer, False)
    engine.report(writer, True)
    (stack,) = records(stream, "stack")
    assert stack["id"] == "00000000000000ab"
    assert [frame["function"] for frame in stack["frames"]] == ["__udp4_lib_rcv", "nft_do_chain"]
    assert {rec["stack_id"] for rec in records(stream, "drop_group") if not rec.get("other")} == {
        stack["id"]
    }


# -- totals


def test_totals_by_reason_and_steps():
    engine, obj, _, _ = make(explain=True)
    sizes = obj.types.enum("nt_drop_size")
    openvswitch = sizes["NT_DROP_CORE"] + sizes["NT_DROP_SUBSYS"] + 3
    steps = obj.types.enum("nt_drop_step")
    rejects = obj.types.enum("nt_reject")
    obj.maps["drop_totals"] = FakeMap(
        {
            3: [(5, 100), (2, 10)],
            openvswitch: [(4, 1), (0, 0)],
            sizes["NT_DROP_REASONS"] - 1: [(1, 1), (0, 0)],
            9: [(0, 0), (0, 0)],
        }
    )
    obj.maps["drop_steps"] = FakeMap(
        {
            steps["NT_STEP_SEEN"]: 20,
            steps["NT_STEP_MATCHED"]: 12,
            steps["NT_STEP_FILTER"] + rejects["NT_REJECT_PORT"]: 8,
        }
    )
    totals = engine.totals()
    assert totals["reasons"] == {"no_socket": 7, "openvswitch:meter": 4, "other": 1}
    assert totals["counts"]["matched"] == 12
    assert (totals["explain"]["seen"], totals["explain"]["filter_port"]) == (20, 8)
    assert "filter_max" not in totals["explain"]


def test_without_reasons_there_is_one_total():
    engine, obj, _, _ = make(names={})
    obj.maps["drop_totals"] = FakeMap({0: [(5, 100)]})
    assert engine.totals()["reasons"] == {"none": 5}


# -- places


def test_return_address_behind_the_last_instruction_belongs_to_the_caller():
    frame = Places(HostLookups(None)).frame(0xFFFFFFFF81002000)
    assert (frame["function"], frame["offset"]) == ("__udp4_lib_rcv", 0x1000)


def test_stack_without_the_place_begins_behind_the_free_functions():
    raw = struct.pack("<3Q", 0xFFFFFFFF81000210, 0xFFFFFFFF81000010, XMIT)
    assert [frame["function"] for frame in Places(HostLookups(None)).stack(raw, 0)] == [
        "__dev_queue_xmit"
    ]
