"""The command line on streamed images: train, evaluate, export, predict and report work; a search, and corrupt images, end in one line."""

import json
import shutil

import numpy as np
import pytest

from sivdnas_tf import commands
from sivdnas_tf.genotype import Cell, Edge, Genotype

SMALL = Genotype(
    "small",
    Cell((Edge(2, 0, "sep_conv_3x3"), Edge(2, 1, "skip_connect")), (2,)),
    Cell((Edge(2, 0, "max_pool_3x3"), Edge(2, 1, "skip_connect")), (2,)),
)
BATCHES = 4  # of 16 of the 64 images that are trained on


@pytest.fixture(name="folder", scope="module")
def fixture_folder(make_folder, tmp_path_factory):
    """A tree as ImageNet's: train/ and val/."""
    root = tmp_path_factory.mktemp("tree")
    make_folder(root / "train", {"cat": 24, "dog": 24, "кошка": 24})
    make_folder(root / "val", {"cat": 6, "dog": 6, "кошка": 6})
    return root


def flags_of(folder, tiny_config, *more):
    data = {
        "name": f"folder:{folder}",
        "resolution": 8,
        "streaming": True,
        "random_resized_crop": True,
        "central_crop": 0.875,
        "flip": True,
    }
    data |= {"brightness_jitter": 0.4, "hue_jitter": 0.2}
    train = {"batch_size": 16, "epochs": 2, "drop_path_rate": 0.0, "auxiliary_weight": 0.0, "cutout_length": 0}
    flags = [f"--config.data.{name}={value}" for name, value in data.items()]
    flags += [f"--config.train.{name}={value}" for name, value in train.items()]
    return [f"--config={tiny_config}", *flags, "--config.checkpoint.every_minutes=0", *more]


@pytest.fixture(name="genotype", scope="module")
def fixture_genotype(tmp_path_factory):
    path = tmp_path_factory.mktemp("genotype") / "small.json"
    path.write_text(json.dumps(SMALL.to_dict()))
    return f"--genotype={path}"


@pytest.fixture(name="streamed", scope="module")
def fixture_streamed(folder, tiny_config, genotype, tmp_path_factory):
    """A work directory with a finished training. Copy it to change it."""
    from sivdnas_tf.__main__ import main

    path = tmp_path_factory.mktemp("streamed") / "run"
    assert main(["sivdnas_tf", "train", *flags_of(folder, tiny_config), genotype, f"--workdir={path}"]) == 0
    return path


def test_a_network_is_trained_on_streamed_images(streamed):
    records = [json.loads(line) for line in (streamed / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [BATCHES, 2 * BATCHES]
    description = json.loads((streamed / "train" / "data.json").read_text())
    assert (description["central_crop"], description["image_shape"]) == (0.875, [8, 8, 3])
    assert description["class_names"] == ["cat", "dog", "кошка"]


def test_evaluation_and_prediction_see_the_same_pixels(call, streamed, folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(streamed, run)
    code, out, err = call("evaluate", f"--workdir={run}")
    assert (code, err) == (0, "") and out.startswith("evaluate: test split, 18 images: top-1 ")
    paths = sorted((folder / "val").rglob("*.png"))
    code, out, err = call("predict", f"--workdir={run}", *paths)
    assert (code, err) == (0, "")
    hits = [line.split("\t")[1] == path.parent.name for line, path in zip(out.splitlines(), paths, strict=True)]
    assert json.loads((run / "evaluation.json").read_text())["top1"] == np.mean(hits)
    assert call("evaluate", f"--workdir={run}", "--split=holdout", "--overwrite")[1].startswith("evaluate: holdout split, 7 images")


def test_export_and_report(call, streamed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(streamed, run)
    code, out, _ = call("export", f"--workdir={run}", "--formats=saved_model")
    assert code == 0 and "saved_model/1" in out
    manifest = json.loads((run / "export" / "manifest.json").read_text())
    assert manifest["verification"]["images"] == 7
    assert manifest["model"]["preprocessing"]["central_crop"] == 0.875
    assert call("report", f"--workdir={run}")[0] == 0


def test_halves_of_a_search_are_not_there(refusal, streamed, listing):
    before = listing(streamed)
    message = refusal("evaluate", f"--workdir={streamed}", "--split=weights")
    assert "streamed images have no halves of a search to measure. Expected --split=test or holdout. Received: 'weights'" in message
    assert listing(streamed) == before


@pytest.mark.parametrize("command", [("search",), ("run",), ("run", "--dry_run")])
def test_a_search_is_refused(refusal, folder, tiny_config, workdir, command):
    message = refusal(*command, *flags_of(folder, tiny_config), f"--workdir={workdir}")
    assert "a search reads its images in memory, at 8 to 64 pixels" in message
    assert "Expected data.streaming=False. Received: data.streaming=True" in message


def test_what_streaming_cannot_do_is_refused(refusal, folder, tiny_config, genotype, workdir):
    def refused(*flags):
        return refusal("train", *flags_of(folder, tiny_config, *flags), genotype, f"--workdir={workdir}")

    assert "data.streaming is for folder:PATH and TFDS datasets. Received: data.name='digits'" in refused("--config.data.name=digits")
    assert "data.resolution must be at least 1" in refused("--config.data.resolution=0")
    assert "data.max_corrupt must be less than the images of a batch, 16" in refused("--config.data.max_corrupt=16")
    assert "data.mean and data.std must have a number for each of the 3 channels" in refused(
        "--config.data.mean=(0.5,)", "--config.data.std=(0.5,)"
    )


def test_in_memory_too_a_crop_needs_a_resolution(refusal, tiny_config, genotype, workdir):
    message = refusal("train", f"--config={tiny_config}", "--config.data.central_crop=0.5", genotype, f"--workdir={workdir}")
    assert "data.central_crop needs data.resolution, which the square is resized to." in message
    message = refusal("train", f"--config={tiny_config}", "--config.data.hue_jitter=0.1", genotype, f"--workdir={workdir}")
    assert "data.saturation_jitter and data.hue_jitter need images of 3 channels" in message


@pytest.fixture(name="spoilt")
def fixture_spoilt(folder, tmp_path):
    """A copy of the tree in which a training image, which is not held out, is damaged; and its path."""
    from sivdnas_tf.config import DataConfig
    from sivdnas_tf.data.datasets import load_datasets

    shutil.copytree(folder, tmp_path / "tree")
    config = DataConfig(name=f"folder:{tmp_path}/tree", resolution=8, streaming=True)
    index = load_datasets(config, 0).train.ids[7]
    path = sorted((tmp_path / "tree" / "train").rglob("*.png"))[index]
    path.write_bytes(path.read_bytes()[:70])
    return tmp_path / "tree", path


GIVEN = ("--config.data.mean=(0.5,0.5,0.5)", "--config.data.std=(0.25,0.25,0.25)")


@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_a_corrupt_image_ends_a_training_in_one_line(refusal, call, spoilt, tiny_config, genotype, tmp_path, strategy):
    tree, path = spoilt
    flags = [*flags_of(tree, tiny_config, *GIVEN, f"--config.distribution.strategy={strategy}"), genotype, f"--workdir={tmp_path}/run"]
    message = refusal("train", *flags)
    assert f"more corrupt images than data.max_corrupt=0 allows: {str(path)!r} cannot be read as an image." in message
    if strategy == "none":
        shutil.copyfile(path.with_name("000.png"), path)  # mended: the same command, which another process would run, goes on
        commands._datasets_of.cache_clear()
        assert call("train", *flags)[0] == 0


def test_a_corrupt_image_that_is_allowed_is_named_and_the_training_ends(call, spoilt, tiny_config, genotype, tmp_path):
    tree, path = spoilt
    flags = flags_of(tree, tiny_config, *GIVEN, "--config.data.max_corrupt=1", "--config.train.epochs=1")
    code, out, err = call("train", *flags, genotype, f"--workdir={tmp_path}/run")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("data: warning: ")]
    assert line.startswith(f"data: warning: corrupt image 1 of up to 1 is left out: {str(path)!r} cannot be read as an image.")
    assert [json.loads(line)["step"] for line in (tmp_path / "run/train/metrics.jsonl").read_text().splitlines()] == [BATCHES]


def test_the_last_good_checkpoint_stays(refusal, call, folder, tiny_config, genotype, tmp_path, monkeypatch):
    """An image that goes bad in the second epoch: the first epoch's checkpoint is what the next command continues from."""
    from sivdnas_tf.data import images, streams
    from sivdnas_tf.errors import DataError

    reads, broken = [], True

    def read(source, place, *rest):
        reads.append(place)
        if broken and reads.count(place) > 1:
            raise DataError(f"{place!r} cannot be read as an image. Expected one. Received: a broken one")
        return images.decode_crop(source, place, *rest)

    monkeypatch.setattr(streams, "decode_crop", read)
    flags = [*flags_of(folder, tiny_config, *GIVEN), genotype, f"--workdir={tmp_path}/run"]
    code, out, err = call("train", *flags)
    assert code == 2 and err.count("\n") == 1 and "more corrupt images than data.max_corrupt=0 allows: " in err
    assert "train 1/2" in out
    assert [path.name for path in (tmp_path / "run/train/checkpoints").glob("ckpt-*.index")] == [f"ckpt-{BATCHES}.index"]
    broken = False
    code, out, _ = call("train", *flags)
    assert code == 0 and f"train: resuming at step {BATCHES}, epoch 2 of 2" in out
