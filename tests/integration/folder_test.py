"""A folder of 300 images from nothing to a TFLite file that knows its classes, through the command line."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sivdnas_tf.__main__ import main

CLASSES = {"кошка": "ellipse", "red box": "rectangle", "line": "line"}
COLOURS = {"кошка": (40, 160, 60), "red box": (220, 40, 40), "line": (50, 70, 230)}


def picture(rng, name):
    """A shape of the class's colour on noise, from 12 to 40 pixels a side."""
    width, height = (int(side) for side in rng.integers(12, 41, 2))
    image = Image.fromarray(rng.integers(90, 150, (height, width, 3)).astype(np.uint8))
    left, top = (int(side) // 8 for side in (width, height))
    options = {"width": max(3, height // 3)} if name == "line" else {}
    getattr(ImageDraw.Draw(image), CLASSES[name])((left, top, width - left, height - top), fill=COLOURS[name], **options)
    return image


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory):
    """100 images of each class: PNG, JPEG and BMP in turn, one of them greyscale, one WebP."""
    root, rng = tmp_path_factory.mktemp("folder") / "my pictures", np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for number in range(100):
            picture(rng, name).save(root / name / f"{number:03}.{('png', 'jpg', 'bmp')[number % 3]}")
    grey, webp = root / "line" / "000.png", root / "кошка" / "003.png"
    Image.open(grey).convert("L").save(grey)
    Image.open(webp).save(webp.with_suffix(".webp"))
    webp.unlink()
    assert len(list(root.rglob("*.*"))) == 300
    return root


def lines_of(*arguments):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(["sivdnas_tf", *map(str, arguments)]) == 0
    return output.getvalue().splitlines()


def test_three_hundred_images_become_a_tflite_file(folder, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    flags = {
        "data.name": f"folder:{folder}",
        "data.resolution": 8,
        "data.class_weights": "balanced",
        "search.channels": 2,
        "search.epochs": 1,
        "search.warmup_epochs": 0,
        "search.batch_size": 32,
        "train.epochs": 4,
        "train.batch_size": 16,
        "budget.classes": 3,
        "budget.image_channels": 3,
        "export.formats": "('tflite',)",
    }
    overrides = [f"--config.{name}={value}" for name, value in flags.items()]
    lines = lines_of("run", f"--config={tiny_config}", f"--workdir={workdir}", *overrides)
    assert lines[-1].startswith("evaluate: test split, 60 images: top-1 ")

    manifest = json.loads((workdir / "export" / "manifest.json").read_text(encoding="utf-8"))
    (artifact,) = manifest["artifacts"]
    assert (workdir / "export" / artifact["path"]).stat().st_size == artifact["bytes"] > 0 and artifact["format"] == "tflite"
    assert manifest["model"]["labels"] == ["line", "red box", "кошка"]
    assert json.loads((workdir / "evaluation.json").read_text())["top1"] > 0.8  # chance is a third

    images = [folder / "кошка" / "003.webp", folder / "line" / "000.png", *(folder / name / "001.jpg" for name in CLASSES)]
    rows = [line.split("\t") for line in lines_of("predict", f"--workdir={workdir}", *images)]
    assert [row[0] for row in rows] == [str(image) for image in images]
    assert all(row[1] in CLASSES and 0 < float(row[2]) <= 1 for row in rows)
    assert sum(row[1] == image.parent.name for row, image in zip(rows, images, strict=True)) >= 3
