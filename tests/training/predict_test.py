import json

import keras
import numpy as np
import pytest
from PIL import Image

from sivdnas_tf.data.datasets import datasets_from_arrays
from sivdnas_tf.data.description import PATH, DataDescription, read_description, write_description
from sivdnas_tf.errors import DataError, RunDirError
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.training.predict import predict_files

CLASSES = ("кошка", "two words", "c", "d")


def linear_model(channels):
    inputs = keras.Input((4, 4, channels))
    dense = keras.layers.Dense(4, use_bias=False)
    model = keras.Model(inputs, dense(keras.layers.Flatten()(inputs)))
    dense.set_weights([np.random.default_rng(1).normal(size=(16 * channels, 4)).astype(np.float32)])
    return model, dense.get_weights()[0]


@pytest.fixture(name="paths")
def fixture_paths(tmp_path):
    paths = []
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.parametrize("channels", [1, 3])
def test_labels_and_probabilities_are_those_of_the_pixels(paths, channels):
    mean, std = np.linspace(0.2, 0.4, channels, dtype=np.float32), np.linspace(0.5, 1.0, channels, dtype=np.float32)
    model, kernel = linear_model(channels)
    received = predict_files(model, DataDescription((4, 4, channels), CLASSES, mean, std), paths, top=2)
    assert len(received) == 5
    for path, pairs in zip(paths, received, strict=True):
        pixels = np.asarray(Image.open(path).convert("L" if channels == 1 else "RGB")).reshape(4, 4, channels)
        logits = ((pixels / 255 - mean) / std).reshape(-1) @ kernel
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        order = np.argsort(-probabilities)[:2]
        assert [label for label, _ in pairs] == [CLASSES[label] for label in order]
        np.testing.assert_allclose([probability for _, probability in pairs], probabilities[order], rtol=1e-4)


def test_a_file_is_cut_as_the_images_of_the_evaluation_were(tmp_path):
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[2:6, 4:8] = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    Image.fromarray(pixels[2:6, 4:8]).save(tmp_path / "square.png")
    model, _ = linear_model(3)
    description = DataDescription((4, 4, 3), CLASSES, np.zeros(3, np.float32), np.ones(3, np.float32))
    cut = DataDescription((4, 4, 3), CLASSES, np.zeros(3, np.float32), np.ones(3, np.float32), central_crop=0.5)
    expected = predict_files(model, description, [tmp_path / "square.png"], top=4)
    assert predict_files(model, cut, [tmp_path / "whole.png"], top=4) == expected
    assert predict_files(model, description, [tmp_path / "whole.png"], top=4) != expected


def test_a_central_crop_is_in_the_description_where_there_is_one(tmp_path):
    run_dir = RunDir(tmp_path)
    description = DataDescription((4, 4, 3), CLASSES, np.zeros(3, np.float32), np.ones(3, np.float32), central_crop=0.875)
    write_description(run_dir, description)
    assert read_description(run_dir).central_crop == 0.875
    content = json.loads(run_dir.file(PATH).read_text())
    for wrong in (-0.1, 1.1, "0.5", None):
        run_dir.file(PATH).write_text(json.dumps({**content, "central_crop": wrong}))
        with pytest.raises(RunDirError, match="must describe the images"):
            read_description(run_dir)
    del content["central_crop"]  # a run of before
    run_dir.file(PATH).write_text(json.dumps(content))
    assert read_description(run_dir).central_crop == 0.0


def test_as_many_labels_as_there_are(paths):
    model, _ = linear_model(3)
    description = DataDescription((4, 4, 3), CLASSES, np.zeros(3, np.float32), np.ones(3, np.float32))
    ((*pairs,),) = predict_files(model, description, paths[:1], top=9)
    assert {label for label, _ in pairs} == set(CLASSES)
    assert sum(probability for _, probability in pairs) == pytest.approx(1, abs=1e-6)


def test_files_that_are_no_images_and_networks_that_take_none(paths, tmp_path):
    description = DataDescription((4, 4, 3), CLASSES, np.zeros(3, np.float32), np.ones(3, np.float32))
    with pytest.raises(DataError, match=r"none.png' cannot be read as an image. .* Received: no such file$"):
        predict_files(linear_model(3)[0], description, [paths[0], tmp_path / "none.png"])
    description = DataDescription((4, 4, 2), CLASSES, np.zeros(2, np.float32), np.ones(2, np.float32))
    with pytest.raises(DataError, match=r"1 or 3 channels. Received: a network of 2 channels$"):
        predict_files(linear_model(2)[0], description, paths)


# train/data.json


def test_a_description_is_read_as_it_was_written(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)
    datasets = datasets_from_arrays("x", images, np.arange(60) % 4, CLASSES, seed=0)
    write_description(RunDir(tmp_path), datasets)
    description = read_description(RunDir(tmp_path))
    assert (description.image_shape, description.class_names) == ((4, 4, 3), CLASSES)
    for name in ("mean", "std"):
        np.testing.assert_array_equal(getattr(description, name), getattr(datasets, name), strict=True)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": None},
        {"mean": [0.5, "x", 0.5]},
        {"mean": [0.5]},
        {"std": [float("nan")] * 3},
        {"image_shape": [4, 4]},
        {"class_names": "abc"},
        {"extra": 1},
        None,
    ],
)
def test_a_damaged_description_is_refused(tmp_path, change):
    content = {"image_shape": [4, 4, 3], "class_names": ["a", "b"], "mean": [0.5] * 3, "std": [1] * 3}
    path = tmp_path / PATH
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    read_description(RunDir(tmp_path))
    path.write_text(json.dumps(change and {**content, **change}))
    with pytest.raises(RunDirError, match=r"data.json must describe the images that the network was trained on. Received: another"):
        read_description(RunDir(tmp_path))
    path.unlink()
    with pytest.raises(RunDirError, match=r"cannot read .*data.json"):
        read_description(RunDir(tmp_path))
