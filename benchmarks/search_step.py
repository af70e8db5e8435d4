"""Time and memory of the supernet's bilevel step on random images, beside the time of its operations alone: JSON lines.

    python benchmarks/search_step.py                                  # the full DARTS size, operations kept at 1, 0.75, 0.5, 0.25
    python benchmarks/search_step.py --keep_probability=1 --recompute # with search.recompute
    python benchmarks/search_step.py --channels=4 --cells=3 --batch_size=32 --resolution=8

A process a case, and a line: seconds from the process' start to the end of importing, building, tracing and the first step (each apart,
and their sum), then the median wall and the mean CPU seconds of --steps further steps, and peak resident memory. `keep_probability` is
that of every operation; edges are all kept. `computed` is the share of the operations that the gates of these steps let through.

The line "kernels" is what a step with every gate open cannot go below without changing what is computed: every candidate operation
alone, of each kind and shape, forward and backward (in the architecture's step: forward, and the gradient to the input), times its count.
It also has the step's multiply-adds, and how long they take at the rate of a large matrix product. The last line has the ratios, those
of CPU seconds too: other work on the machine lengthens them less.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time

START = time.perf_counter()
CERTAIN = -20.0  # log dropout rate at which a gate is open in all but 2e-9 of the draws
COPIES = 4  # of an operation in one function: what calling a function costs is shared between them
MATRIX = 3000  # rows and columns of the product that shows the machine's rate


def arguments():
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("channels", 16), ("cells", 8), ("batch_size", 64), ("resolution", 32), ("steps", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep_probability", default="1,0.75,0.5,0.25", help="one case each, separated by commas")
    parser.add_argument("--recompute", action="store_true", help="search.recompute")
    parser.add_argument("--case", help="kernels, or a keep probability: measures it in this process")
    return parser.parse_args()


def settings(size):
    """The search's configuration."""
    from sivdnas_tf.config import Config, replace

    return replace(Config(), search={"channels": size.channels, "cells": size.cells, "recompute": size.recompute})


def build(size, keep_probability):
    """A compiled supernet of the DARTS space whose operations are kept with the asked probability."""
    import keras
    import tensorflow as tf

    from sivdnas_tf.training.search import build_supernet

    keras.utils.set_random_seed(0)
    supernet = build_supernet(settings(size), (size.resolution, size.resolution, 3), classes=10, steps=1000)
    rate = CERTAIN if keep_probability >= 1 else math.log(1 / keep_probability - 1)
    for layers, value in ((supernet.operation_dropout, rate), (supernet.edge_dropout, CERTAIN)):
        for layer in layers.values():
            layer.log_dropout_rate.assign(tf.fill(layer.log_dropout_rate.shape, value))
    return supernet


def graph_nodes(function):
    """Nodes of a concrete function's graph and of the functions that it calls."""
    graph = function.graph.as_graph_def()
    return len(graph.node) + sum(len(called.node_def) for called in graph.library.function)


def measure_step(size, keep_probability):
    """The line of one case."""
    from sivdnas_tf.quiet import import_tensorflow

    import_tensorflow()
    from sivdnas_tf.training.distribution import functions_as_written

    imported = time.perf_counter()
    with functions_as_written():  # as the search itself runs
        return {"keep_probability": keep_probability, "import_seconds": round(imported - START, 2), **run_steps(size, keep_probability)}


def compiled_step(supernet):
    """The two functions that the search compiles, and a function of a batch that makes a step of them and returns when it is done.

    As in the search's loop, the second half is traced while the first one starts.
    """
    import tensorflow as tf

    from sivdnas_tf.training.tracing import AheadTracer

    tracer = AheadTracer()
    halves = [tf.function(half, autograph=False, jit_compile=False) for half in (supernet.architecture_step, supernet.weight_step)]

    def step(data):
        tracer.trace(halves, data)
        for half in halves:
            tracer.wait(half)
            for value in half(data).values():
                float(value)

    return halves, step


def run_steps(size, keep_probability):
    """What comes after importing, as fields of the line."""
    import numpy as np
    import tensorflow as tf

    begun = time.perf_counter()
    supernet = build(size, keep_probability)
    built = time.perf_counter()
    generator = np.random.default_rng(0)

    def batch():
        images = generator.normal(size=(size.batch_size, size.resolution, size.resolution, 3)).astype(np.float32)
        return tf.constant(images), tf.constant(generator.integers(0, 10, size.batch_size).astype(np.int32))

    halves, step = compiled_step(supernet)
    step((batch(), batch()))
    first = time.perf_counter()
    nodes = sum(graph_nodes(half.get_concrete_function((batch(), batch()))) for half in halves)
    seconds, cpu = [], time.process_time()
    for _ in range(size.steps):
        data = batch(), batch()
        begin = time.perf_counter()
        step(data)
        seconds.append(time.perf_counter() - begin)
    cpu = time.process_time() - cpu
    draws = [supernet.samples(supernet.draw(step)) for step in range(1, size.steps + 1)]
    computed = [np.mean(draw[cell.cell_type][1]) for draw in draws for cell in supernet.plan.cells]
    return {
        "build_seconds": round(built - begun, 2),
        "trace_and_first_step_seconds": round(first - built, 2),
        "start_to_first_step_seconds": round(first - START, 2),
        "median_step_seconds": round(statistics.median(seconds), 3),
        "cpu_seconds_a_step": round(cpu / size.steps, 3),
        "computed": round(float(np.mean(computed)), 3),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "graph_nodes": nodes,
    }


def edge_kinds(size):
    """The supernet's edges: a dict from (channels, stride, pixels of the input) to how many there are."""
    from sivdnas_tf.search_space import get_search_space
    from sivdnas_tf.training.search import supernet_plan

    config, counts = settings(size), {}
    plan = supernet_plan(config, (size.resolution, size.resolution, 3), classes=10)
    for cell in plan.cells:
        for predecessor, _ in get_search_space(config.search.search_space).edges:
            stride = cell.stride(predecessor)
            kind = cell.channels, stride, cell.out_resolution * stride
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def measure_kernels(size):
    """The line of the operations alone."""
    from sivdnas_tf.quiet import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    from sivdnas_tf.layers.operations import candidate_operation
    from sivdnas_tf.search_space import DARTS_PRIMITIVES

    def seconds_of(layer, images, to_weights):
        weights = [variable.value for variable in layer.trainable_variables] if to_weights else []

        @tf.function(autograph=False, jit_compile=False)
        def compute(copies):
            inputs = tf.unstack(copies)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([*inputs, *weights])
                outputs = [layer(image, training=True) if _takes_training(layer) else layer(image) for image in inputs]
            return outputs, tape.gradient(outputs, [*inputs, *weights])

        compute(images)
        seconds = []
        for _ in range(size.steps):
            begin = time.perf_counter()
            compute(images)
            seconds.append((time.perf_counter() - begin) / COPIES)
        return statistics.median(seconds)

    totals = {"weight": 0.0, "architecture": 0.0}
    by_primitive = dict.fromkeys(DARTS_PRIMITIVES, 0.0)
    for (channels, stride, pixels), count in edge_kinds(size).items():
        images = tf.random.normal([COPIES, size.batch_size, pixels, pixels, channels])
        for primitive in DARTS_PRIMITIVES:
            layer = candidate_operation(
                primitive, channels=channels, stride=stride, normalization="batch_statistics", pool_normalization="batch_statistics"
            )
            layer.build(images.shape[1:])
            for part, to_weights in (("weight", True), ("architecture", False)):
                seconds = count * seconds_of(layer, images, to_weights)
                totals[part] += seconds
                by_primitive[primitive] += seconds
    return {
        "kernels": {name: round(seconds, 3) for name, seconds in by_primitive.items()},
        "weight_step_kernel_seconds": round(totals["weight"], 3),
        "architecture_step_kernel_seconds": round(totals["architecture"], 3),
        "kernel_seconds": round(sum(totals.values()), 3),
        **measure_arithmetic(size),
    }


def measure_arithmetic(size):
    """Multiply-adds of a step with every gate open, and their seconds at the rate of a large matrix product.

    A convolution's gradient to its input, and that to its filter, cost as much as itself: two passes in the architecture's step, three in
    the weights'.
    """
    import tensorflow as tf

    from sivdnas_tf.genotype import Cell, Edge, Genotype
    from sivdnas_tf.profiling.costs import network_cost
    from sivdnas_tf.search_space import get_search_space

    space = get_search_space(settings(size).search.search_space)
    every = Cell(tuple(Edge(node, predecessor, name) for predecessor, node in space.edges for name in space.primitives), tuple(space.nodes))
    network = {"network": "cifar", "channels": size.channels, "cells": size.cells, "classes": 10, "resolution": size.resolution}
    multiply_adds = 5 * size.batch_size * network_cost(Genotype("every operation", every, every), **network).macs
    matrix, seconds = tf.random.normal([MATRIX, MATRIX]), []
    float(tf.matmul(matrix, matrix)[0, 0])
    for _ in range(size.steps):
        begin = time.perf_counter()
        float(tf.matmul(matrix, matrix)[0, 0])
        seconds.append(time.perf_counter() - begin)
    rate = MATRIX**3 / statistics.median(seconds)
    return {"step_multiply_adds": multiply_adds, "arithmetic_seconds": float(f"{multiply_adds / rate:.3g}")}


def _takes_training(layer):
    from sivdnas_tf.layers import blocks

    return isinstance(layer, (blocks.Chain, blocks.FactorizedReduce))


def main():
    """Runs every case in a process of its own, or the one that `--case` names in this."""
    size = arguments()
    if size.case:
        print(json.dumps(measure_kernels(size) if size.case == "kernels" else measure_step(size, float(size.case))))
        return
    lines = {}
    for case in [*size.keep_probability.split(","), "kernels"]:
        process = subprocess.run([sys.executable, *sys.argv, f"--case={case}"], stdout=subprocess.PIPE, text=True, check=True)
        lines[case] = json.loads(process.stdout)
        shape = {name: getattr(size, name) for name in ("channels", "cells", "batch_size", "resolution", "recompute", "steps")}
        print(json.dumps({**shape, **lines[case]}), flush=True)
    first, *others = size.keep_probability.split(",")
    seconds = {case: lines[case]["median_step_seconds"] for case in (first, *others)}
    ratios = {f"{case}_to_{first}": round(seconds[case] / seconds[first], 3) for case in others}
    cpu = {case: lines[case]["cpu_seconds_a_step"] for case in (first, *others)}
    ratios |= {f"{case}_to_{first}_cpu": round(cpu[case] / cpu[first], 3) for case in others}
    to_floors = {f"{first}_to_{name}": round(seconds[first] / lines["kernels"][f"{name}_seconds"], 3) for name in ("kernel", "arithmetic")}
    print(json.dumps({**to_floors, **ratios}))


if __name__ == "__main__":
    main()
