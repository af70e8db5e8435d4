"""The command line on folders of images and on `predict`'s arguments: what is wrong is one line, exit code 2, and changes nothing."""

import json
import os

import pytest
from PIL import Image


@pytest.fixture(name="folder")
def fixture_folder(make_folder, tmp_path):
    return make_folder(tmp_path / "my pictures", {"кошка": 30, "two words": 30, "c": 30})


@pytest.fixture(name="refuse")
def fixture_refuse(refusal, listing, tiny_config, tmp_path):
    """The line with which `run` refuses a folder, in a work directory that stays empty; the folder stays as it was, too."""

    (tmp_path / "run").mkdir()

    def refuse(path, *flags, command="run"):
        before = listing(tmp_path)
        name = [f"--config.data.name=folder:{path}", "--config.data.resolution=8", *flags]
        message = refusal(command, f"--config={tiny_config}", f"--workdir={tmp_path}/run", *name)
        assert listing(tmp_path) == before
        return message

    return refuse


def test_a_path_that_is_no_folder(refuse, tmp_path):
    (tmp_path / "file.png").touch()
    for path, expected in (("none", "does not exist"), ("file.png", "is no directory")):
        assert f"the image folder {expected}. Expected folder:PATH with one directory a class. Received: " in refuse(tmp_path / path)
    assert "the image folder must name a directory." in refuse("")
    assert "or folder:PATH. Received: data.name='/my/pictures'" in refuse("x", "--config.data.name=/my/pictures")


def test_no_resolution(refuse, folder):
    assert f"data.resolution must be at least 1 for 'folder:{folder}'" in refuse(folder, "--config.data.resolution=0")


def test_classes_that_are_missing_empty_or_too_few(refuse, make_folder, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    assert f"'{root}' must hold from 2 to 1000 class directories. Received: no class directories" in refuse(root)
    make_folder(root, {"кот": 3})
    assert "Received: one class, 'кот'" in refuse(root)
    make_folder(root, {"empty class": 0})
    assert "must hold an image, PNG, JPEG, WebP or BMP. Received: none in 'empty class'" in refuse(root)
    for path in (root / "кот").iterdir():
        path.unlink()
    assert "Received: none in any of 2 classes" in refuse(root)


def test_a_test_class_that_train_does_not_have(refuse, make_folder, tmp_path):
    make_folder(tmp_path / "root" / "train", {"a": 9, "b": 9})
    make_folder(tmp_path / "root" / "test", {"a": 3, "wolf": 3})
    assert "must be those of train: 'a', 'b'. Received: also 'wolf'" in refuse(tmp_path / "root")


def test_a_loop_of_links(refuse, folder):
    (folder / "c" / "back").symlink_to(folder)
    assert f"a symbolic link must not lead to a directory that holds it. Received: '{folder}/c/back'" in refuse(folder)


def test_a_corrupt_image_is_named(refuse, folder):
    (folder / "кошка" / "007.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    message = refuse(folder)
    assert f"more corrupt images than data.max_corrupt=0 allows: '{folder}/кошка/007.png' cannot be read as an image." in message
    assert "config.data.max_corrupt must be at least 0. Received: -1" in refuse(folder, "--config.data.max_corrupt=-1")


def test_too_few_images_and_too_large_batches(refuse, folder, make_folder, tmp_path):
    assert "too few images of 'folder:" in refuse(make_folder(tmp_path / "small", {"a": 2, "b": 2}))
    expected = "a batch must hold from 1 to 32 images, the size of the split 'weights'. Received: batch_size=128"
    assert expected in refuse(folder)
    assert "to 64 images, the size of the split 'train'. Received" in refuse(folder, "--genotype=PDARTS", command="train")
    assert "data.class_weights. Did you mean 'balanced'?" in refuse(folder, "--config.data.class_weights=balance")


def test_more_than_memory_holds(refuse, folder):
    message = refuse(folder, "--config.data.resolution=200000")
    assert "the 90 images of 'folder:" in message and "do not fit in memory at 200000x200000 pixels" in message


def test_a_dry_run_says_what_was_skipped_and_ignored(call, folder, tiny_config, tmp_path):
    (folder / "c" / "000.png").write_bytes(b"")
    (folder / "notes.txt").touch()
    flags = [f"--config.data.name=folder:{folder}", "--config.data.resolution=8", "--config.data.max_corrupt=1"]
    flags += ["--config.search.batch_size=8", "--config.train.batch_size=8", "--dry_run"]
    code, out, err = call("run", f"--config={tiny_config}", f"--workdir={tmp_path}/run", *flags)
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        f"data: 1 hidden, stray or other files that are no images ignored in '{folder}'",
        f"data: warning: skipped 1 corrupt image: '{folder}/c/000.png'",
        f"data: folder:{folder}, 8x8x3, 3 classes",
    ]


# Predict.


@pytest.fixture(name="picture", scope="module")
def fixture_picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a picture.png"
    Image.effect_noise((30, 20), 60).save(path)
    return path


def test_predict_prints_path_label_and_probability(call, trained, picture):
    code, out, err = call("predict", f"--workdir={trained.path}", picture, picture)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first == second
    path, label, probability = first.split("\t")
    assert path == str(picture) and label in "0123456789" and 0.1 <= float(probability) <= 1


def test_predict_prints_the_most_probable_labels_wherever_the_flag_stands(call, trained, picture):
    outputs = [
        call("predict", f"--workdir={trained.path}", "--top=3", picture)[1],
        call("predict", picture, "--top=3", f"--workdir={trained.path}")[1],
    ]
    assert outputs[0] == outputs[1]
    probabilities = [float(line.split("\t")[2]) for line in outputs[0].splitlines()]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
    lines = call("predict", f"--workdir={trained.path}", "--top=99", picture)[1].splitlines()
    assert sorted(line.split("\t")[1] for line in lines) == list("0123456789")


def test_predict_needs_no_training_images(call, trained, picture, monkeypatch):
    from sivdnas_tf.data import datasets

    monkeypatch.delattr(datasets, "load_datasets")
    assert call("predict", f"--workdir={trained.path}", picture)[0] == 0


def test_predict_refuses_what_it_cannot_read(refusal, listing, trained, picture, tmp_path):
    before = listing(trained.path)
    workdir = f"--workdir={trained.path}"
    (tmp_path / "text.png").write_text("hello")
    assert "predict needs IMAGE…: at least one. Received: none" in refusal("predict", workdir)
    assert "none.png' cannot be read as an image. Expected PNG, JPEG, WebP or BMP" in refusal("predict", workdir, picture, "none.png")
    assert "text.png' cannot be read as an image." in refusal("predict", workdir, tmp_path / "text.png")
    assert "Received: a directory or a device" in refusal("predict", workdir, tmp_path)
    assert "predict needs --workdir" in refusal("predict", picture)
    assert "--top must be at least 1. Received: 0" in refusal("predict", workdir, "--top=0", picture)
    assert "unknown flag of predict. Did you mean 'top'?" in refusal("predict", workdir, picture, "--tpo=1")
    assert listing(trained.path) == before


def test_predict_refuses_a_run_without_a_training(refusal, listing, searched, picture, tmp_path):
    before = listing(searched.path)
    assert "must be that of a run" in refusal("predict", f"--workdir={tmp_path}/none", picture)
    assert "has no train/weights.weights.h5: `train` has not finished" in refusal("predict", f"--workdir={searched.path}", picture)
    assert listing(searched.path) == before


def test_predict_refuses_a_damaged_description_or_other_weights(refusal, trained, picture, tmp_path):
    run = trained.copy(tmp_path / "run")
    description = json.loads((run / "train" / "data.json").read_text())
    assert list(description) == ["image_shape", "class_names", "mean", "std"]
    (run / "train" / "data.json").write_text(json.dumps({**description, "image_shape": [8, 8, 3], "mean": [0] * 3, "std": [1] * 3}))
    assert "must hold the weights of the run's network. Received: " in refusal("predict", f"--workdir={run}", picture)
    (run / "train" / "data.json").write_text("{}")
    assert "data.json must describe the images" in refusal("predict", f"--workdir={run}", picture)
    os.unlink(run / "train" / "data.json")
    assert "cannot read" in refusal("predict", f"--workdir={run}", picture)
