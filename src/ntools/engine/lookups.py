# SPDX-License-Identifier: GPL-2.0-only
"""What records tell of the host besides the bare numbers: names of functions, devices, reasons.

Engines ask here and nowhere else, so that a replay can answer from the recording, on a machine
that is not the host.
"""

import abc
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

if TYPE_CHECKING:
    from ntools.host.symbols import Symbol

__all__ = ["HostLookups", "Lookups", "RecordedLookups"]

_MAX_TOLD = 65536


class Lookups(abc.ABC):
    """The questions; the answers come from :meth:`_ask`."""

    def symbol(self, address: int) -> Optional["Symbol"]:
        """The function an address of code lies in."""
        from ntools.host.symbols import Symbol

        found = self._ask("symbol", address)
        return Symbol(str(found[0]), int(found[1]), found[2]) if found else None

    def functions(self, pattern: str) -> List[Tuple[str, int, int]]:
        """(name, first address, first one behind) of the functions a pattern means."""
        found = self._ask("functions", pattern) or []
        return [(str(name), int(first), int(end)) for name, first, end in found]

    def expect_functions(self, patterns: Sequence[str]) -> None:  # noqa: B027
        """Patterns that :meth:`functions` will be asked for: cheaper together than one by one."""

    def symbols_note(self) -> Optional[str]:
        """Why functions have no names, None when they have."""
        note: Optional[str] = self._ask("symbols_note", 0)
        return note

    def device(self, netns_inum: int, ifindex: int) -> Optional[str]:
        """Name of a device, None when it is out of reach."""
        name: Optional[str] = self._ask("device", [netns_inum, ifindex])
        return name

    def enum(self, name: str) -> Dict[int, str]:
        """Value -> enumerator of a kernel enum; empty when the kernel has none of that name."""
        found = self._ask("enum", name) or []
        return {int(value): str(label) for value, label in found}

    @abc.abstractmethod
    def refresh_symbols(self) -> None:
        """Look again for symbols: of modules loaded meanwhile."""

    @abc.abstractmethod
    def forget(self) -> None:
        """Free the memory of answers that will not be needed again."""

    @abc.abstractmethod
    def _ask(self, subject: str, key: Any) -> Any:
        """The answer as JSON can carry it, None if there is none."""


class HostLookups(Lookups):
    """Asks the host, and tells a tape what it said.

    :param kernel: facts about the kernel, for its enums.
    """

    def __init__(self, kernel: Any, tape: Any = None) -> None:
        from ntools.host.devices import DeviceNames
        from ntools.host.symbols import Symbols

        self._kernel = kernel
        self._tape = tape
        self._symbols = Symbols()
        self._devices = DeviceNames()
        self._told: Dict[Any, Any] = {}

    def expect_functions(self, patterns: Sequence[str]) -> None:
        """See :meth:`Lookups.expect_functions`."""
        self._symbols.expect(patterns)

    def refresh_symbols(self) -> None:
        """See :meth:`Lookups.refresh_symbols`."""
        self._symbols.refresh()

    def forget(self) -> None:
        """Free the kernel's type information."""
        self._kernel.forget()

    def _ask(self, subject: str, key: Any) -> Any:
        answer = getattr(self, "_host_" + subject)(key)
        if self._tape is not None:
            place = (subject, tuple(key) if isinstance(key, list) else key)
            if len(self._told) >= _MAX_TOLD:
                self._told.clear()
            if place not in self._told or self._told[place] != answer:
                self._told[place] = answer
                self._tape.fact(subject, key, answer)
        return answer

    def _host_symbol(self, address: int) -> Any:
        found = self._symbols.lookup(address)
        return [found.name, found.offset, found.module] if found else None

    def _host_functions(self, pattern: str) -> Any:
        return self._symbols.matching(pattern)

    def _host_symbols_note(self, _: int) -> Any:
        return self._symbols.note

    def _host_device(self, key: List[int]) -> Any:
        return self._devices.name(key[0], key[1])

    def _host_enum(self, name: str) -> Any:
        return sorted(self._kernel.enum_names(name).items())


class RecordedLookups(Lookups):
    """Answers what was said when the recording was made.

    :param playback: has ``fact(subject, key)``.
    """

    def __init__(self, playback: Any) -> None:
        self._playback = playback

    def refresh_symbols(self) -> None:
        """Nothing to look at: what was seen later is in the recording."""

    def forget(self) -> None:
        """Nothing to free."""

    def _ask(self, subject: str, key: Any) -> Any:
        return self._playback.fact(subject, key)
