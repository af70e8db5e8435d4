"""How long a network takes an image in each runtime on this machine."""

import os
import pathlib
import tempfile
import time

import numpy as np

from export import runtimes
from export.freeze import with_preprocessing
from export.to_onnx import write_onnx
from export.to_tflite import write_tflite
from sivdnas_tf.config import LATENCY_RUNTIMES as RUNTIMES
from sivdnas_tf.errors import ConfigError
from sivdnas_tf.models.evaluation_network import evaluation_network
from sivdnas_tf.profiling.costs import deployed_plan

_WARM_UP, _RUNS = 5, 30
_REPEATS = 3
_PERCENTILES = (50, 90, 99)


def measure_latency(model, input_shapes=None, names=RUNTIMES, warm_up=_WARM_UP, runs=_RUNS):
    """Times single images, after a warm-up.

    Args:
      model: a Keras model of one input and one output, trained or not: the values change nothing.
      input_shapes: the input's shape without the batch, in a list; None takes the model's own.
      names: of `RUNTIMES`: "keras" (the compiled function), "tflite_1" and "tflite_all" (one thread, all), "onnxruntime" (all threads).
      warm_up: runs that are not counted.
      runs: runs that are.

    Returns:
      A list of dicts: "runtime", "threads", "runs", and "p50_ms", "p90_ms", "p99_ms", percentiles in milliseconds.

    Raises:
      ConfigError: for a model of several inputs or outputs, or an unknown runtime.
    """
    unknown = [name for name in names if name not in RUNTIMES]
    if unknown or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ConfigError(
            f"latency is measured of a model of one input and one output, in any of {', '.join(RUNTIMES)}. "
            f"Received: {len(model.inputs)} inputs, {len(model.outputs)} outputs, runtimes {', '.join(names)}"
        )
    shape = tuple(model.inputs[0].shape[1:] if input_shapes is None else input_shapes[0])
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    deployed = with_preprocessing(model, "outside", None, None, input_shape=shape)
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            call, threads = _callable(name, deployed, pathlib.Path(directory))
            results.append({"runtime": name, "threads": threads, "runs": runs, **_timed(call, image, warm_up, runs)})
    return results


def median_latency_ms(model, runtime):
    """Median time of one image in milliseconds, in one of `RUNTIMES`: the smallest of three, since other work only lengthens it.

    Model and errors as of `measure_latency`.
    """
    return min(row["p50_ms"] for row in measure_latency(model, names=(runtime,) * _REPEATS))


def deployed_latency_ms(genotype, budget):
    """Median time of one image in milliseconds of the network that a `config.BudgetConfig` describes, in its `latency_runtime`.

    The network is built of the genotype with untrained weights, which take as long as trained ones.
    """
    network = evaluation_network(genotype, deployed_plan(genotype, budget))
    return median_latency_ms(network, budget.latency_runtime)


def _callable(name, model, directory):
    """A function of an image batch of one, and the number of threads it may use."""
    cores = os.cpu_count()
    if name == "keras":
        import tensorflow as tf

        function = tf.function(lambda images: model(images, training=False), autograph=False)
        return lambda image: function(tf.constant(image)).numpy(), cores
    if name == "onnxruntime":
        path = directory / "model.onnx"
        write_onnx(model, path)
        return runtimes.load("onnx", path).run, cores
    path, threads = directory / "model.tflite", 1 if name == "tflite_1" else cores
    if not path.exists():
        write_tflite(model, path)
    return runtimes.load("tflite", path, threads=threads).run, threads


def _timed(call, image, warm_up, runs):
    times = []
    for _ in range(warm_up + runs):
        start = time.perf_counter()
        call(image)
        times.append(1000 * (time.perf_counter() - start))
    return {f"p{share}_ms": round(float(np.percentile(times[warm_up:], share)), 3) for share in _PERCENTILES}


def latency_lines(name, rows):
    """The result of `measure_latency` as lines for a terminal."""
    yield f"{name}: milliseconds an image on this machine, {rows[0]['runs']} runs"
    yield f"{'runtime':12}  {'threads':>7}  {'p50':>9}  {'p90':>9}  {'p99':>9}"
    for row in rows:
        yield f"{row['runtime']:12}  {row['threads']:>7}  {row['p50_ms']:>9.3f}  {row['p90_ms']:>9.3f}  {row['p99_ms']:>9.3f}"
