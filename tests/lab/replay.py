# SPDX-License-Identifier: GPL-2.0-only
"""Shows a recording again, without any privilege, and compares it with the run it was made of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Dict, List, Sequence

from lab.expect import equal
from lab.tool import Result, Tool

__all__ = ["comparable", "keep", "replay", "replayed_equal"]


def replay(command: str, path: Path, *args: str) -> Result:
    """Replay by a process without capabilities that has no library for BPF to load."""
    tool = shutil.which(command) or str(Tool(None, command).command[0])
    # The same user, who may be the only one that can read the interpreter; no capability at all.
    wrapped = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", tool]
    env = {"NTOOLS_LIBBPF": "no-such-library"}
    with Tool(None, shutil.which(wrapped[0]) or wrapped[0], [*wrapped[1:], "--replay", str(path),
              "--format", "json", *args], env=env, ready=False) as running:  # fmt: skip
        return running.wait()


def keep(lab: Any, path: Path, live: Result) -> None:
    """Leave a recording and what was seen live among the results, to be compared elsewhere."""
    kept = lab.out_dir / f"{lab.name}.{path.name}.ntrec"
    shutil.copyfile(path, kept)
    kept.with_suffix(".jsonl").write_text(live.stdout)


def comparable(records: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Records without what may differ: the run, and the cost."""
    return [
        {name: value for name, value in rec.items() if name not in ("run", "cost")}
        for rec in records
    ]


def replayed_equal(live: Result, again: Result) -> None:
    """The replay ended as the run did and says what it said, record by record."""
    equal(again.status, live.status, "exit status of the replay", again.tail())
    for index, (first, second) in enumerate(
        zip(comparable(live.records), comparable(again.records))
    ):
        equal(second, first, f"record {index} of the replay")
    equal(len(again.records), len(live.records), "records of the replay")
