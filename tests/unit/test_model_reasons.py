# SPDX-License-Identifier: GPL-2.0-only
import json
from pathlib import Path

import pytest

from ntools.model import reasons
from ntools.model.reasons import ReasonNames, classify, derive, explain, place

DATA = Path(reasons.__file__).parent / "data"
PLACES = json.loads((DATA / "places.json").read_text())


@pytest.mark.parametrize(
    "reason", ["netfilter_drop", "NETFILTER_DROP", "full_ring", "fq_band_limit", "proto_mem",
               "openvswitch:meter", "qdisc:overlimit", "qdisc:one_of_the_future", "ttl"],
)  # fmt: skip
def test_explanations(reason):
    meaning, next_step = explain(reason)
    assert meaning and next_step
    assert meaning[0].islower()


def test_no_explanation():
    assert explain("unknown(87)") is None


def test_subsystem_text_is_the_fallback_only():
    assert explain("openvswitch:meter") != explain("openvswitch:new_one") is not None


def test_no_reason_is_explained_twice():
    rows = json.loads((DATA / "reasons.json").read_text())["explanations"]
    names = [name for row in rows for name in row["reasons"]]
    assert len(names) == len(set(names))


def test_every_derived_reason_is_explained():
    for row in PLACES["derived"]:
        assert row["functions"]
        for case in row["cases"]:
            for reason in [case["reason"], *case.get("also", [])]:
                assert explain(reason), reason


def test_facts_of_the_tables_are_known():
    rules = [rule for row in PLACES["classes"] for rule in row["rules"]]
    cases = [case for row in PLACES["derived"] for case in row["cases"]]
    used = {
        fact for rule in rules + cases for fact in rule.get("needs", []) + rule.get("unless", [])
    }
    assert used == set(reasons.FACTS)
    assert [row["class"] for row in PLACES["classes"]] + ["drop"] == list(reasons.CLASSES)


@pytest.mark.parametrize(
    "frames, index",
    [
        (["nf_hook_slow", "ip_local_deliver"], 0),
        (["kfree_skb_list_reason", "__dev_queue_xmit", "ip_finish_output2"], 1),
        (["bpf_prog_1234_drop", "bpf_trace_run4", "__traceiter_kfree_skb", "kfree_skb_reason",
          "kfree_skb_list_reason.part.0", "__dev_queue_xmit"], 5),
        (["sk_skb_reason_drop"], 1),
        ([], 0),
    ],
)  # fmt: skip
def test_place(frames, index):
    assert place(frames) == index


@pytest.mark.parametrize(
    "reason, function, facts, name, hidden",
    [
        ("not_specified", "skb_release_data", (), "fraglist-part", True),
        (None, "skb_release_data", (), "fraglist-part", True),
        ("no_socket", "icmp_rcv", ("echo_reply",), "icmp-delivered", True),
        ("no_socket", "ping_rcv", ("echo_reply", "delivered"), "icmp-delivered", True),
        ("no_socket", "icmp_rcv", ("echo_reply", "not_delivered"), "drop", False),
        # Without reasons a bad checksum ends in the same place: only a clone seen proves it.
        (None, "icmp_rcv", ("echo_reply", "delivered"), "icmp-delivered", True),
        (None, "icmp_rcv", ("echo_reply",), "drop", False),
        ("icmp_csum", "icmp_rcv", ("echo_reply", "delivered"), "drop", False),
        ("not_specified", "icmpv6_rcv", ("echo_request",), "icmp-delivered", True),
        ("not_specified", "icmp_rcv", ("echo_request",), "drop", False),
        ("queue_purge", "anything", (), "purge", True),
        ("not_specified", "udp_destruct_common", (), "purge", True),
        (None, "skb_queue_purge_reason", (), "purge", True),
        (None, "dev_deactivate_many", (), "qdisc-reset", True),
        (None, "unix_stream_read_generic", (), "local-ipc", True),
        ("not_specified", "somewhere", ("no_protocol", "no_device"), "local-ipc", True),
        ("not_specified", "somewhere", ("no_protocol",), "drop", False),
        ("packet_sock_error", "tpacket_rcv", (), "tap-clone", True),
        ("otherhost", "ip_rcv_core", (), "not-for-us", True),
        (None, "ip_rcv_core.isra.0", ("other_host",), "not-for-us", True),
        (None, "ip_rcv_core", (), "drop", False),
        ("unhandled_proto", "__netif_receive_skb_core.constprop.0", (), "no-handler", False),
        (None, "__netif_receive_skb_core", (), "no-handler", False),
        ("ptype_absent", "__netif_receive_skb_core", (), "drop", False),
        ("tcp_rfc7323_paws_ack", "tcp_validate_incoming", (), "tcp-protocol", False),
        ("NETFILTER_DROP", "nf_hook_slow", (), "drop", False),
        (None, None, (), "drop", False),
        (None, "tcp_v4_rcv", (), "drop", False),
    ],
)
def test_classes(reason, function, facts, name, hidden):
    found = classify(reason, function, set(facts))
    assert (found.name, found.hidden) == (name, hidden)
    assert found.meaning


@pytest.mark.parametrize(
    "function, facts, reason",
    [
        ("ip_rcv_core", ("other_host", "bad_checksum"), "otherhost"),
        ("ip_rcv_core", ("bad_checksum",), "ip_csum"),
        ("ip_rcv", (), "ip_inhdr"),
        ("ip_rcv_finish_core.constprop.0", (), "ip_innoroutes"),
        ("ip_route_input_noref", (), "ip_innoroutes"),
        ("ip_forward", ("ttl_expired",), "ttl"),
        ("ip_forward", ("longer_than_mtu",), "pkt_too_big"),
        ("nf_hook_slow", (), "netfilter_drop"),
        ("tcp_v4_rcv", (), "no_socket"),
        ("tcp_validate_incoming", ("syn",), "tcp_invalid_syn"),
        ("__udp4_lib_rcv", (), "no_socket"),
        ("udp_queue_rcv_one_skb", (), "socket_rcvbuff"),
        ("icmp_rcv", ("bad_checksum",), "icmp_csum"),
        ("sock_queue_rcv_skb_reason", (), "socket_rcvbuff"),
        ("__dev_queue_xmit", (), "qdisc_drop"),
        ("tun_net_xmit", (), "full_ring"),
        ("ip_expire", (), "frag_reasm_timeout"),
        ("ovs_vport_send", (), "openvswitch:out_mtu"),
        ("net_tx_action", (), "deferred_free"),
    ],
)
def test_derived_reasons(function, facts, reason):
    assert derive(function, set(facts)).reason == reason


def test_nothing_to_derive():
    assert derive("ip_forward") is None
    assert derive("some_driver_poll") is None


# As in the BTF of a kernel with subsystems.
ENUMS = {
    "skb_drop_reason": {
        0: "SKB_NOT_DROPPED_YET", 1: "SKB_CONSUMED", 2: "SKB_DROP_REASON_NOT_SPECIFIED",
        3: "SKB_DROP_REASON_NO_SOCKET", 64: "SKB_DROP_REASON_QDISC_DROP",
        120: "SKB_DROP_REASON_MAX", 0xFFFF0000: "SKB_DROP_REASON_SUBSYS_MASK",
    },
    "ovs_drop_reason": {
        0x30000: "__OVS_DROP_REASON", 0x30001: "OVS_DROP_LAST_ACTION", 0x30005: "OVS_DROP_METER",
        0x30010: "OVS_DROP_MAX",
    },
}  # fmt: skip


def test_names_of_the_running_kernel():
    names = ReasonNames(lambda enum: ENUMS.get(enum, {}))
    assert names
    assert names.name(3) == "no_socket"
    assert names.name(1) == "consumed"
    assert names.name(64) == "qdisc_drop"
    assert names.name(0x30005) == "openvswitch:meter"
    for code in (120, 0x30000, 0x30010, 0xFFFF0000, 87):
        assert names.name(code) == f"unknown({code})"
    assert names.codes("NO_SOCKET") == {3}
    assert names.codes("openvswitch:*") == {0x30001, 0x30005}
    assert names.codes("OPENVSWITCH:meter") == {0x30005}
    with pytest.raises(ValueError, match="'full_ring'"):
        names.codes("full_ring")


def test_a_kernel_without_reasons():
    names = ReasonNames(lambda enum: {})
    assert not names
    assert names.name(0) == "unknown(0)"
