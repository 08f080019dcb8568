"""A zip archive written from front to back, without seek, from finished deflate pieces.

The standard zipfile does not accept compressed data. No entry may reach 4 GiB (Excel rejects zip64 entries, so the
writer of sheets stays below); the whole archive may.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import BinaryIO, Final

from export_pipeline.formats import deflate

ENTRY_LIMIT: Final = 0xFFFF_FFFF
_LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
_DESCRIPTOR: Final = struct.Struct("<4sIII")
_CENTRAL: Final = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END: Final = struct.Struct("<4sHHHHIIH")
_END64: Final = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR: Final = struct.Struct("<4sIQI")
_EXTRA64: Final = struct.Struct("<HHQ")
_VERSION, _VERSION64 = 20, 45
_SIZES_FOLLOW: Final = 0x0008
_DEFLATED: Final = 8
_TIME, _DATE = 0, 0x0021  # 1980-01-01 00:00, the earliest in a zip: the bytes do not depend on the clock
DESCRIPTOR_SIZE: Final = _DESCRIPTOR.size


def local_size(name: str) -> int:
    """Bytes of the record before an entry's data."""
    return _LOCAL.size + len(name)


def directory_size(names: Iterable[str]) -> int:
    """At most the bytes that ``close`` writes for entries of these names."""
    entries = sum(_CENTRAL.size + len(name) + _EXTRA64.size for name in names)
    return entries + _END64.size + _LOCATOR.size + _END.size


class ZipStream:
    """An archive being written; ``position`` is its bytes so far. Names are ASCII."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._directory: list[tuple[bytes, int, int, int, int, int]] = []
        self._name = b""
        self._start = 0
        self._packed = 0
        self._checksum = deflate.Checksum()
        self.position = 0

    def add(self, name: str, data: bytes, packed: bytes) -> None:
        """Write a whole entry; ``packed`` is a complete deflate stream of ``data``."""
        self._checksum = deflate.Checksum()
        self._checksum.add(data)
        self._packed = len(packed)
        self._begin(name, 0, self._checksum.crc, len(packed), len(data))
        self._put(packed)
        self._enter(0)

    def begin(self, name: str) -> None:
        """Begin an entry whose size is not known yet."""
        self._checksum, self._packed = deflate.Checksum(), 0
        self._begin(name, _SIZES_FOLLOW, 0, 0, 0)

    def append(self, data: bytes | memoryview, packed: bytes | memoryview) -> None:
        """Add a piece to the entry that was begun."""
        self._checksum.add(data)
        self._packed += len(packed)
        self._put(packed)

    def end(self) -> None:
        """End the entry that was begun."""
        self._packed += len(deflate.END)
        self._put(deflate.END)
        self._put(_DESCRIPTOR.pack(b"PK\x07\x08", self._checksum.crc, self._packed, self._checksum.size))
        self._enter(_SIZES_FOLLOW)

    def close(self) -> None:
        """Write the directory. The caller closes the sink."""
        start = self.position
        for name, flags, crc, packed, size, offset in self._directory:
            far = offset > ENTRY_LIMIT
            extra = _EXTRA64.pack(1, 8, offset) if far else b""
            version = _VERSION64 if far else _VERSION
            head = (b"PK\x01\x02", version, version, flags, _DEFLATED, _TIME, _DATE, crc, packed, size)
            self._put(_CENTRAL.pack(*head, len(name), len(extra), 0, 0, 0, 0, min(offset, ENTRY_LIMIT)))
            self._put(name + extra)
        count, end64 = len(self._directory), self.position
        size = end64 - start
        if start > ENTRY_LIMIT:
            self._put(_END64.pack(b"PK\x06\x06", 44, _VERSION64, _VERSION64, 0, 0, count, count, size, start))
            self._put(_LOCATOR.pack(b"PK\x06\x07", 0, end64, 1))
        self._put(_END.pack(b"PK\x05\x06", 0, 0, count, count, size, min(start, ENTRY_LIMIT), 0))

    def _begin(self, name: str, flags: int, crc: int, packed: int, size: int) -> None:
        self._name, self._start = name.encode("ascii"), self.position
        fields = (b"PK\x03\x04", _VERSION, flags, _DEFLATED, _TIME, _DATE, crc, packed, size, len(self._name), 0)
        self._put(_LOCAL.pack(*fields) + self._name)

    def _enter(self, flags: int) -> None:
        done = self._checksum
        self._directory.append((self._name, flags, done.crc, self._packed, done.size, self._start))

    def _put(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self.position += len(data)
