# SPDX-License-Identifier: GPL-2.0-only
"""tcpdump as an independent witness: one capture of an interface, counted by pcap expressions."""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Optional

from lab.netns import CommandFailed, Namespace, call, stop_process

__all__ = ["Capture"]


class Capture:
    """Context manager: everything an interface receives and sends goes to a file.

    Tags the kernel has taken off are in the file again, so expressions are for frames as on the
    wire. A slot of the buffer is as large as what is kept of a frame: 1024 bytes, so that a few
    thousand fit.
    """

    def __init__(self, ns: Namespace, dev: str) -> None:
        self._ns, self._dev = ns, dev
        self._home: Optional["tempfile.TemporaryDirectory[str]"] = None
        self._process: Optional["subprocess.Popen[bytes]"] = None

    def __enter__(self) -> "Capture":
        self._home = tempfile.TemporaryDirectory(prefix="ntools-capture-")
        self._file = Path(self._home.name) / "file.pcap"
        command = ["tcpdump", "-n", "-p", "-U", "-Z", "root", "--immediate-mode", "-B", "4096",
                   "-s", "1024", "-i", self._dev, "-w", str(self._file)]  # fmt: skip
        self._process = self._ns.popen(command, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 30
        said = b""
        assert self._process.stderr is not None
        while b"listening on" not in said:
            ready = select.select([self._process.stderr], [], [], deadline - time.monotonic())[0]
            part = self._process.stderr.read1(4096) if ready else b""  # type: ignore[attr-defined]
            if not part:
                raise RuntimeError(f"tcpdump does not start: {said.decode(errors='replace')}")
            said += part
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._home:
            self._home.cleanup()

    def wait_for(self, count: int, limit_s: float = 10) -> None:
        """Waits until the file has so many packets; then nothing is missing in it."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            # The last packet may be written only in part.
            with contextlib.suppress(CommandFailed):
                if self.count("") >= count:
                    return
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the capture; the file stays until the context is left."""
        if self._process is not None:
            stop_process(self._process, signal.SIGINT)
            if self._process.stderr is not None:
                self._process.stderr.close()
            self._process = None

    def count(self, expression: str) -> int:
        """Packets that fit an expression, all for ""."""
        command = ["tcpdump", "-n", "-Z", "root", "-r", str(self._file), "--count"]
        done = call([*command, expression] if expression else command)
        return int(done.stdout.split()[0])
