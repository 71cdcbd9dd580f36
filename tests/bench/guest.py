# SPDX-License-Identifier: GPL-2.0-only
"""A benchmark in a guest of the matrix: the same program, run there, and what it leaves behind."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import build  # noqa: E402

__all__ = ["OUT", "guest"]

#: Where the guest sees the directory it shares with us.
OUT = Path("/run/out")
_RUNNER = Path(__file__).resolve().parents[1] / "vm" / "run.py"
_MODULES = "tun veth bridge openvswitch vhost_net nft_chain_nat nf_conntrack"


@contextlib.contextmanager
def guest(kernel: str, command: Sequence[str], timeout_s: float) -> Iterator[tuple[Path, int]]:
    """Boot a kernel of the matrix, run a command there; what it left in :data:`OUT`, its status.

    A guest only uses what is compiled: whoever calls compiles before.
    """
    build.build_all()
    with tempfile.TemporaryDirectory() as out:
        script = f"modprobe -a {_MODULES}; exec {shlex.join(command)}"
        runner = [sys.executable, str(_RUNNER), "--kernel", kernel, "--memory", "3072",
                  "--timeout", str(timeout_s), "--out", out,
                  "--", "/bin/bash", "-c", script]  # fmt: skip
        yield Path(out), subprocess.run(runner).returncode
