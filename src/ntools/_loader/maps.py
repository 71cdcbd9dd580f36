# SPDX-License-Identifier: GPL-2.0-only
"""Maps: looked up, changed and read out, in batches where the kernel has them."""

import errno
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ntools.errors import NtoolsError

from .btf import StructType
from .lib import error_text, ffi, library

__all__ = ["KernelMap", "MapView"]

_PERCPU_TYPES = (5, 6, 10)  # per-CPU hash, per-CPU array, LRU per-CPU hash
_ARRAY_TYPES = (2, 6)
_BATCH = 1024


class MapView:
    """One map whose bytes are somewhere: in the kernel, or in a recording.

    Keys and values are tuples of the flat fields (:class:`StructType`); where the C side is a
    plain number, just that number. Values of per-CPU maps are lists, one element per possible CPU.

    :param store: has ``items``, ``lookup``, ``update`` and ``delete`` on bytes, as
        :class:`KernelMap`.
    :param cpus: possible CPUs of a per-CPU map, 0 for others.
    :ivar name, entries: as in the object.
    :ivar key, value: their :class:`StructType`.
    """

    def __init__(
        self, name: str, store: Any, entries: int, key: StructType, value: StructType, cpus: int
    ) -> None:
        self.name = name
        self.store = store
        self.entries = entries
        self.key = key
        self.value = value
        self.cpus = cpus
        self._stride = (value.size + 7) & ~7 if cpus else value.size

    @property
    def memory_bytes(self) -> int:
        """Memory of all values and keys when the map is full."""
        return self.entries * (self._stride * (self.cpus or 1) + self.key.size)

    def lookup(self, key: Any) -> Optional[Any]:
        """Value of a key, None when there is none."""
        value = self.store.lookup(self._key_bytes(key))
        return None if value is None else self._decode_value(value, 0)

    def update(self, key: Any, value: Any) -> None:
        """Set a key; ``value`` as bytes or as a tuple.

        Of a per-CPU map it is the value of all CPUs, or a list with one per possible CPU.
        """
        if self.cpus and isinstance(value, list):
            value = b"".join(
                [self._pack(self.value, one).ljust(self._stride, b"\0") for one in value]
            )
        elif not isinstance(value, (bytes, bytearray)):
            value = self._pack(self.value, value)
        if self.cpus and len(value) < self._stride * self.cpus:
            value = bytes(value).ljust(self._stride, b"\0") * self.cpus
        self.store.update(self._key_bytes(key), value)

    def delete(self, key: Any) -> bool:
        """Remove a key; False when it was gone already."""
        return bool(self.store.delete(self._key_bytes(key)))

    def items(self) -> Iterator[Tuple[Any, Any]]:
        """All (key, value) pairs, decoded."""
        for key, value in self.items_bytes():
            yield self._plain(self.key.codec.unpack(key)), self._decode_value(value, 0)

    def items_bytes(self) -> Iterator[Tuple[bytes, bytes]]:
        """All (key, value) pairs as bytes; per-CPU values are ``percpu_stride`` apart."""
        return iter(self.store.items())

    @property
    def reads_in_batches(self) -> bool:
        """Whether :meth:`items` asks for many entries at once, as found out by the last read."""
        return bool(self.store.reads_in_batches)

    @property
    def percpu_stride(self) -> int:
        """Bytes from one CPU's value to the next in :meth:`items_bytes`."""
        return self._stride

    def sums(self) -> List[int]:
        """Per-CPU array of counters: the sum over all CPUs, by index."""
        return [sum(value) if isinstance(value, list) else value for _, value in self.items()]

    def _key_bytes(self, key: Any) -> bytes:
        return key if isinstance(key, bytes) else self._pack(self.key, key)

    @staticmethod
    def _pack(kind: StructType, value: Any) -> bytes:
        return kind.codec.pack(*value) if isinstance(value, tuple) else kind.codec.pack(value)

    @staticmethod
    def _plain(values: Tuple[Any, ...]) -> Any:
        return values[0] if len(values) == 1 else values

    def _decode_value(self, value: Any, offset: int) -> Any:
        codec = self.value.codec
        if not self.cpus:
            return self._plain(codec.unpack_from(value, offset))
        return [
            self._plain(codec.unpack_from(value, offset + cpu * self._stride))
            for cpu in range(self.cpus)
        ]


class KernelMap:
    """The bytes of one loaded map, by system calls.

    :param key_bytes, value_bytes: sizes as system calls see them: values of all CPUs together.
    """

    def __init__(
        self,
        name: str,
        fd: int,
        kind: int,
        entries: int,
        key_bytes: int,
        value_bytes: int,
        batch: bool,
    ) -> None:
        self.fd = fd
        self._name = name
        self._entries = entries
        self.reads_in_batches = batch and kind not in _ARRAY_TYPES
        self._array = kind in _ARRAY_TYPES
        self._c = library().c
        self._key_bytes = key_bytes
        self._value_bytes = value_bytes

    @staticmethod
    def cpus(kind: int) -> int:
        """Values per key of maps of a kind: possible CPUs, or 0 for maps with one value."""
        return int(library().c.libbpf_num_possible_cpus()) if kind in _PERCPU_TYPES else 0

    def lookup(self, key: bytes) -> Optional[bytes]:
        """Value of a key, None when there is none."""
        value = bytearray(self._value_bytes)
        if self._c.bpf_map_lookup_elem(self.fd, key, ffi.from_buffer(value)):
            self._check("lookup", (errno.ENOENT,))
            return None
        return bytes(value)

    def update(self, key: bytes, value: bytes) -> None:
        """Set a key."""
        if self._c.bpf_map_update_elem(self.fd, key, ffi.from_buffer(value), 0):
            self._check("update", ())

    def delete(self, key: bytes) -> bool:
        """Remove a key; False when it was gone already."""
        if self._c.bpf_map_delete_elem(self.fd, key):
            self._check("delete", (errno.ENOENT,))
            return False
        return True

    def items(self) -> Iterator[Tuple[bytes, bytes]]:
        """All (key, value) pairs."""
        if self._array:
            for index in range(self._entries):
                key = index.to_bytes(4, "little")
                value = bytearray(self._value_bytes)
                if not self._c.bpf_map_lookup_elem(self.fd, key, ffi.from_buffer(value)):
                    yield key, bytes(value)
        elif self.reads_in_batches:
            yield from self._in_batches()
        else:
            yield from self._one_by_one()

    def _in_batches(self) -> Iterator[Tuple[bytes, bytes]]:
        size = min(_BATCH, self._entries)
        cursor = ffi.new("char[]", max(self._key_bytes, 8))
        started = False
        count = ffi.new("uint32_t *")
        while True:
            keys = bytearray(size * self._key_bytes)
            values = bytearray(size * self._value_bytes)
            count[0] = size
            status = self._c.bpf_map_lookup_batch(
                self.fd,
                cursor if started else ffi.NULL,
                cursor,
                ffi.from_buffer(keys),
                ffi.from_buffer(values),
                count,
                ffi.NULL,
            )
            number = ffi.errno if status else 0
            if number == errno.ENOSPC and size < 1 << 20:  # a bucket larger than the batch
                size *= 2
                continue
            if number in (errno.EINVAL, errno.ENOTSUP, 524) and not started:
                self.reads_in_batches = False
                yield from self._one_by_one()
                return
            if number not in (0, errno.ENOENT):
                raise NtoolsError(
                    "cannot read map '{}': {}.".format(self._name, error_text(number))
                )
            for index in range(count[0]):
                yield (
                    bytes(keys[index * self._key_bytes : (index + 1) * self._key_bytes]),
                    bytes(values[index * self._value_bytes : (index + 1) * self._value_bytes]),
                )
            if number == errno.ENOENT:
                return
            started = True

    def _one_by_one(self) -> Iterator[Tuple[bytes, bytes]]:
        # Keys first: a walk restarts when the key it stands on is deleted meanwhile.
        keys: Dict[bytes, None] = {}
        key: Any = ffi.NULL
        following = bytearray(self._key_bytes)
        for _ in range(2 * self._entries):
            if self._c.bpf_map_get_next_key(self.fd, key, ffi.from_buffer(following)):
                break
            key = bytes(following)
            keys[key] = None
        for found in keys:
            value = bytearray(self._value_bytes)
            if not self._c.bpf_map_lookup_elem(self.fd, found, ffi.from_buffer(value)):
                yield found, bytes(value)

    def _check(self, action: str, expected: Tuple[int, ...]) -> None:
        number = ffi.errno
        if number not in expected:
            raise NtoolsError(
                "cannot {} in map '{}': {}.".format(action, self._name, error_text(number))
            )
