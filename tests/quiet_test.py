import os
import subprocess
import sys

import pytest

from sivdnas_tf.quiet import quiet


def open_descriptors():
    return sorted(os.listdir("/dev/fd"))


def outputs(*lines):
    """Standard output and error of a fresh Python, whose own streams are the descriptors, as in a command."""
    script = "\n".join(["import os, subprocess, sys", "from sivdnas_tf.quiet import quiet", *lines])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return result.stdout, result.stderr


def test_what_is_written_to_standard_error_is_kept_back():
    assert outputs(
        "with quiet():",
        "    os.write(2, b'noise of a library')",
        "    print('noise of Python', file=sys.stderr)",
        "    subprocess.run([sys.executable, '-c', 'import sys; print(1, file=sys.stderr)'], check=True)",
        "    print('shown')",
        "print('after', file=sys.stderr)",
    ) == ("shown\n", "after\n")


def test_both_descriptors():
    assert outputs(
        "sys.stdout.write('before ')  # not yet flushed",
        "with quiet((1, 2)):",
        "    os.write(1, b'noise')",
        "    print('noise')",
        "    os.write(2, b'noise')",
        "print('after')",
    ) == ("before after\n", "")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_shows_what_was_kept_back(capfd, error):
    with pytest.raises(error), quiet((1, 2)):
        os.write(1, b"one\n")
        os.write(2, "zwei \u00e4\n".encode())
        os.write(2, b"\xff\n")
        raise error
    out, err = capfd.readouterr()
    assert out == "" and err == "one\nzwei \u00e4\n\ufffd\n"


def test_blocks_nest(capfd):
    with quiet():
        os.write(2, b"outer")
        with quiet():
            os.write(2, b"inner")
        os.write(2, b"outer")
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_no_descriptor_is_left_open(capfd):
    before = open_descriptors()
    with quiet((1, 2)):
        pass
    with pytest.raises(ValueError), quiet():
        raise ValueError
    assert open_descriptors() == before


def test_tensorflow_starts_without_a_word_and_the_module_without_tensorflow():
    script = (
        "import sys, sivdnas_tf.quiet as quiet\n"
        "assert 'tensorflow' not in sys.modules\n"
        "quiet.import_tensorflow()\n"
        "import tensorflow as tf\n"
        "tf.get_logger().warning('chatter')\n"
        "print('ready', int(tf.constant(1) + 1))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ready 2\n", "")
