# SPDX-License-Identifier: GPL-2.0-only
"""The totals of a test run: nothing that went wrong may look like a pass."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "run.py"


@pytest.fixture(scope="module")
def run():
    specification = importlib.util.spec_from_file_location("ntools_test_run", PATH)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def suite(run, tmp_path, monkeypatch):
    """A function that runs one part made of the given test source."""
    monkeypatch.setattr(run, "TESTS", tmp_path / "tests")
    monkeypatch.setattr(run, "REPORTS", tmp_path)

    def run_source(part, text):
        directory = tmp_path / "tests" / part
        directory.mkdir(parents=True)
        (directory / ("matrix.py" if part == "vm" else "test_it.py")).write_text(text)
        result = run.run_part(part, None)
        return result.passed, result.failed, result.skipped, result.notes

    return run_source


def test_counts_and_gives_reasons(suite):
    text = """
import pytest
def test_good(): pass
def test_bad(): assert False
def test_skip(): pytest.skip("no BTF")
def test_skip_too(): pytest.skip("no BTF")
@pytest.fixture
def broken(): raise OSError
def test_error(broken): pass
"""
    assert suite("unit", text) == (1, 2, 2, ["skipped 2: no BTF"])


def test_part_that_runs_nothing_fails(suite):
    assert suite("unit", "")[:3] == (0, 1, 0)
    passed, failed, skipped, notes = suite(
        "object", "import pytest\ndef test(): pytest.skip('all')"
    )
    assert (passed, failed, skipped) == (0, 1, 1)
    assert "ran nothing" in notes


def test_part_that_cannot_be_read_fails(suite):
    assert suite("unit", "import no_such_module")[1] == 1


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("print('3 passed, 0 failed, 1 skipped')", (3, 0, 1)),
        ("print('3 passed, 2 failed, 1 skipped'); exit(1)", (3, 2, 1)),
        ("print('3 passed, 0 failed, 1 skipped'); exit(1)", (3, 1, 1)),
        ("print('0 passed, 0 failed, 9 skipped')", (0, 1, 9)),
        ("exit(2)", (0, 1, 0)),
        ("print('all is well')", (0, 1, 0)),
    ],
)
def test_last_line_of_the_matrix_counts(suite, text, counts):
    assert suite("vm", text)[:3] == counts


def test_hanging_part_is_ended(suite, run, monkeypatch):
    monkeypatch.setitem(run.LIMITS, "vm", 1)
    text = "import time\nprint('5 passed, 0 failed, 0 skipped', flush=True)\ntime.sleep(60)"
    passed, failed, _, notes = suite("vm", text)
    assert (passed, failed) == (5, 1)
    assert notes == ["ended after 1 s"]
