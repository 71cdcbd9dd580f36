# SPDX-License-Identifier: GPL-2.0-only
"""The policy of the governor, second by second, without a kernel."""

from __future__ import annotations

import pytest

from ntools.engine.governor import Ceilings, Governor, Load

CALM = Load(events_per_s=10, bpf_pct=0.01, user_cpu_pct=0.1, memory_pct=50.0)
BUSY = CALM._replace(user_cpu_pct=4.0)  # above half, below the limit
OVER = CALM._replace(user_cpu_pct=9.0)
FLOOD = CALM._replace(events_per_s=50000.0)
LIMITS = Ceilings(max_overhead=1.0, max_cpu=5.0, max_events=2000)


def feed(governor, load, seconds):
    """(second, action name, cause, 1 of N, events) of all actions."""
    found = []
    for second in range(1, seconds + 1):
        for action in governor.observe(load):
            found.append((second, action.name, action.cause, 1 << action.shift, action.events))
            if action.name == "stop":
                return found
    return found


def names(found):
    return [row[1] for row in found]


def test_calm_run_is_left_alone():
    assert feed(Governor(LIMITS, True), CALM, 200) == []


def test_warns_once_at_half_of_a_limit():
    governor = Governor(LIMITS, True)
    assert feed(governor, BUSY, 100) == [(2, "warn", "max_cpu", 1, True)]


def test_one_busy_second_is_no_reason():
    governor = Governor(LIMITS, True)
    for _ in range(10):
        assert feed(governor, OVER, 1) == []
        assert feed(governor, CALM, 1) == []


def test_warns_again_after_calm():
    governor = Governor(LIMITS, True)
    assert names(feed(governor, BUSY, 5)) == ["warn"]
    assert feed(governor, CALM, 30) == []
    assert names(feed(governor, BUSY, 5)) == ["warn"]


@pytest.mark.parametrize(
    "load, cause",
    [
        (OVER, "max_cpu"),
        (CALM._replace(bpf_pct=1.5), "max_overhead"),
    ],
)
def test_all_steps_up_to_the_stop(load, cause):
    assert feed(Governor(LIMITS, True), load, 60) == [
        (2, "sample", cause, 2, True),
        (4, "sample", cause, 4, True),
        (6, "sample", cause, 8, True),
        (8, "degrade", cause, 8, False),
        (10, "stop", cause, 8, False),
    ]


def test_demand_alone_ends_with_sampling():
    """The bucket holds what goes out: the list is cut, but neither switched off nor stopped."""
    assert feed(Governor(LIMITS, True), FLOOD, 600) == [
        (2, "sample", "max_events", 2, True),
        (4, "sample", "max_events", 4, True),
        (6, "sample", "max_events", 8, True),
        (8, "warn", "max_events", 8, True),
    ]


def test_demand_and_cost_are_told_apart():
    governor = Governor(LIMITS, True)
    assert len(feed(governor, FLOOD, 20)) == 4
    both = FLOOD._replace(user_cpu_pct=9.0)
    assert [row[:3] for row in feed(governor, both, 20)] == [
        (2, "degrade", "max_cpu"),
        (4, "stop", "max_cpu"),
    ]


def test_sampling_stays_at_one_in_64():
    governor = Governor(LIMITS, True, base_shift=5)
    found = feed(governor, OVER, 60)
    assert [row[1:] for row in found] == [
        ("sample", "max_cpu", 64, True),
        ("degrade", "max_cpu", 64, False),
        ("stop", "max_cpu", 64, False),
    ]


def test_sampling_asked_for_is_kept():
    governor = Governor(LIMITS, True, base_shift=8)
    assert governor.shift == 8
    assert names(feed(governor, OVER, 60)) == ["degrade", "stop"]


def test_recovers_one_step_at_a_time_and_three_times():
    governor = Governor(LIMITS, True)
    assert names(feed(governor, OVER, 8)) == ["sample"] * 3 + ["degrade"]
    found = feed(governor, CALM, 200)
    assert found == [
        (30, "recover", "calm", 8, True),
        (60, "recover", "calm", 4, True),
        (90, "recover", "calm", 2, True),
    ]
    assert not governor.calm


def test_recovery_needs_thirty_seconds_in_a_row():
    governor = Governor(LIMITS, True)
    assert names(feed(governor, OVER, 2)) == ["sample"]
    assert feed(governor, CALM, 29) == []
    assert feed(governor, BUSY, 1) == []
    assert feed(governor, CALM, 29) == []
    assert names(feed(governor, CALM, 1)) == ["recover"]
    assert governor.calm and governor.shift == 0


def test_sways_at_most_three_times():
    governor = Governor(LIMITS, True)
    found = []
    for _ in range(20):
        found += names(feed(governor, OVER, 2)) + names(feed(governor, CALM, 31))
    assert found.count("recover") == 3
    assert found[-1] == "stop" or found.count("stop") > 0


@pytest.mark.parametrize("has_events", [True, False])
def test_losses_stop_after_ten_seconds(has_events):
    governor = Governor(LIMITS, has_events)
    losing = CALM._replace(lost_pct=11.0)
    assert feed(governor, losing, 9) == []
    assert feed(governor, CALM, 1) == []
    assert [row[:3] for row in feed(governor, losing, 20)] == [(10, "stop", "lost")]


def test_few_losses_do_not():
    assert feed(Governor(LIMITS, True), CALM._replace(lost_pct=10.0), 100) == []


def test_no_memory_stops_at_once():
    short = CALM._replace(memory_pct=2.9)
    assert [row[:3] for row in feed(Governor(LIMITS, False), short, 5)] == [(1, "stop", "memory")]
    assert feed(Governor(LIMITS, False), CALM._replace(memory_pct=None), 5) == []


def test_without_events_it_can_only_wait_and_stop():
    found = feed(Governor(LIMITS, False), OVER, 60)
    assert [row[:3] for row in found] == [(2, "warn", "max_cpu"), (10, "stop", "max_cpu")]
    assert feed(Governor(LIMITS, False), FLOOD, 60) == [(2, "warn", "max_events", 1, True)]


def test_no_limit():
    free = Ceilings(max_overhead=0, max_cpu=0, max_events=0)
    wild = Load(events_per_s=1e9, bpf_pct=100.0, user_cpu_pct=100.0)
    assert feed(Governor(free, True), wild, 100) == []


def test_unknown_bpf_cost_is_no_reason():
    assert feed(Governor(LIMITS, True), CALM._replace(bpf_pct=None), 100) == []


def test_forgets_what_was_before_a_gap():
    governor = Governor(LIMITS, True)
    assert feed(governor, OVER, 1) == []
    governor.forget()
    assert feed(governor, OVER, 1) == []
    assert names(feed(governor, OVER, 1)) == ["sample"]
