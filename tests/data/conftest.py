"""TFDS datasets of encoded images, made here as `tfds build` would leave them on disk: several files, in an order of TFDS' own."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

CLASS_NAMES = ("a", "b", "c")


@pytest.fixture(name="encoded_images", scope="session")
def fixture_encoded_images():
    """A function of a count to PNGs of many sizes with a label each, 0, 1, 2 and again, each class of its own colour."""

    def make(count):
        rng, found = np.random.default_rng(count), []
        for index in range(count):
            pixels = rng.integers(0, 80, (*rng.integers(8, 20, 2), 3)).astype(np.uint8)
            pixels[..., index % 3] += 150
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "png")
            found.append((buffer.getvalue(), index % 3))
        return found

    return make


@functools.cache
def _builder_class():
    import tensorflow_datasets as tfds

    class Encoded(tfds.core.GeneratorBasedBuilder):
        """Images as they are stored, whatever is in them."""

        VERSION = tfds.core.Version("1.0.0")
        name = "encoded"
        contents = label = None

        def _info(self):
            label = self.label or tfds.features.ClassLabel(names=CLASS_NAMES)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(examples) for split, examples in self.contents.items()}

        def _generate_examples(self, examples):
            for index, (content, label) in enumerate(examples):
                yield index, {"image": io.BytesIO(content), "label": label}

    return Encoded


@pytest.fixture(name="make_records")
def fixture_make_records(monkeypatch):
    """A function of a directory, `{split: [(encoded image, label)]}` and a number of files a split to the name of the dataset."""
    import tensorflow_datasets as tfds

    def make(data_dir, contents, files=3, label=None):
        builder = _builder_class()
        monkeypatch.setattr(builder, "contents", contents)
        monkeypatch.setattr(builder, "label", label)
        tfds.disable_progress_bar()
        config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=files)
        builder(data_dir=data_dir).download_and_prepare(download_config=config)
        return "encoded"

    return make
