# SPDX-License-Identifier: GPL-2.0-only
"""Code addresses of kernel records as functions, and stacks cut to what matters."""

import struct
import time
from typing import Any, Dict, List

from ntools.engine.lookups import Lookups
from ntools.model import reasons

__all__ = ["Places"]

_MAX_FRAMES = 16384
_REFRESH_S = 10.0


class Places:
    """Frames of records; looks again for symbols when an address has none.

    :param lookups: where the names come from.
    """

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups
        self._frames: Dict[int, Dict[str, Any]] = {}
        self._refreshed_at = time.monotonic()

    def frame(self, address: int) -> Dict[str, Any]:
        """The frame a return address belongs to.

        The call is before the address: at the end of a function the next one begins there.
        """
        known = self._frames.get(address)
        if known is not None:
            return known
        symbol = self._lookups.symbol(address - 1)
        if symbol is None and time.monotonic() - self._refreshed_at >= _REFRESH_S:
            self._refreshed_at = time.monotonic()
            self._lookups.refresh_symbols()
            symbol = self._lookups.symbol(address - 1)
        frame: Dict[str, Any] = {
            "function": symbol.name if symbol else None,
            "offset": symbol.offset + 1 if symbol else None,
            "addr": "{:#x}".format(address),
        }
        if symbol and symbol.module:
            frame["module"] = symbol.module
        if len(self._frames) >= _MAX_FRAMES:
            self._frames.clear()
        if symbol:
            self._frames[address] = frame
        return frame

    def stack(self, raw: bytes, location: int) -> List[Dict[str, Any]]:
        """Frames from ``location`` outwards, without the tracer's and the free functions'.

        :param raw: return addresses, innermost first; zeros at the end are no frames.
        """
        addresses = [word for (word,) in struct.iter_unpack("<Q", raw[: len(raw) & ~7]) if word]
        if location in addresses:
            addresses = addresses[addresses.index(location) :]
            return [self.frame(address) for address in addresses]
        frames = [self.frame(address) for address in addresses]
        return frames[reasons.place([frame["function"] or "" for frame in frames]) :]
