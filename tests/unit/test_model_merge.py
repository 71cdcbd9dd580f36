# SPDX-License-Identifier: GPL-2.0-only
"""Two recordings of the same packets."""

from __future__ import annotations

import pytest

from ntools.model.merge import ECHO_VERDICTS, Host, merge

MS = 1_000_000
STAGES = ("req_rx", "req_tx", "rep_rx", "rep_tx")


def echo(seq, times, status="complete", **more):
    """An echo; times in ms, None: not reached."""
    stages = {name: {"ts_ns": int(at * MS)} for name, at in zip(STAGES, times) if at is not None}
    return {"ts_ns": int(times[0] * MS), "src_ip": "10.0.0.1", "dst_ip": "10.0.0.2", "icmp_id": 7,
            "icmp_seq": seq, "status": status, "stages": stages, **more}  # fmt: skip


def host(*units, offset=0, lost=None, end=100000):
    return Host(units, offset * MS, (offset - 100) * MS, (offset + end) * MS, lost or {})


def verdicts(a, b, **options):
    return [unit.verdict for unit in merge(a, b, **options).units]


@pytest.mark.parametrize(
    "near, far, verdict",
    [
        ((10, None, None, None), None, "a_internal_req"),
        ((10, 11, None, None), None, "network_a_to_b"),
        ((10, 11, None, None), (12, None, None, None), "b_internal_req"),
        ((10, 11, None, None), (12, 13, None, None), "receiver_no_reply"),
        ((10, 11, None, None), (12, 13, 14, None), "b_internal_rep"),
        ((10, 11, None, None), (12, 13, 14, 15), "network_b_to_a"),
        ((10, 11, 16, None), (12, 13, 14, 15), "a_internal_rep"),
        ((10, 11, 16, 17), (12, 13, 14, 15), "complete"),
    ],
)
def test_verdict_is_the_first_stage_that_is_missing(near, far, verdict):
    b = host() if far is None else host(echo(1, far))
    assert verdicts(host(echo(1, near)), b) == [verdict]
    assert verdict in ECHO_VERDICTS


def test_clock_of_b_is_found_and_taken_out():
    a = [echo(n, (10 * n, 10 * n + 1, 10 * n + 6, 10 * n + 7)) for n in range(1, 30)]
    b = [echo(n, (10 * n + 2, 10 * n + 3, 10 * n + 4, 10 * n + 5)) for n in range(1, 30)]
    found = merge(host(*a), host(*b, offset=750))
    assert (found.clock.low_ns, found.clock.high_ns) == (749 * MS, 751 * MS)
    assert (found.clock.offset_ns, found.clock.error_ns) == (750 * MS, MS)
    assert found.counts == {"complete": 29}


def test_same_packet_twice_is_two():
    a = host(echo(1, (10, 11, 16, 17)), echo(1, (50, 51, None, None)))
    b = host(echo(1, (12, 13, 14, 15)))
    assert verdicts(a, b) == ["complete", "network_a_to_b"]


def test_what_was_not_recorded_is_not_lost():
    a = host(echo(1, (10, 11, None, None)), echo(2, (20, None, None, None)))
    assert verdicts(a, host(lost={"ring_full": 3})) == ["undecided", "a_internal_req"]


def test_run_that_ended_decides_nothing():
    assert verdicts(host(echo(1, (10, 11, None, None), "timeout")), host()) == ["undecided"]


def test_edges():
    a = host(echo(1, (10, 11, None, None)), echo(2, (5000, 5001, None, None)))
    assert verdicts(a, host(), guard_ns=2000 * MS) == ["edge", "network_a_to_b"]


def test_only_b():
    assert verdicts(host(), host(echo(1, (12, 13, 14, 15)))) == ["only_b"]


def test_translated_at_a():
    nat = {"src_ip": "192.0.2.1", "dst_ip": "10.0.0.2", "icmp_id": 99}
    a = host(echo(1, (10, 11, 16, 17), nat=nat))
    b = host(echo(1, (12, 13, 14, 15), src_ip="192.0.2.1", icmp_id=99))
    assert verdicts(a, b) == ["complete"]
