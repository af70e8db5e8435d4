"""Images a second of the training's input pipeline alone, beside a bare decode-and-resize loop of `tf.data` in the same run: JSON lines.

    python benchmarks/input_pipeline.py                                        # 224 pixels, 400 JPEGs of 500x375
    python benchmarks/input_pipeline.py --images=100 --resolution=64 --repetitions=3

Makes JPEGs in a temporary directory, as a folder of classes and as TFDS records, and goes through all of them, in batches, once a case and
repetition, the cases in turn. The bare loops read a file, decode it (`tf.io.decode_jpeg`), resize the whole image (`tf.image.resize`), and
batch. The pipeline's cases (`data.streaming`) crop at random, flip and normalise, with and without colour jitter: files that are read
every time, files that stay in memory encoded, and records that are read a shard after the other. The first repetition only warms up.

A line a case: the median images a second, its ratio to the loop "bare" (with antialias, as the pipeline resizes), that of the fastest
passes of both, and the median CPU time; the last two depend less on what else the machine does.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

CLASSES = 4
BARE = "bare"
JITTER = {"brightness_jitter": 0.4, "contrast_jitter": 0.4, "saturation_jitter": 0.4, "hue_jitter": 0.2}


def arguments():
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("images", 400), ("width", 500), ("height", 375), ("resolution", 224), ("batch_size", 64), ("repetitions", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def make_images(root, size):
    """Writes the JPEGs, smooth colours under noise, in directories of classes; returns their paths."""
    import numpy as np
    from PIL import Image

    rng, paths = np.random.default_rng(0), []
    for number in range(size.images):
        colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize((size.width, size.height))
        pixels = np.asarray(colours) + rng.normal(0, 12, (size.height, size.width, 3))
        path = root / str(number % CLASSES) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(str(path))
    return paths


def make_records(data_dir, paths):
    """Stores the same files, as they are, as a TFDS dataset; returns its name."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=CLASSES)})
    examples = [(number, {"image": path, "label": number % CLASSES}) for number, path in enumerate(paths)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="jpegs", version="1.0.0", features=features, split_datasets={"train": examples}, data_dir=data_dir
    )
    return "jpegs"


def bare_loop(paths, size, antialias):
    """A function to the loop that a script without this package would write."""
    import tensorflow as tf

    def load(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, [size.resolution, size.resolution], antialias=antialias)

    files = tf.data.Dataset.from_tensor_slices(paths)
    dataset = files.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(size.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return lambda epoch: dataset


def pipeline(data_config, size, cache_gb, jitter):
    """A function of the epoch to the training's batches."""
    import dataclasses

    from sivdnas_tf.data.augment import configured_augmentation
    from sivdnas_tf.data.datasets import batches
    from sivdnas_tf.data.streamed_datasets import load_streams

    config = dataclasses.replace(data_config, cache_gb=cache_gb, **(JITTER if jitter else {}))
    datasets = load_streams(config, seed=0)
    options = {"mean": datasets.mean, "std": datasets.std, "seed": 0, "augmentation": configured_augmentation(config, cutout_length=0)}
    return lambda epoch: batches(datasets.train, size.batch_size, epoch=epoch, **options)


def cases(root, size):
    """The cases' functions of an epoch to a dataset, by name."""
    from sivdnas_tf.config import DataConfig

    images, data_dir = root / "images", root / "records"
    images.mkdir()
    paths = make_images(images, size)
    common = {
        "resolution": size.resolution,
        "streaming": True,
        "random_resized_crop": True,
        "holdout_fraction": 0.02,
        "test_fraction": 0.02,
    }
    common |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    files = DataConfig(name=f"folder:{images}", **common)
    records = DataConfig(name=make_records(data_dir, paths), data_dir=str(data_dir), **common)
    found = {BARE: bare_loop(paths, size, True), "bare_without_antialias": bare_loop(paths, size, False)}
    for name, config, cache_gb in (("files", files, 0.0), ("files_in_memory", files, 8.0), ("shards", records, 0.0)):
        found[name] = pipeline(config, size, cache_gb, jitter=False)
        found[f"{name}_with_colour_jitter"] = pipeline(config, size, cache_gb, jitter=True)
    return found


def measure(dataset):
    """Images a second, and milliseconds of CPU an image, of a pass over a dataset of batches, whose first component holds the images."""
    count, begin, cpu = 0, time.perf_counter(), time.process_time()
    for batch in dataset:
        count += (batch[0] if isinstance(batch, tuple) else batch).shape[0]
    return count / (time.perf_counter() - begin), 1000 * (time.process_time() - cpu) / count


def main():
    """Measures every case and prints its line."""
    size = arguments()
    from sivdnas_tf.quiet import import_tensorflow, quiet

    import_tensorflow()
    with tempfile.TemporaryDirectory() as directory:
        with quiet((1, 2)):
            to_measure = cases(pathlib.Path(directory), size)
        measured = {name: [] for name in to_measure}
        for repetition in range(size.repetitions + 1):
            for name, make in to_measure.items():
                measured[name].append(measure(make(repetition)))
    shape = {**vars(size), "cores": len(os.sched_getaffinity(0))}
    medians = {name: [statistics.median(values) for values in zip(*passes[1:], strict=True)] for name, passes in measured.items()}
    fastest = {name: max(rate for rate, _ in passes[1:]) for name, passes in measured.items()}
    for name, (rate, cpu) in medians.items():
        line = {"images_per_second": round(rate, 1), "to_bare": round(rate / medians[BARE][0], 3)}
        line |= {"fastest_to_bare": round(fastest[name] / fastest[BARE], 3), "cpu_ms_an_image": round(cpu, 2)}
        print(json.dumps({"case": name, **shape, **line}))


if __name__ == "__main__":
    main()
