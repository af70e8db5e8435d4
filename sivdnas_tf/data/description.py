"""What a trained network must be told of the images it was trained on: enough to use it without them. Imports no TensorFlow."""

import dataclasses
import math

import numpy as np

from sivdnas_tf.errors import RunDirError
from sivdnas_tf.run_dir import read_json, write_json

PATH = "train/data.json"


@dataclasses.dataclass(frozen=True, eq=False)
class DataDescription:
    """As the attributes of the same names of `Datasets`.

    Attributes:
      image_shape: (R, R, C).
      class_names: one a label, in the order of the labels.
      mean, std: float32 [C] of each channel in units of pixel / 255.
      central_crop: side of the central square that images were cut to, as a share of their shorter side; 0 for whole images.
    """

    image_shape: tuple
    class_names: tuple
    mean: np.ndarray
    std: np.ndarray
    central_crop: float = 0.0


def write_description(run_dir, datasets):
    """Writes train/data.json; float32 values are exact in it."""
    content = {
        "image_shape": [int(size) for size in datasets.image_shape],
        "class_names": [str(name) for name in datasets.class_names],
        "mean": [float(value) for value in datasets.mean],
        "std": [float(value) for value in datasets.std],
    }
    if datasets.central_crop:
        content["central_crop"] = float(datasets.central_crop)
    write_json(run_dir.file(PATH), content)


def read_description(run_dir):
    """Reads train/data.json as a `DataDescription`; raises `RunDirError` where it is missing or damaged."""
    content = read_json(run_dir.file(PATH))
    if not _is_description(content):
        raise RunDirError(
            f"{run_dir.file(PATH)} must describe the images that the network was trained on. Received: another content; "
            "`train --overwrite` writes it anew"
        )
    statistics = {name: np.array(content[name], np.float32) for name in ("mean", "std")}
    crop = content.get("central_crop", 0.0)  # written where it is not 0
    return DataDescription(tuple(content["image_shape"]), tuple(content["class_names"]), **statistics, central_crop=crop)


def _is_description(content):
    fields = {"image_shape": int, "class_names": str, "mean": (int, float), "std": (int, float)}
    if not isinstance(content, dict) or content.keys() - {"central_crop"} != fields.keys():
        return False
    crop = content.get("central_crop", 0.0)
    if not isinstance(crop, (int, float)) or not 0 <= crop <= 1:
        return False
    if not all(
        isinstance(values := content[name], list) and all(isinstance(value, kind) for value in values) for name, kind in fields.items()
    ):
        return False
    shape, statistics = content["image_shape"], content["mean"] + content["std"]
    return len(shape) == 3 and len(statistics) == 2 * len(content["std"]) == 2 * shape[2] and all(map(math.isfinite, statistics))
