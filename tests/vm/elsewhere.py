# SPDX-License-Identifier: GPL-2.0-only
"""Recordings made in a guest, replayed on the machine that runs the guests.

That machine has another kernel, another namespace, and for some guests another architecture: the
replay must not need anything of the host it was recorded on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from lab.replay import comparable

__all__ = ["replay_kept"]


def replay_kept(out: Path) -> list[dict]:
    """One result per recording that scenarios left in a directory of results."""
    return [_replay(path) for path in sorted(out.glob("*.ntrec"))]


def _replay(path: Path) -> dict:
    began = time.monotonic()
    live = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    tool = Path(sys.executable).parent / live[0]["tool"]
    command = [str(tool), "--replay", str(path), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    again = [json.loads(line) for line in done.stdout.splitlines()]
    reason = ""
    if done.returncode:
        reason = f"exit status {done.returncode}: {done.stderr[-300:]}"
    elif comparable(again) != comparable(live):
        reason = f"{len(again)} records that are not the {len(live)} of the guest"
    return {
        "name": f"elsewhere.{path.stem}",
        "result": "failed" if reason else "passed",
        "reason": reason,
        "seconds": time.monotonic() - began,
    }
