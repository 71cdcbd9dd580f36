# SPDX-License-Identifier: GPL-2.0-only
"""CPUs of this host, and the softirq vectors its kernel has."""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Set, Tuple

from ntools.errors import EnvironmentProblem

__all__ = ["Cpus", "parse_list"]

#: NT_SOFTIRQ_CPUS, and the most any kernel for these machines has.
_MOST = 8192


def parse_list(text: str) -> Tuple[int, ...]:
    """The numbers of a list such as ``1,5-8``, ascending, each once.

    :raises ValueError: no such list.
    """
    found: Set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        words = (first, last) if dash else (first,)
        if not all(word.isascii() and word.isdigit() and len(word) < 6 for word in words):
            raise ValueError("'{}' is not a list of CPUs such as 1,5-8".format(text))
        low, high = int(first), int(words[-1])
        if low > high or high >= _MOST:
            raise ValueError("'{}' is not a range of CPUs".format(part))
        found.update(range(low, high + 1))
    return tuple(sorted(found))


class Cpus(NamedTuple):
    """What a run is told once.

    :ivar possible, online: numbers of CPUs.
    :ivar vectors: names of the softirq vectors by number, in lower case.
    """

    possible: Tuple[int, ...]
    online: Tuple[int, ...]
    vectors: Tuple[str, ...]

    @classmethod
    def now(cls) -> "Cpus":
        """Of this host.

        :raises EnvironmentProblem: /sys or /proc does not tell.
        """
        system = Path("/sys/devices/system/cpu")
        try:
            return cls(
                parse_list((system / "possible").read_text()),
                parse_list((system / "online").read_text()),
                _vectors(Path("/proc/softirqs").read_text()),
            )
        except (OSError, ValueError) as problem:
            raise EnvironmentProblem(
                "cannot tell the CPUs of this host: {}.".format(problem)
            ) from None

    def fields(self) -> Dict[str, Any]:
        """As JSON can carry it."""
        return {name: list(value) for name, value in self._asdict().items()}

    @classmethod
    def from_fields(cls, found: Dict[str, Any]) -> "Cpus":
        """From :meth:`fields`."""
        return cls(
            tuple(map(int, found["possible"])),
            tuple(map(int, found["online"])),
            tuple(map(str, found["vectors"])),
        )


def _vectors(text: str) -> Tuple[str, ...]:
    """The rows of /proc/softirqs are in the order of their numbers."""
    names: List[str] = []
    for line in text.splitlines():
        name, colon, _ = line.partition(":")
        if colon:
            names.append(name.strip().lower())
    return tuple(names)
