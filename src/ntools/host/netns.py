# SPDX-License-Identifier: GPL-2.0-only
"""Network namespaces: their inode numbers, their names, and a short visit to one of them.

The kernel calls a namespace by the inode of its nsfs file; that number is in every record.
A name is what ``ip netns`` keeps under /run/netns.
"""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Union

from ntools.errors import EnvironmentProblem, UsageProblem

__all__ = [
    "Netns",
    "current_netns",
    "list_netns",
    "named_netns",
    "netns_path",
    "open_netns",
    "process_netns",
]

_NAMED = Path("/var/run/netns")
# Follows the thread: setns() moves one thread only, /proc/self would show the first one.
_OWN = Path("/proc/thread-self/ns/net")
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Netns:
    """One reachable network namespace.

    :ivar name: from ``ip netns``, None for one that only processes hold.
    :ivar path: a file that can be opened to enter it.
    :ivar pid: a process inside, None when found by name.
    """

    inum: int
    path: str
    name: Optional[str] = None
    pid: Optional[int] = None


def current_netns() -> int:
    """Inode number of the network namespace of the calling thread."""
    return os.stat(str(_OWN)).st_ino


def process_netns(pid: int) -> Optional[int]:
    """Inode number of the network namespace of a process; None when it is gone or foreign."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def named_netns(directory: Path = _NAMED) -> Dict[str, int]:
    """Names given by ``ip netns`` and their inode numbers; leftover plain files are not listed."""
    try:
        names = sorted(os.listdir(str(directory)))
        nsfs = os.stat(str(_OWN)).st_dev
    except OSError:
        return {}
    found = {}
    for name in names:
        try:
            status = os.stat(str(directory / name))
        except OSError:
            continue
        if status.st_dev == nsfs:
            found[name] = status.st_ino
    return found


def list_netns() -> List[Netns]:
    """All namespaces that can be entered: the own one first, then named, then by process.

    Reads one link per process; without root, foreign processes are left out.
    """
    own = current_netns()
    named = {inum: name for name, inum in sorted(named_netns().items(), reverse=True)}
    found = {own: Netns(own, str(_OWN), named.pop(own, None))}
    for inum, name in sorted(named.items(), key=lambda item: item[1]):
        found[inum] = Netns(inum, str(_NAMED / name), name)
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        held = process_netns(pid)
        if held is not None and held not in found:
            found[held] = Netns(held, f"/proc/{pid}/ns/net", None, pid)
    return list(found.values())


def netns_path(which: Union[str, int]) -> str:
    """File of the namespace a user means by a path, a name, a process id or an inode number.

    :raises UsageProblem: there is no such namespace.
    """
    text = str(which)
    if "/" in text:
        if not os.path.exists(text):
            raise UsageProblem(f"network namespace '{text}' not found: no such file.")
        return text
    if text and os.path.exists(str(_NAMED / text)):
        return str(_NAMED / text)
    number = text.isascii() and text.isdigit() and len(text) < 20
    if number and os.path.exists(f"/proc/{text}/ns/net"):
        return f"/proc/{text}/ns/net"
    if number:
        for space in list_netns():
            if space.inum == int(text):
                return space.path
    raise UsageProblem(_not_found(text))


def _not_found(text: str) -> str:
    import difflib

    near = difflib.get_close_matches(text, named_netns(), 1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"network namespace '{text}' not found.{hint} See 'ip netns'."


@contextmanager
def open_netns(which: Union[str, int, None]) -> Iterator[int]:
    """Be in another network namespace for a moment; yields its inode number.

    Only the calling thread moves. Sockets opened inside stay there; /sys does not follow.

    :param which: as in :func:`netns_path`; None stays where it is.
    :raises UsageProblem: there is no such namespace, or the file is none.
    :raises EnvironmentProblem: not allowed to enter it.
    """
    if which is None:
        yield current_netns()
        return
    path = netns_path(which)
    home = os.open(str(_OWN), os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            # Not blocking: the path may be a pipe that nobody writes to.
            there = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                _enter(there)
            finally:
                os.close(there)
        except PermissionError:
            raise EnvironmentProblem(
                f"cannot enter network namespace '{which}': not permitted. Run as root."
            ) from None
        except OSError as error:
            raise UsageProblem(
                f"cannot enter network namespace '{which}': {os.strerror(error.errno or 0)}."
            ) from None
        try:
            yield current_netns()
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(descriptor: int) -> None:
    setns = getattr(os, "setns", None)  # Python >= 3.12
    if setns is not None:
        setns(descriptor, _CLONE_NEWNET)
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
