"""Sources: scikit-learn's digits and TFDS datasets that lie on this disk. No test reaches the network."""

import dataclasses
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import DataConfig
from sivdnas_tf.data.augment import Augmentation
from sivdnas_tf.data.datasets import batches, load_datasets
from sivdnas_tf.data.images import resize
from sivdnas_tf.errors import DataError

SPLITS = ("weights", "architecture", "holdout", "test")
N_CLASSES = 3
CLASS_NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a test reached for the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def digits():
    return load_datasets(DataConfig(), seed=0)


def test_digits_are_the_1797_images_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    assert digits.name == "digits"
    assert digits.image_shape == (8, 8, 1)
    assert digits.class_names == tuple("0123456789")
    sizes = {name: len(getattr(digits, name)) for name in SPLITS}
    assert sizes["test"] == round(0.2 * 1797)
    assert sizes["holdout"] == round(0.1 * (1797 - sizes["test"]))
    assert sizes["weights"] == sizes["architecture"] == (1797 - sizes["test"] - sizes["holdout"]) // 2
    for name in SPLITS:
        split = getattr(digits, name)
        assert split.name == name
        assert (split.images.dtype, split.labels.dtype, split.ids.dtype) == (np.uint8, np.int32, np.int64)
        np.testing.assert_array_equal(split.labels, source.target[split.ids])
        np.testing.assert_allclose(split.images[..., 0] / 255 * 16, source.images[split.ids], atol=0.5 * 16 / 255 + 1e-9)
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)


def test_digits_can_be_resized():
    datasets = load_datasets(DataConfig(resolution=16), seed=0)
    small = load_datasets(DataConfig(), seed=0)
    assert datasets.image_shape == (16, 16, 1)
    np.testing.assert_array_equal(datasets.weights.ids, small.weights.ids)
    shrunk = datasets.weights.images.reshape(-1, 8, 2, 8, 2, 1).mean(axis=(2, 4))
    likeness = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(shrunk, small.weights.images, strict=True)]
    assert min(likeness) > 0.9  # the same image, twice as large


def test_resizing_averages_instead_of_skipping_pixels():
    stripes = np.zeros((32, 32, 1), np.uint8)
    stripes[:, ::4] = 255
    resized = resize(tf.constant(stripes), 8).numpy()
    assert resized.dtype == np.uint8
    assert np.abs(resized[:, 1:-1].astype(int) - 255 / 4).max() < 20  # 0 without antialiasing


# TFDS. The datasets are made here, from memory, as `tfds build` would leave them on disk.


def square_images(count, size=6, channels=3):
    return list(np.random.default_rng(count).integers(0, 256, (count, size, size, channels)).astype(np.uint8))


def labelled(images, first=0):
    return [{"image": image, "label": (first + index) % N_CLASSES} for index, image in enumerate(images)]


def store(data_dir, splits, *, name="tiny", label=None, image=None, version="1.0.0", **others):
    """Prepares a TFDS dataset, {split: examples}, in data_dir and returns the configuration that names it."""
    import tensorflow_datasets as tfds

    features = {"image": image or tfds.features.Image(), "label": label or tfds.features.ClassLabel(names=CLASS_NAMES), **others}
    features = tfds.features.FeaturesDict({key: feature for key, feature in features.items() if feature != "none"})
    splits = {split: list(enumerate({key: example[key] for key in features} for example in examples)) for split, examples in splits.items()}
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name, version=version, features=features, split_datasets=splits, data_dir=data_dir, disable_shuffling=True
    )
    return DataConfig(name=name, data_dir=str(data_dir))


def test_tfds_dataset_is_read_in_order_with_its_own_test_split(tmp_path):
    train, test = square_images(600), square_images(30)
    config = store(tmp_path, {"train": labelled(train), "test": labelled(test), "validation": labelled(train[:9])})

    datasets = load_datasets(config, seed=0)

    assert datasets.name == "tiny"
    assert datasets.class_names == CLASS_NAMES
    assert datasets.image_shape == (6, 6, 3)
    for name in ("weights", "architecture", "holdout"):
        split = getattr(datasets, name)
        np.testing.assert_array_equal(split.images, np.stack(train)[split.ids])
        np.testing.assert_array_equal(split.labels, split.ids % N_CLASSES)
    np.testing.assert_array_equal(datasets.test.images, np.stack(test))
    np.testing.assert_array_equal(datasets.test.ids, np.arange(600, 630))
    assert (len(datasets.holdout), len(datasets.weights), len(datasets.architecture)) == (60, 270, 270)


def test_tfds_validation_is_the_test_split_where_test_has_no_labels(tmp_path):
    import tensorflow_datasets as tfds

    unlabelled = [{"image": image, "label": -1} for image in square_images(9)]
    validation = square_images(12)
    splits = {"train": labelled(square_images(90)), "test": unlabelled, "validation": labelled(validation)}
    datasets = load_datasets(store(tmp_path, splits, label=tfds.features.Scalar(np.int64)), seed=0)

    np.testing.assert_array_equal(datasets.test.images, np.stack(validation))
    assert datasets.class_names == ("0", "1", "2")


def test_tfds_without_test_split_gives_a_share_of_its_images(tmp_path):
    datasets = load_datasets(store(tmp_path, {"train": labelled(square_images(100))}), seed=0)
    assert [len(getattr(datasets, name)) for name in SPLITS] == [36, 36, 8, 20]


def test_tfds_whichever_version_was_prepared_is_found(tmp_path):
    # TFDS' own code knows "mnist" at another version only.
    config = store(tmp_path, {"train": labelled(square_images(90))}, name="mnist", version="0.9.0")
    assert load_datasets(config, seed=0).image_shape == (6, 6, 3)
    assert load_datasets(dataclasses.replace(config, name="mnist:0.9.0"), seed=0).image_shape == (6, 6, 3)


def test_tfds_images_of_different_sizes_need_a_resolution(tmp_path):
    images = square_images(60, size=6) + square_images(30, size=9)
    config = store(tmp_path, {"train": labelled(images)})

    with pytest.raises(DataError, match=r"differ in size: set data.resolution .* Received: \[6, 6, 3\] and \[9, 9, 3\]$"):
        load_datasets(config, seed=0)
    datasets = load_datasets(dataclasses.replace(config, resolution=6), seed=0)
    assert datasets.image_shape == (6, 6, 3)
    unchanged = datasets.train.ids < 60
    np.testing.assert_array_equal(datasets.train.images[unchanged], np.stack(images[:60])[datasets.train.ids[unchanged]])


def test_tfds_images_that_are_not_square_need_a_resolution(tmp_path):
    images = list(np.random.default_rng(0).integers(0, 256, (90, 4, 6, 3)).astype(np.uint8))
    config = store(tmp_path, {"train": labelled(images)})

    with pytest.raises(DataError, match=r"^the images of 'tiny' must be square .* Received: uint8 \[90, 4, 6, 3\]$"):
        load_datasets(config, seed=0)
    assert load_datasets(dataclasses.replace(config, resolution=5), seed=0).image_shape == (5, 5, 3)


def test_tfds_other_features_are_ignored(tmp_path):
    import tensorflow_datasets as tfds

    examples = [{**example, "mask": example["image"], "note": "x"} for example in labelled(square_images(90))]
    config = store(tmp_path, {"train": examples}, mask=tfds.features.Image(), note=tfds.features.Text())
    datasets = load_datasets(config, seed=0)
    np.testing.assert_array_equal(datasets.train.images, np.stack(square_images(90))[datasets.train.ids])


def test_tfds_supervised_keys_say_which_features_are_meant(tmp_path):
    import tensorflow_datasets as tfds

    class Named(tfds.core.GeneratorBasedBuilder):
        """A dataset whose features have other names."""

        VERSION = tfds.core.Version("1.0.0")
        name = "named"

        def _info(self):
            fine = tfds.features.ClassLabel(names=CLASS_NAMES)
            features = {"label": tfds.features.Scalar(np.int64), "photo": tfds.features.Image(shape=(6, 6, 3)), "fine": fine}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("photo", "fine"), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index, image in enumerate(square_images(90)):
                yield index, {"label": 17, "photo": image, "fine": index % N_CLASSES}

    tfds.disable_progress_bar()
    Named(data_dir=tmp_path).download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))

    datasets = load_datasets(DataConfig(name="named", data_dir=str(tmp_path)), seed=0)
    assert datasets.class_names == CLASS_NAMES
    np.testing.assert_array_equal(datasets.train.images, np.stack(square_images(90))[datasets.train.ids])
    np.testing.assert_array_equal(datasets.train.labels, datasets.train.ids % N_CLASSES)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            lambda tfds: {"label": "none", "text": tfds.features.Text()},
            "one integer label feature .* 0 such among the features image, text$",
        ),
        (lambda tfds: {"image": "none"}, "one 8-bit image feature .* 0 such among the features label$"),
        (lambda tfds: {"image": tfds.features.Image(shape=(6, 6, 1), dtype=np.float32)}, "one 8-bit image feature .* 0 such among"),
        (
            lambda tfds: {"label": "none", "one": tfds.features.Scalar(np.int64), "two": tfds.features.Scalar(np.int64)},
            "one integer label feature .* 2 such among the features image, one, two$",
        ),
    ],
)
def test_tfds_dataset_that_is_no_image_classification(tmp_path, features, message):
    import tensorflow_datasets as tfds

    features = features(tfds)
    images = [image[..., :1].astype(np.float32) for image in square_images(9)] if features.get("image") else square_images(9)
    examples = [{**example, "text": "x", "one": 1, "two": 2} for example in labelled(images)]
    config = store(tmp_path, {"train": examples}, **features)
    with pytest.raises(DataError, match=f"^TFDS dataset 'tiny' must have {message}"):
        load_datasets(config, seed=0)


def test_tfds_without_train_split(tmp_path):
    config = store(tmp_path, {"first": labelled(square_images(9)), "second": labelled(square_images(9))})
    with pytest.raises(DataError, match=r"^TFDS dataset 'tiny' must have a split 'train'. Received: first, second$"):
        load_datasets(config, seed=0)


def test_tfds_file_that_is_missing_or_damaged(tmp_path):
    config = store(tmp_path, {"train": labelled(square_images(90))})
    (record,) = tmp_path.glob("tiny/1.0.0/*.tfrecord*")
    content = record.read_bytes()
    record.write_bytes(content[:1000] + b"\0\0\0\0" + content[1004:])
    named = r"^more corrupt images than data.max_corrupt=0 allows: 'record \d+ of tiny-train\S+' cannot be read. .* Received: its checksum"
    with pytest.raises(DataError, match=named):
        load_datasets(config, seed=0)
    record.unlink()
    with pytest.raises(DataError, match=r"^split 'train' of dataset 'tiny' cannot be read. Received: .*tiny-train.tfrecord"):
        load_datasets(config, seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", r"^dataset 'cifar10' is not prepared in DIR/cifar10/\S+, .*`tfds build cifar10 --data_dir=DIR`, .*no network .*"),
        ("cifar1O", r"^dataset 'cifar1O' is neither prepared nor known to TFDS. Did you mean 'cifar10'\? Expected .*"),
        ("Digits", r"Did you mean 'digits'\?.*"),
        ("cifar10:0.0.1", r"^TFDS cannot open dataset 'cifar10:0.0.1': .*cannot be loaded at version 0.0.1.*"),
        ("cifar10/gray", r"^TFDS cannot open dataset 'cifar10/gray': BuilderConfig gray not found.*"),
        ("huggingface:mnist", r"^data.name must be 'digits' or a TFDS name: NAME, NAME/CONFIG or NAME:VERSION.*"),
        ("kubric:kubric", r"^data.name must be 'digits' or a TFDS name.*"),
        ("", r"^data.name must be 'digits' or a TFDS name.*"),
        ("two words", r"^data.name must be 'digits' or a TFDS name.*"),
    ],
)
def test_tfds_dataset_that_is_not_there(tmp_path, name, message):
    message = f"{message.replace('DIR', str(tmp_path))} Received: data.name={name!r}, data.data_dir='{tmp_path}'$"
    with pytest.raises(DataError, match=message) as caught:
        load_datasets(DataConfig(name=name, data_dir=str(tmp_path)), seed=0)
    assert "\n" not in str(caught.value)


def test_tfds_directory_on_the_network_is_refused(monkeypatch):
    message = r"^data.data_dir \(or TFDS_DATA_DIR\) must be a directory of this machine. Received: data.name='cifar10', data.data_dir="
    with pytest.raises(DataError, match=message + "'gs://tfds-data'$"):
        load_datasets(DataConfig(name="cifar10", data_dir="gs://tfds-data"), seed=0)
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://tfds-data")
    with pytest.raises(DataError, match=message + "''$"):
        load_datasets(DataConfig(name="cifar10"), seed=0)


def test_digits_do_not_import_tfds():
    script = (
        "import sys\nfrom sivdnas_tf.config import DataConfig\nfrom sivdnas_tf.data.datasets import load_datasets\n"
        "load_datasets(DataConfig(), 0)\nsys.exit('tensorflow_datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_real_cifar10():
    data_dir = os.environ.get("SIVDNAS_CIFAR10_DIR")
    if not data_dir:
        pytest.skip("SIVDNAS_CIFAR10_DIR does not name a directory in which TFDS' cifar10 was prepared")
    datasets = load_datasets(DataConfig(name="cifar10", data_dir=data_dir), seed=0)

    assert datasets.image_shape == (32, 32, 3)
    assert [len(getattr(datasets, name)) for name in SPLITS] == [22_500, 22_500, 5_000, 10_000]
    for name, of_class in (("weights", 2250), ("architecture", 2250), ("holdout", 500), ("test", 1000)):
        np.testing.assert_array_equal(np.bincount(getattr(datasets, name).labels), [of_class] * 10)
    assert len(np.unique(np.concatenate([getattr(datasets, name).ids for name in SPLITS]))) == 60_000
    # The published statistics of the 50,000 training images (quark0/darts, cnn/utils.py); JPEG copies differ a little.
    np.testing.assert_allclose(datasets.mean, [0.4914, 0.4822, 0.4465], atol=0.01)
    np.testing.assert_allclose(datasets.std, [0.2470, 0.2435, 0.2616], atol=0.01)
    images, labels = next(
        iter(batches(datasets.train, 64, mean=datasets.mean, std=datasets.std, seed=0, epoch=0, augmentation=Augmentation(4, True, 16)))
    )
    assert images.shape == (64, 32, 32, 3)
    assert labels.shape == (64,)
    assert np.isfinite(images).all()
