# SPDX-License-Identifier: GPL-2.0-only
"""What all readers of records have in common, whatever the records lie in."""

import abc
import struct
from typing import Any, Iterator, Tuple

from .btf import StructType

__all__ = ["Channel"]

#: Bytes before each record of a batch: the header of the BPF ring buffer.
_HEADER_BYTES = 8


class Channel(abc.ABC):
    """Reader of records that are all of one struct.

    :ivar fields: names of the fields in each record tuple.
    :ivar stride: bytes from one record to the next in a batch: 8 bytes of header, the struct, and
        padding to 8.
    :ivar lost: records the kernel could not place, where it counts them itself.
    :ivar capacity: bytes it can hold, 0 if nothing fills it.
    """

    lost = 0
    capacity = 0

    def __init__(self, record: StructType) -> None:
        self.record = record
        self.fields = record.names
        self.stride = _HEADER_BYTES + ((record.size + 7) & ~7)
        self.codec = struct.Struct(
            "<{}x{}{}x".format(
                _HEADER_BYTES,
                record.codec.format.lstrip("<"),
                self.stride - _HEADER_BYTES - record.size,
            )
        )

    @abc.abstractmethod
    def batches(self) -> Iterator[Any]:
        """Everything there is now, oldest first, as runs of whole records of ``stride`` bytes.

        The place of a batch is given back when the next one is asked for.
        """

    def read(self) -> Iterator[Tuple[Any, ...]]:
        """Everything there is now, oldest first, decoded.

        Whoever stops in the middle of a batch sees that batch again, and loses nothing.
        """
        for batch in self.batches():
            yield from self.codec.iter_unpack(batch)
