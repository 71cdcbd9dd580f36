# SPDX-License-Identifier: GPL-2.0-only
"""Shares of the budget, and the bucket on this side of the channel."""

from __future__ import annotations

import random

import pytest

from ntools.engine.budget import Bucket, identity, online_cpus, rate_of, shares


@pytest.mark.parametrize(
    "demand",
    [[0, 0, 0, 0], [100, 0, 0, 0], [50000, 0, 0, 0], [50000, 50000, 1, 0], [300, 300, 300, 300]],
)
def test_shares_are_the_whole_budget(demand):
    found = shares(2000, demand)
    assert sum(found) == pytest.approx(2000)
    assert min(found) >= 2000 * 0.1 / len(demand) * 0.99


def test_who_asks_little_gets_it_and_more():
    assert shares(2000, [100, 1000])[0] >= 125
    assert shares(2000, [100, 1000])[1] >= 1250


def test_who_asks_most_gets_most():
    found = shares(2000, [90000, 10000, 0, 0])
    assert found[0] == pytest.approx(0.9 * 0.9 * 2000 + 50)
    assert found[2] == found[3] == pytest.approx(50)


def test_idle_takers_get_nothing_until_they_ask():
    assert shares(100, [0, 0, 0, 0], [False, False, True, True]) == [50, 50, 0, 0]
    assert shares(100, [0, 0, 8, 0], [False, False, True, True])[2] > 10
    assert shares(100, [0], [True]) == [0]


def test_rates_are_those_of_the_kernel():
    rate, burst, window = rate_of(500, 2000)
    assert (rate, burst) == (500_000, 500 * 10**12)
    assert window == 10**9
    rate, burst, window = rate_of(0.25, 1)  # less than one a second: room for one all the same
    assert (rate, burst, window) == (250, 10**12, 4 * 10**9)
    assert rate_of(1e9, 1e9) == rate_of(5, 0) == (0, 0, 0)
    for per_s in (0.001, 1, 77, 1e6 - 1):
        rate, burst, window = rate_of(per_s, 1e6 - 1)
        assert rate * window + burst < 1 << 63  # nothing in the program leaves 64 bits


def test_online_cpus():
    assert online_cpus("0-2,5\n", 8) == [True, True, True, False, False, True, False, False]
    assert online_cpus("", 2) == [False, False]


def test_bucket_never_exceeds_a_burst_more():
    random.seed(3)
    bucket, passed, now = Bucket(100.0, now=1000.0), [], 1000.0
    for _ in range(20000):
        now += random.expovariate(2000)
        if bucket.passes(0, now):
            passed.append(now)
    assert bucket.wanted == 20000 == len(passed) + bucket.cut
    for start in passed:
        assert sum(start <= at < start + 1.0 for at in passed) <= 201
    assert len(passed) >= 100 * (now - 1000.0) * 0.95


def test_bucket_that_is_given_more_is_not_found_filled():
    bucket = Bucket(1.0, now=100.0)
    bucket.change(1000.0, 200.0)
    assert sum(bucket.passes(0, 200.0) for _ in range(50)) == 1
    assert sum(bucket.passes(0, 200.5) for _ in range(1000)) == 500


def test_bucket_samples_and_switches_off():
    bucket = Bucket()
    bucket.shift = 2
    assert bucket.passes((1 << 62) - 1) and not bucket.passes(1 << 62)
    bucket.off = True
    assert not bucket.passes(0)
    assert (bucket.wanted, bucket.sampled_out, bucket.switched_off, bucket.demand) == (3, 1, 1, 1)


def test_identities_are_spread_evenly():
    numbers = [identity(bytes(40), packet) for packet in range(4096)]
    assert len(set(numbers)) == 4096
    chosen = sum(number >> 61 == 0 for number in numbers)
    assert 400 < chosen < 630  # 1/8 of them is 512
