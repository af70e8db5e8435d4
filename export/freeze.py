"""From a trained run to the model that is deployed: logits only, preprocessing where it was asked for, and within the budget."""

import dataclasses

import keras
import tensorflow as tf

from sivdnas_tf.data.augment import normalise
from sivdnas_tf.profiling.costs import check_budget
from sivdnas_tf.training.train import load_trained


@keras.saving.register_keras_serializable("sivdnas_tf")
class Normalise(keras.layers.Layer):
    """`(pixel / 255 - mean) / std`, the training's own formula, as a layer.

    Args:
      mean, std: of each channel in units of pixel / 255.
    """

    def __init__(self, mean, std, **kwargs):
        super().__init__(**kwargs)
        self.mean, self.std = [float(value) for value in mean], [float(value) for value in std]

    def call(self, images):
        """Maps pixel values from 0 to 255, `[batch, n, n, channels]`, to normalised images."""
        return normalise(images, tf.constant(self.mean), tf.constant(self.std))

    def compute_output_shape(self, input_shape):
        """The shape of the input."""
        return input_shape

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "mean": self.mean, "std": self.std}


def deployed_budget(config, image_shape, classes):
    """The `BudgetConfig` of the model that is written: the trained network's own size, held against the configuration's limits."""
    return dataclasses.replace(
        config.budget,
        network=config.train.network,
        channels=config.train.channels,
        cells=config.train.cells,
        classes=classes,
        resolution=image_shape[0],
        image_channels=image_shape[2],
    )


def check_deployed_budget(config, genotype, datasets):
    """Raises `BudgetError` where the model that would be written is over the budget; returns its `Cost`.

    `derive` and `train` hold the network that `config.budget` describes against the limit; this holds what is really delivered.
    """
    budget = deployed_budget(config, datasets.image_shape, len(datasets.class_names))
    return check_budget(genotype, budget, "the exported network")


def with_preprocessing(network, preprocessing, mean, std, input_shape=None):
    """The deployed form of a network of one output: frozen, with named input and output, normalising where it is asked to.

    Args:
      network: a Keras model from normalised images to logits.
      preprocessing: "inside": the model takes pixel values from 0 to 255; "outside": it takes normalised images.
      mean, std: of each channel in units of pixel / 255; not read with "outside".
      input_shape: of an image, where the network leaves it open; None takes the network's.

    Returns:
      A Functional `keras.Model` with input "image", float32 `[batch, resolution, resolution, channels]`, and output "logits".
    """
    images = keras.Input(network.input_shape[1:] if input_shape is None else input_shape, name="image")
    inputs = Normalise(mean, std, name="normalise")(images) if preprocessing == "inside" else images
    logits = keras.layers.Identity(name="logits")(network(inputs))
    model = keras.Model(images, logits, name=network.name)
    model.trainable = False
    return model


def freeze(config, genotype, datasets, run_dir):
    """The deployed Keras model of a run: rebuilt from the genotype without auxiliary head and drop path, with the trained weights.

    Args:
      config: a `Config`; `export.preprocessing` says whether the model normalises ("inside") or is fed normalised images.
      genotype: the run's `Genotype`.
      datasets: `Datasets`, for shape, classes, mean and standard deviation.
      run_dir: the `RunDir` with train/weights.weights.h5.

    Returns:
      As `with_preprocessing`.

    Raises:
      RunDirError: where the weights are damaged, or another network's.
    """
    network = load_trained(config, genotype, datasets, run_dir)
    return with_preprocessing(network, config.export.preprocessing, datasets.mean, datasets.std)
