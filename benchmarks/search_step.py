"""Time and memory of the supernet's bilevel step on random images: one JSON line.

    python benchmarks/search_step.py                                  # the full DARTS size
    python benchmarks/search_step.py --channels=4 --cells=3 --batch_size=32 --resolution=8

Seconds are of this process: from its start to the end of building, of tracing, of the first step (each apart), then the median of
--steps further steps. `keep_probability` is that of every operation; edges are all kept.
"""

import argparse
import json
import math
import resource
import statistics
import time

START = time.perf_counter()
CERTAIN = -20.0  # log dropout rate at which a gate is open in all but 2e-9 of the draws


def arguments():
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("channels", 16), ("cells", 8), ("batch_size", 64), ("resolution", 32), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep_probability", type=float, default=1.0)
    return parser.parse_args()


def build(size):
    """A compiled supernet of the DARTS space whose operations are kept with the asked probability."""
    import keras
    import tensorflow as tf

    from sivdnas_tf.config import Config, replace
    from sivdnas_tf.training.search import build_supernet

    keras.utils.set_random_seed(0)
    config = replace(Config(), search={"channels": size.channels, "cells": size.cells})
    supernet = build_supernet(config, (size.resolution, size.resolution, 3), classes=10, steps=1000)
    rate = CERTAIN if size.keep_probability >= 1 else math.log(1 / size.keep_probability - 1)
    for layers, value in ((supernet.operation_dropout, rate), (supernet.edge_dropout, CERTAIN)):
        for layer in layers.values():
            layer.log_dropout_rate.assign(tf.fill(layer.log_dropout_rate.shape, value))
    return supernet


def main():
    """Measures one case and prints its line."""
    size = arguments()
    from sivdnas_tf.quiet import import_tensorflow

    import_tensorflow()
    import numpy as np
    import tensorflow as tf

    imported = time.perf_counter()
    supernet = build(size)
    built = time.perf_counter()
    generator = np.random.default_rng(0)

    def batch():
        images = generator.normal(size=(size.batch_size, size.resolution, size.resolution, 3)).astype(np.float32)
        return tf.constant(images), tf.constant(generator.integers(0, 10, size.batch_size).astype(np.int32))

    step = tf.function(supernet.bilevel_step, autograph=False, jit_compile=False)
    step.get_concrete_function((batch(), batch()))
    traced = time.perf_counter()
    float(step((batch(), batch()))["loss"])
    first = time.perf_counter()
    seconds = []
    for _ in range(size.steps):
        data = batch(), batch()
        begin = time.perf_counter()
        float(step(data)["loss"])
        seconds.append(time.perf_counter() - begin)
    line = {
        **vars(size),
        "import_seconds": round(imported - START, 2),
        "build_seconds": round(built - imported, 2),
        "trace_seconds": round(traced - built, 2),
        "first_step_seconds": round(first - traced, 2),
        "median_step_seconds": round(statistics.median(seconds), 3),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
