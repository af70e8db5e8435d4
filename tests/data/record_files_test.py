"""TFRecord files: their checksums, and what of a damaged one is found."""

import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.data.record_files import crc32c, masked, scan

CONTENTS = [b"", b"a", bytes(range(256)), b"\0" * 7, b"last"]


@pytest.fixture(name="path")
def fixture_path(tmp_path):
    path = str(tmp_path / "records")
    with tf.io.TFRecordWriter(path) as writer:
        for content in CONTENTS:
            writer.write(content)
    return path


def bit_by_bit(content):
    checksum = 0xFFFFFFFF
    for byte in content:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ (0x82F63B78 if checksum & 1 else 0)
    return checksum ^ 0xFFFFFFFF


def test_the_checksum_is_that_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's polynomial; the usual check value
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    rng = np.random.default_rng(0)
    for length in (*range(20), 31, 33, 255, 256, 257, 1000):
        content = rng.integers(0, 256, length).astype(np.uint8).tobytes()
        assert crc32c(content) == bit_by_bit(content)
    assert masked(0) == 0xA282EAD8


def test_every_record_of_a_whole_file_is_found(path):
    file = scan(path)
    assert [file.content(index) for index in range(len(CONTENTS))] == CONTENTS
    assert [file.problem(index) for index in range(len(CONTENTS))] == [None] * len(CONTENTS)
    assert file.problem(len(CONTENTS)) == "the file ends after 5 records"


def test_a_missing_file_is_the_system_s_error(path):
    with pytest.raises(FileNotFoundError):
        scan(path + "x")


def test_an_empty_file_holds_no_record(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(b"")
    assert scan(str(path)).problem(0) == "the file ends after 0 records"


@pytest.mark.parametrize("kept", [1, 11])
def test_a_file_that_ends_within_a_header(path, kept):
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[: 16 + kept])
    file = scan(path)
    assert (file.content(0), file.problem(1)) == (b"", "the file ends within record 1")
