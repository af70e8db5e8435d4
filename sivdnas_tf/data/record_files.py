"""Damaged TFRecord files, read record by record: TensorFlow's reader gives up what follows a damaged record in its file.

A record is framed by its length (8 bytes, little-endian), the length's checksum (4), the content, and the content's checksum (4); both are
masked CRC-32C. Behind a damaged content the next record is found by the length; behind a damaged length nothing is.

Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/lib/hash/crc32c.h.
"""

import dataclasses
import functools
import os
import struct

import numpy as np

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits reversed
_MASK = 0xA282EAD8


def crc32c(content):
    """The CRC-32C of bytes, unmasked.

    The checksums of single bytes are joined in pairs, pairs of pairs and so on: what Python does byte by byte, on arrays.
    """
    checksums, level = _shifts(0)[0][np.frombuffer(content, np.uint8)], 0
    while len(checksums) > 1:
        if len(checksums) % 2:
            checksums = np.concatenate([np.zeros(1, np.uint32), checksums])  # zeros before the first byte change nothing
        checksums = _shifted(checksums[::2], level) ^ checksums[1::2]
        level += 1
    begin = np.uint32([0xFFFFFFFF])
    for level in range(len(content).bit_length()):
        if len(content) >> level & 1:
            begin = _shifted(begin, level)
    return int(np.bitwise_xor.reduce(checksums) ^ begin[0] ^ np.uint32(0xFFFFFFFF))


def masked(checksum):
    """A checksum as the files store it."""
    return ((checksum >> 15 | checksum << 17) + _MASK) & 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """What of a TFRecord file can be read.

    Attributes:
      path: of the file.
      frames: `(offset, length)` of each record's content in bytes, None for a content that is damaged; of all records that are found.
      end: why there are no more than these.
    """

    path: str
    frames: tuple
    end: str

    def problem(self, index):
        """Why a record cannot be read, or None."""
        if index >= len(self.frames):
            return self.end
        return "its checksum is not that of its content" if self.frames[index] is None else None

    def content(self, index):
        """The bytes of a record without a problem."""
        offset, length = self.frames[index]
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(length)


def scan(path):
    """The `RecordFile` of a path: every record is read, and both its checksums are computed.

    Raises:
      OSError: where the file cannot be read.
    """
    frames, size = [], os.path.getsize(path)
    with open(path, "rb") as file:
        while file.tell() < size:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return RecordFile(path, tuple(frames), f"the file ends within record {len(frames)}")
            length, checksum = _HEADER.unpack(header)
            if checksum != masked(crc32c(header[:8])):
                return RecordFile(path, tuple(frames), f"the length of record {len(frames)} is damaged, and what follows lost")
            offset = file.tell()
            if offset + length + _CHECKSUM.size > size:
                return RecordFile(path, tuple(frames), f"the file ends within record {len(frames)}")
            content, (checksum,) = file.read(length), _CHECKSUM.unpack(file.read(_CHECKSUM.size))
            frames.append((offset, length) if checksum == masked(crc32c(content)) else None)
    return RecordFile(path, tuple(frames), f"the file ends after {len(frames)} records")


def _shifted(checksums, level):
    """Checksums, uint32 [n], of what they are of with 2**level zero bytes behind it (from 0, and without the final inversion)."""
    tables = _shifts(level)
    total = tables[0][checksums & 255]
    for byte in range(1, 4):
        total ^= tables[byte][checksums >> np.uint32(8 * byte) & 255]
    return total


@functools.cache
def _shifts(level):
    """uint32 [4, 256]: what each value of each byte of a checksum, the lowest first, becomes behind 2**level zero bytes."""
    values = np.arange(256, dtype=np.uint32)
    if level:
        return np.stack([_shifted(_shifted(values << np.uint32(8 * byte), level - 1), level - 1) for byte in range(4)])
    table = values
    for _ in range(8):
        table = np.where(table & 1, table >> np.uint32(1) ^ np.uint32(_POLYNOMIAL), table >> np.uint32(1))
    return np.stack([table, *(values << np.uint32(8 * byte) for byte in range(3))])
