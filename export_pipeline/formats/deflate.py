"""Deflate in independent pieces, so that a piece's size is known before it is committed to a file."""

from __future__ import annotations

import struct
from typing import Final

from isal import isal_zlib

_RAW: Final = -15
_LEVEL: Final = 2
END: Final = b"\x03\x00"
"""An empty final block: ends any stream of pieces."""
GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""No name, no time, no system: the same input gives the same bytes."""


def pack(data: bytes | memoryview) -> bytes:
    """One piece: independent of all pieces before it, and ending on a byte boundary."""
    compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW)
    head: bytes = compressor.compress(data)
    tail: bytes = compressor.flush(isal_zlib.Z_FULL_FLUSH)
    return head + tail


class Checksum:
    """CRC-32 and length of the committed bytes."""

    def __init__(self) -> None:
        self.crc = 0
        self.size = 0

    def add(self, data: bytes | memoryview) -> None:
        """Add uncompressed bytes."""
        self.crc = isal_zlib.crc32(data, self.crc)
        self.size += len(data)

    def gzip_trailer(self) -> bytes:
        """The end of a gzip member."""
        return struct.pack("<II", self.crc, self.size & 0xFFFF_FFFF)
