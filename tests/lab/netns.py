# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces as context managers, and commands and functions inside them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

__all__ = ["CommandFailed", "Namespace", "call", "leaked", "lines", "stop_process"]

_RUN = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 1 << 19
_PR_SET_PDEATHSIG = 1
# What is mounted below /sys and must stay visible when a namespace gets its own /sys.
_BELOW_SYS = ("kernel/tracing", "kernel/debug", "fs/bpf", "fs/cgroup")

_libc = ctypes.CDLL(None, use_errno=True)
_created: Dict[str, "Namespace"] = {}
_stamping: List[socket.socket] = []


class CommandFailed(RuntimeError):
    """A command of the laboratory ended with another status than 0."""

    def __init__(self, command: Sequence[str], status: int, text: str, script: str = "") -> None:
        self.command, self.status, self.text = list(command), status, text
        where = f"\ninput:\n{script}" if script else ""
        super().__init__(f"'{' '.join(command)}' ended with {status}: {text.strip()}{where}")


def lines(*parts: Union[str, Sequence[str], None]) -> str:
    """Joins the lines of a batch; None and empty parts are left out."""
    out: List[str] = []
    for part in parts:
        out.extend([part] if isinstance(part, str) else part or [])
    return "".join(f"{line.strip()}\n" for line in out if line.strip())


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _setns(descriptor: int) -> None:
    _check(_libc.setns(descriptor, _CLONE_NEWNET), "setns")


def _own_sys() -> None:
    """A private mount namespace whose /sys shows the devices of the network namespace."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "mount slave")
    # Held open in the new mount namespace: a mount of another one cannot be bound.
    below = []
    for name in _BELOW_SYS:
        with contextlib.suppress(OSError):
            below.append((os.open(f"/sys/{name}", os.O_PATH), name))
    _check(_libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None), "mount sysfs")
    for descriptor, name in below:
        source = f"/proc/self/fd/{descriptor}".encode()
        _libc.mount(source, f"/sys/{name}".encode(), None, _MS_BIND | _MS_REC, None)
        os.close(descriptor)


def call(
    command: Sequence[str],
    script: str = "",
    check: bool = True,
    preexec: Optional[Callable[[], None]] = None,
    timeout_s: float = 120,
) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end, with ``script`` as its input."""
    done = subprocess.run(
        command,
        input=script,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec,
        timeout=timeout_s,
    )
    if check and done.returncode:
        raise CommandFailed(command, done.returncode, done.stderr or done.stdout, script)
    return done


def stop_process(
    process: "subprocess.Popen[Any]", sig: int = signal.SIGTERM, limit_s: float = 10
) -> int:
    """Signals one process, kills it after the limit, and waits for its end."""
    if process.poll() is None:
        process.send_signal(sig)
        # A stopped process does not see its signal.
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def leaked() -> List[str]:
    """Namespaces of this process that still exist, without those kept on purpose."""
    mine = re.compile(rf"nt{os.getpid()}\D*")
    kept = {name for name, namespace in _created.items() if namespace.kept}
    if not _RUN.is_dir():
        return []
    return sorted(p.name for p in _RUN.iterdir() if mine.fullmatch(p.name) and p.name not in kept)


def _sweep_dead() -> None:
    """Removes what runs that were killed left behind: names carry the id of a dead process."""
    if not _RUN.is_dir():
        return
    for path in _RUN.iterdir():
        match = re.fullmatch(r"nt(\d+)[a-z]+", path.name)
        if match and not Path("/proc", match.group(1)).exists():
            call(["ip", "netns", "delete", path.name], check=False)


def _start_stamping() -> None:
    """Keeps time stamping of received packets switched on for the life of this process.

    Switching it patches kernel code while packets flow; two guests of 6.12 and 7.2 died of that
    under emulation.
    """
    if not _stamping:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP
        _stamping.append(sock)


class Namespace:
    """One network namespace, named ``nt<pid><suffix>`` in /run/netns.

    :param ipv6: off by default, because every new interface talks IPv6 unasked.
    :param kept: lives longer than one scenario; not reported by :func:`leaked`.
    """

    def __init__(self, suffix: str, ipv6: bool = False, kept: bool = False) -> None:
        self.name = f"nt{os.getpid()}{suffix}"
        self.ipv6 = ipv6
        self.kept = kept
        self._processes: List["subprocess.Popen[Any]"] = []
        self._descriptor = -1
        self._owner = os.getpid()

    @property
    def path(self) -> str:
        """File that names the namespace."""
        return str(_RUN / self.name)

    @property
    def inode(self) -> int:
        """The number ``netns_inum`` of records."""
        return os.stat(self.path).st_ino

    def __enter__(self) -> "Namespace":
        if not _created:
            _sweep_dead()
        _start_stamping()
        _created[self.name] = self
        try:
            call(["ip", "netns", "add", self.name])
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self.ip("link set lo up")
            for name in ("all", "default", "lo"):
                self.sysctl(f"net.ipv6.conf.{name}.disable_ipv6", int(not self.ipv6))
            self.sysctl("net.ipv6.conf.default.accept_ra", 0)
            self.sysctl("net.ipv6.conf.default.router_solicitations", 0)
            # Replies to many errors in a row must not be rationed: tests count them.
            self.sysctl("net.ipv4.icmp_ratelimit", 0)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes started here, newest first, and removes the namespace."""
        if self._owner != os.getpid():
            return
        try:
            while self._processes:
                stop_process(self._processes.pop(), limit_s=3)
        finally:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            if os.path.exists(self.path):
                call(["ip", "netns", "delete", self.name])
            _created.pop(self.name, None)

    def _preexec(self, own_sys: bool, die_with_parent: bool) -> Callable[[], None]:
        # The death signal comes when the starting *thread* ends: only useful in the main one.
        bound = die_with_parent and threading.current_thread() is threading.main_thread()

        def enter() -> None:
            if bound:
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _setns(self._descriptor)
            if own_sys:
                _own_sys()

        return enter

    def popen(
        self,
        command: Sequence[str],
        own_sys: bool = False,
        die_with_parent: bool = True,
        **options: Any,
    ) -> "subprocess.Popen[Any]":
        """Starts a command in the namespace; it is ended with the namespace at the latest.

        :param own_sys: give it a /sys that shows the devices of this namespace.
        """
        process = subprocess.Popen(
            command, preexec_fn=self._preexec(own_sys, die_with_parent), **options
        )
        self._processes = [one for one in self._processes if one.poll() is None]
        self._processes.append(process)
        return process

    def run(
        self, command: Sequence[str], script: str = "", check: bool = True, timeout_s: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command in the namespace to its end.

        :raises CommandFailed: status other than 0, unless ``check`` is off.
        """
        return call(command, script, check, self._preexec(False, True), timeout_s)

    def ip(self, *batch: Union[str, Sequence[str], None]) -> None:
        """Lines for ``ip -batch``: one process for all of them."""
        self.run(["ip", "-batch", "-"], lines(*batch))

    def json(self, command: Sequence[str]) -> Any:
        """Output of a command that prints JSON."""
        return json.loads(self.run(command).stdout or "[]")

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in the namespace; sockets made here stay in it."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self._descriptor)
            try:
                yield
            finally:
                _setns(before)
        finally:
            os.close(before)

    def sysctl(self, name: str, value: object) -> None:
        """Writes one net.* setting; silently nothing where the kernel does not have it."""
        path = Path("/proc/sys", *name.split("."))
        with self.entered(), contextlib.suppress(FileNotFoundError):
            path.write_text(f"{value}\n")


@atexit.register
def _close_all() -> None:
    for namespace in reversed(list(_created.values())):
        namespace.close()
