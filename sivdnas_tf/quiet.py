"""Keeps a library's chatter off the terminal. Imports no TensorFlow."""

import contextlib
import os
import sys
import tempfile


@contextlib.contextmanager
def quiet(descriptors=(2,)):
    """Sends what is written to file descriptors (C++ libraries included) to a buffer, which is shown only if the block raises.

    Args:
      descriptors: file descriptors, 1 for standard output, 2 for standard error.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as buffer:
        saved = {descriptor: os.dup(descriptor) for descriptor in descriptors}
        for descriptor in descriptors:
            os.dup2(buffer.fileno(), descriptor)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in saved.items():
                os.dup2(copy, descriptor)
                os.close(copy)
            if failed:
                buffer.seek(0)
                sys.stderr.write(buffer.read().decode(errors="replace"))


def import_tensorflow():
    """Imports TensorFlow and runs one operation with its start-up lines kept off the terminal.

    With TF_CONFIG it runs none: a strategy over several hosts must come before any operation (`training.distribution.make_strategy`).

    Turns oneDNN's kernels on unless TF_ENABLE_ONEDNN_OPTS says otherwise: TensorFlow does so by itself on some processors only, and
    without them depthwise convolutions take several times as long.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with quiet():
        import tensorflow as tf

        if "TF_CONFIG" not in os.environ:
            tf.constant(0) + 1
    tf.get_logger().setLevel("ERROR")
