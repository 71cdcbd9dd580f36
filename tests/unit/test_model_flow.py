# SPDX-License-Identifier: GPL-2.0-only
import ipaddress
import random

import pytest

from ntools.model import flow as f
from ntools.model.flow import Flow
from ntools.model.packet import PacketDecoder

V4A, V4B = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2))
V6A = bytes.fromhex("fd090000000000000000000000000001")


def pad(address):
    return address.ljust(16, b"\0")


def test_addresses_agree_with_ipaddress():
    rnd = random.Random(1)
    for size, kind in ((4, ipaddress.IPv4Address), (16, ipaddress.IPv6Address)):
        for _ in range(500):
            data = bytes(rnd.choice((0, 0, rnd.randrange(256))) for _ in range(size))
            text = f.address_text(data)
            assert f.parse_address(text) == data
            assert kind(text).packed == data
    with pytest.raises(ValueError):
        f.address_text(b"12345")


def test_networks_agree_with_ipaddress():
    rnd = random.Random(2)
    for size in (4, 16):
        for _ in range(300):
            data = rnd.getrandbits(8 * size).to_bytes(size, "big")
            bits = rnd.randrange(8 * size + 1)
            ours = f.parse_network(f"{f.address_text(data)}/{bits}")
            theirs = ipaddress.ip_network((data, bits), strict=False)
            assert ours.address == theirs.network_address.packed
            assert ours.mask == theirs.netmask.packed
            assert ours.prefix_bits == bits
            assert ours.family == theirs.version
            assert ours.contains(data)
            if bits:
                flipped = bytes((data[0] ^ 0x80,)) + data[1:]
                assert not ours.contains(flipped)
            assert not ours.contains(b"\0" * (20 - size))


def test_network_text():
    assert str(f.parse_network("10.0.0.7/24")) == "10.0.0.0/24"
    assert str(f.parse_network("10.0.0.7")) == "10.0.0.7"
    assert str(f.parse_network("fd09::1/64")) == "fd09::/64"


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0", "10.0.0.256", "10.0.0.01", "10.0.0.1/33", "10.0.0.1/", "10.0.0.1/-1",
     "10.0.0.1/ 8", "1.2.3.4.5", "fd09::1::2", "fd09::1/129", "host", "::1%lo", "10.0.0.٣",
     "fd09::\0", "10.0.0.1/24/8"],
)  # fmt: skip
def test_bad_networks_are_named(text):
    with pytest.raises(ValueError, match="'"):
        f.parse_network(text)


@pytest.mark.parametrize("text", ["0", "65536", "-1", "http", "", "080", "1e3", "²"])
def test_bad_ports(text):
    with pytest.raises(ValueError):
        f.parse_port(text)


def test_ports():
    assert [f.parse_port(text) for text in ("1", "443", "65535")] == [1, 443, 65535]


def test_macs():
    mac = bytes.fromhex("525400090002")
    assert f.mac_text(mac) == "52:54:00:09:00:02"
    for text in ("52:54:00:09:00:02", "52-54-0-9-0-2", "52:54:00:09:00:02".upper()):
        assert f.parse_mac(text) == mac
    for text in ("", "52:54:00:09:00", "52:54:00:09:00:0g", "52:54:00:09:00:002", "+1:0:0:0:0:0"):
        with pytest.raises(ValueError):
            f.parse_mac(text)


def test_protocols():
    assert f.protocol_name(6) == "tcp"
    assert f.protocol_name(87) == "unknown(87)"
    assert f.parse_protocol("TCP") == (6,)
    assert f.parse_protocol("icmp") == (1, 58)
    assert f.parse_protocol("icmpv6") == (58,)
    assert f.parse_protocol("all") == ()
    assert f.parse_protocol("255") == (255,)
    for text in ("256", "tpc", "", "-1"):
        with pytest.raises(ValueError):
            f.parse_protocol(text)


def test_frame_types():
    assert f.eth_type_name(0x806) == "arp"
    assert f.eth_type_name(0x88B5) == "0x88b5"
    assert f.parse_eth_type("LLDP") == 0x88CC
    assert f.parse_eth_type("0x88B5") == 0x88B5
    for text in ("0x10000", "88b5", "0x", "frame", "0x-1"):
        with pytest.raises(ValueError):
            f.parse_eth_type(text)


def test_tcp_flags():
    assert f.tcp_flag_names(0x12) == ("syn", "ack")
    assert f.tcp_flag_names(0) == ()
    assert f.tcp_flag_names(0xFF) == ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")


def test_tcp_flow():
    flow = Flow.from_kernel((pad(V4A), pad(V4B), 41000, 443, 0x800, 4, 6))
    assert str(flow) == "tcp 192.0.2.1:41000 > 192.0.2.2:443"
    assert str(flow.reversed()) == "tcp 192.0.2.2:443 > 192.0.2.1:41000"
    assert flow.reversed().reversed() == flow
    assert flow.fields() == {
        "family": "ipv4",
        "protocol": "tcp",
        "src_ip": "192.0.2.1",
        "dst_ip": "192.0.2.2",
        "src_port": 41000,
        "dst_port": 443,
    }


def test_flow_without_ports_has_none():
    later_fragment = Flow.from_kernel((pad(V4A), pad(V4B), 0, 0, 0x800, 4, 17))
    assert "src_port" not in later_fragment.fields()
    assert str(later_fragment) == "udp 192.0.2.1 > 192.0.2.2"


def test_ipv6_flow():
    flow = Flow.from_kernel((V6A, V6A, 53, 5353, 0x86DD, 6, 17))
    assert str(flow) == "udp [fd09::1]:53 > [fd09::1]:5353"


def test_icmp_flow_has_no_ports():
    ping = Flow.from_kernel((pad(V4A), pad(V4B), 8 << 8, 77, 0x800, 4, 1))
    assert ping.fields()["icmp_id"] == 77
    assert "src_port" not in ping.fields()
    assert str(ping) == "icmp 192.0.2.1 > 192.0.2.2 id 77"
    assert ping.reversed() == Flow(4, 1, V4B, V4A, 8 << 8, 77, 0x800)
    unreachable = Flow.from_kernel((pad(V4A), pad(V4B), 3 << 8 | 4, 0, 0x800, 4, 1))
    assert str(unreachable) == "icmp 192.0.2.1 > 192.0.2.2 type 3 code 4"
    assert "icmp_id" not in unreachable.fields()


def test_flows_that_are_not_ip():
    arp = Flow.from_kernel((pad(V4A), pad(V4B), 0, 0, 0x806, 0, 0))
    assert str(arp) == "arp 192.0.2.1 > 192.0.2.2"
    assert arp.fields() == {"eth_type": "arp", "src_ip": "192.0.2.1", "dst_ip": "192.0.2.2"}
    assert str(Flow.from_kernel((pad(b""), pad(b""), 0, 0, 0x88B5, 0, 0))) == "0x88b5"
    assert str(Flow(0, 0, b"", b"")) == "unknown"


FLAGS = {name: 1 << bit for bit, name in enumerate(
    ("NT_PKT_L2", "NT_PKT_L3", "NT_PKT_L4", "NT_PKT_ICMP", "NT_PKT_PAYLOAD", "NT_PKT_FRAG",
     "NT_PKT_MF", "NT_PKT_VLAN_ACC", "NT_PKT_TUNNEL"))}  # fmt: skip
NAMES = (
    "ts", "pkt__tuple__src", "pkt__tuple__dst", "pkt__tuple__src_port", "pkt__tuple__dst_port",
    "pkt__tuple__eth_proto", "pkt__tuple__family", "pkt__tuple__protocol", "pkt__smac", "pkt__dmac",
    "pkt__vlan_id", "pkt__inner_vlan_id", "pkt__flags", "pkt__ip_id", "pkt__seq", "pkt__ack",
    "pkt__frag_off", "pkt__icmp_id", "pkt__icmp_seq", "pkt__icmp_type", "pkt__icmp_code",
    "pkt__tcp_flags", "pkt__ttl", "pkt__arp_op", "pkt__tunnel_id", "pkt__vlan_pcp",
)  # fmt: skip


def decode(*flags, **values):
    mac = bytes.fromhex("525400090002")
    default = {"src": pad(V4A), "dst": pad(V4B), "smac": mac, "dmac": mac,
               "vlan_id": 0xFFFF, "inner_vlan_id": 0xFFFF}  # fmt: skip
    default.update(values)
    default["flags"] = sum(FLAGS[f"NT_PKT_{flag}"] for flag in flags)
    event = [default.get(name.split("__")[-1], 0) for name in NAMES]
    return PacketDecoder(NAMES, FLAGS).fields(event)


def test_packet_fields_of_tcp():
    fields = decode("L2", "L3", "L4", family=4, protocol=6, eth_proto=0x800, src_port=1,
                    dst_port=2, seq=2**32 - 1, tcp_flags=2, ttl=64, vlan_id=0)  # fmt: skip
    assert (fields["tcp_seq"], fields["tcp_flags"], fields["ttl"]) == (2**32 - 1, ("syn",), 64)
    assert fields["eth_src"] == "52:54:00:09:00:02"
    assert fields["vlan_id"] == 0
    assert "frag_offset_bytes" not in fields
    assert fields["ip_id"] is None


def test_packet_fields_of_a_later_fragment():
    fields = decode("L3", "FRAG", family=4, protocol=6, frag_off=1480, ip_id=9)
    assert (fields["frag_offset_bytes"], fields["more_fragments"]) == (1480, False)
    assert not {"tcp_seq", "src_port", "eth_src", "vlan_id"} & set(fields)


def test_packet_fields_of_echo_reply_with_id_0():
    fields = decode("L3", "L4", "ICMP", family=4, protocol=1, icmp_seq=5)
    assert (fields["icmp_type"], fields["icmp_id"], fields["icmp_seq"]) == (0, 0, 5)


def test_packet_fields_of_arp_and_of_what_was_not_read():
    assert decode("L3", eth_proto=0x806, arp_op=2)["arp_op"] == "reply"
    assert decode(eth_proto=0x88B5, family=0) == {"eth_type": "0x88b5"}
    assert decode() == {}


def test_an_event_without_packet_is_refused():
    with pytest.raises(KeyError):
        PacketDecoder(("ts",), FLAGS)
