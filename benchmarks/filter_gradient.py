"""The filter gradient of 5x5 depthwise convolutions: TensorFlow's kernel beside that of `layers.depthwise`.

One JSON line a shape:

    python benchmarks/filter_gradient.py

Milliseconds of a forward and backward pass to the filter alone, medians of --repeats, the two taken in turn. The shapes are those of
the full DARTS size: cells of three resolutions, and the phases of dilated convolutions.
"""

import argparse
import json
import statistics
import time

SHAPES = ((64, 32, 16), (64, 16, 32), (64, 8, 64), (256, 16, 16), (256, 8, 32), (256, 4, 64))


def main():
    """Measures every shape (batch, pixels, channels)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    from sivdnas_tf.quiet import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    from sivdnas_tf.layers import blocks

    def timed(layer, training):
        @tf.function(autograph=False)
        def gradient(images, upstream):
            kernel = tf.convert_to_tensor(layer.kernel)
            with tf.GradientTape() as tape:
                tape.watch(kernel)
                output = layer.stateless_call([kernel], [], images, training=training)[0]
            return tape.gradient(output, kernel, output_gradients=upstream)

        def milliseconds(images, upstream):
            begin = time.perf_counter()
            gradient(images, upstream).numpy()
            return 1e3 * (time.perf_counter() - begin)

        return milliseconds

    for batch, pixels, channels in SHAPES:
        layer = blocks.depthwise_conv(5, name="depthwise")
        images, upstream = tf.random.normal([2, batch, pixels, pixels, channels])
        layer.build(images.shape)
        cases = {"plain": timed(layer, training=False), "columns": timed(layer, training=True)}
        seconds = {name: [] for name in cases}
        for repeat in range(repeats + 1):
            for name, case in cases.items():
                value = case(images, upstream)
                if repeat:  # the first one traces
                    seconds[name].append(value)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        line = {"batch": batch, "pixels": pixels, "channels": channels}
        line |= {f"{name}_ms": round(value, 2) for name, value in medians.items()}
        print(json.dumps({**line, "ratio": round(medians["columns"] / medians["plain"], 3)}), flush=True)


if __name__ == "__main__":
    main()
