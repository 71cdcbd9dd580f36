# SPDX-License-Identifier: GPL-2.0-only
"""Runs one command of the project inside a namespace and waits until it measures."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

from lab.bpfsys import BpfObjects, bpf_leftovers, bpf_snapshot
from lab.netns import Namespace

__all__ = [
    "PATIENT",
    "BpfObjects",
    "Result",
    "Tool",
    "ToolFailed",
    "bpf_leftovers",
    "bpf_snapshot",
    "side_by_side",
]

#: For runs whose records are counted: on an emulated CPU a share of the time says little, and a
#: governor that samples would change what is counted. The safety model has scenarios of its own.
PATIENT = ("--max-cpu", "100", "--max-overhead", "100")


class ToolFailed(RuntimeError):
    """The command did not become ready, or did not end."""


@dataclass
class Result:
    """What a command left behind; ``records`` are the lines of stdout that are JSON objects."""

    command: List[str]
    status: int
    stdout: str
    stderr: str
    records: List[Dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """stdout as it is."""
        return self.stdout

    def of_type(self, kind: str) -> List[Dict[str, Any]]:
        """Records of one type, in order."""
        return [record for record in self.records if record.get("type") == kind]

    def _only(self, kind: str) -> Dict[str, Any]:
        found = self.of_type(kind)
        if len(found) != 1:
            raise AssertionError(f"{len(found)} '{kind}' records instead of 1\n{self.tail()}")
        return found[0]

    @property
    def header(self) -> Dict[str, Any]:
        """The one header record."""
        return self._only("header")

    @property
    def summary(self) -> Dict[str, Any]:
        """The one summary record."""
        return self._only("summary")

    def tail(self) -> str:
        """Status and the ends of both streams, for messages."""
        return (
            f"'{' '.join(self.command)}' ended with {self.status}\n"
            f"--- stderr\n{self.stderr[-2000:]}--- stdout\n{self.stdout[-2000:]}"
        )


class _Stream(threading.Thread):
    """Collects the lines of a pipe and wakes those who wait for one."""

    def __init__(self, pipe: IO[bytes], changed: threading.Condition) -> None:
        super().__init__(daemon=True)
        self._pipe, self._changed = pipe, changed
        self.lines: List[str] = []
        self.ended = False
        self.start()

    def run(self) -> None:
        for line in self._pipe:
            with self._changed:
                self.lines.append(line.decode(errors="replace"))
                self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()


def _records(lines: Sequence[str]) -> List[Dict[str, Any]]:
    found = []
    for line in lines:
        # A command that was killed may leave the beginning of a line.
        if line.startswith("{") and line.endswith("\n"):
            record = json.loads(line)
            if isinstance(record, dict):
                found.append(record)
    return found


class Tool:
    """Context manager: the command is ready inside, and gone after.

    :param ns: where it runs, with a /sys of that namespace; None: where the test runs.
    :param command: name of one of our commands, found beside the running interpreter or in
        NTOOLS_BIN, or a path.
    :param env: merged into the environment; a value of None removes a variable.
    :param ready: wait for the ``ready:`` line; off for commands that end by themselves.
    """

    def __init__(
        self,
        ns: Optional[Namespace],
        command: str,
        args: Sequence[str] = (),
        env: Optional[Mapping[str, Optional[str]]] = None,
        ready: bool = True,
        ready_timeout_s: float = 60,
    ) -> None:
        home = os.environ.get("NTOOLS_BIN") or Path(sys.executable).parent
        beside = Path(home) / command
        self.command = [command if "/" in command else str(beside), *map(str, args)]
        # Runs with events exclude one another on a host: not those of tests, unless they say so.
        self._locks = tempfile.TemporaryDirectory(prefix="ntools-locks-")
        own = {"NTOOLS_RUN_DIR": self._locks.name}
        environment: Dict[str, Optional[str]] = {**os.environ, **own, **(env or {})}
        self._env = {key: value for key, value in environment.items() if value is not None}
        self._ns, self._ready, self._ready_timeout_s = ns, ready, ready_timeout_s
        self._changed = threading.Condition()
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self._begun = 0.0
        self.ready_line = ""
        self.ready_after_s = 0.0
        self.result: Optional[Result] = None

    def __enter__(self) -> "Tool":
        self.launch()
        self.await_ready()
        return self

    def launch(self) -> None:
        """Starts the command; :meth:`kill` ends it."""
        start: Callable[..., "subprocess.Popen[bytes]"] = subprocess.Popen
        options: Dict[str, Any] = {
            "env": self._env,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        if self._ns is not None:
            start = self._ns.popen
            options["own_sys"] = True
        self._begun = time.monotonic()
        self._process = start(self.command, **options)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._out = _Stream(self._process.stdout, self._changed)
        self._err = _Stream(self._process.stderr, self._changed)

    def await_ready(self) -> None:
        """Waits until it measures, if it was asked to."""
        if not self._ready:
            return
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise
        self.ready_after_s = time.monotonic() - self._begun

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._locks.cleanup()

    @property
    def pid(self) -> int:
        """Process id of the command."""
        assert self._process is not None
        return self._process.pid

    def _wait_ready(self) -> None:
        def found() -> bool:
            for line in self._err.lines:
                if line.startswith("ready:"):
                    self.ready_line = line.strip()
                    return True
            return self._err.ended

        with self._changed:
            self._changed.wait_for(found, self._ready_timeout_s)
        if not self.ready_line:
            ended = self._err.ended
            result = self.kill()
            reason = "ended" if ended else f"not ready in {self._ready_timeout_s:g} s"
            raise ToolFailed(f"{reason}: {result.tail()}")

    def wait_for(self, seen: Callable[[List[Dict[str, Any]]], Any], timeout_s: float = 30) -> Any:
        """Waits until ``seen(records so far)`` is true and returns its value.

        :raises ToolFailed: the time is over, or the command ended without it.
        """
        value: Any = None

        def check() -> bool:
            nonlocal value
            value = seen(_records(self._out.lines))
            return bool(value) or self._out.ended

        with self._changed:
            self._changed.wait_for(check, timeout_s)
        if not value:
            raise ToolFailed(f"the expected record did not come: {self.kill().tail()}")
        return value

    def records(self) -> List[Dict[str, Any]]:
        """Records so far."""
        with self._changed:
            return _records(self._out.lines)

    def send_signal(self, sig: int) -> None:
        """Sends a signal to the command."""
        assert self._process is not None
        self._process.send_signal(sig)

    def wait(self, timeout_s: float = 60) -> Result:
        """Waits for its end.

        :raises ToolFailed: it did not end; it is killed then.
        """
        assert self._process is not None
        if self.result is None:
            late = False
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                late = True
                self._process.kill()
                self._process.wait()
            # A child of it may hold the pipes open; what came until then is the result.
            self._out.join(5)
            self._err.join(5)
            with self._changed:
                stdout, stderr = "".join(self._out.lines), "".join(self._err.lines)
                records = [] if late else _records(self._out.lines)
            self.result = Result(self.command, self._process.returncode, stdout, stderr, records)
            if late:
                raise ToolFailed(f"did not end in {timeout_s:g} s: {self.result.tail()}")
        return self.result

    def stop(self, sig: int = signal.SIGINT, timeout_s: float = 60) -> Result:
        """Asks it to end, as a user does with Ctrl-C, and returns what it left."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(sig)
        return self.wait(timeout_s)

    def kill(self) -> Result:
        """SIGKILL; what is left in the kernel after this is the command's fault."""
        return self.stop(signal.SIGKILL)


@contextlib.contextmanager
def side_by_side(*tools: Tool) -> Iterator[Sequence[Tool]]:
    """Several commands, started together: two CPUs have them ready in the time of one."""
    with contextlib.ExitStack() as stack:
        for tool in tools:
            tool.launch()
            stack.push(tool)
        for tool in tools:
            tool.await_ready()
        yield tools
