# SPDX-License-Identifier: GPL-2.0-only
"""Times somebody types for a replay."""

from __future__ import annotations

import pytest

from ntools.model.clock import Moment, parse_moment, utc_text


@pytest.mark.parametrize(
    "text, moment",
    [
        ("+0", Moment(True, 0)),
        ("+12.5", Moment(True, 12_500_000_000)),
        ("+0.000000001", Moment(True, 1)),
        ("1970-01-01T00:00:01", Moment(False, 10**9)),
        ("1970-01-01 00:00:01.25Z", Moment(False, 1_250_000_000)),
        ("2026-01-31T08:15:00Z", Moment(False, 1769847300 * 10**9)),
    ],
)
def test_moments(text, moment):
    assert parse_moment(text) == moment


def test_moment_is_what_the_output_shows():
    assert parse_moment(utc_text(1769847300_123456000)) == Moment(False, 1769847300_123456000)


@pytest.mark.parametrize(
    "text", ["", "12", "-1", "+", "+1.", "+1e3", "2026-13-01T00:00:00", "2026-02-30T00:00:00",
             "2026-01-31", "2026-01-31T08:15", "2026-01-31T25:00:00", "+١", "+1 ", "now"]
)  # fmt: skip
def test_no_moments(text):
    with pytest.raises(ValueError, match="is not a time"):
        parse_moment(text)
