"""Training a published or searched cell on CIFAR-10 with the paper's settings (600 epochs).

    python -m sivdnas_tf train --config=configs/cifar10_eval.py --genotype=DARTS_V2 --workdir=runs/cifar10_eval --config.data.data_dir=DIR

DIR holds a prepared TFDS cifar10 (`tfds build cifar10 --data_dir=DIR`); --genotype is a name of the zoo or a file, another run's
genotype.json say. `evaluate --workdir=runs/cifar10_eval` then measures the test images.

The paper reports 2.50 ± 0.06 % error and 3.6M params for its "base" cell, 2.60 ± 0.05 % and 2.7M for "convergence", and 2.76 ± 0.09 %
and 3.3M for DARTS (second order). Not run here at full length: the machines that this repository is made on have two cores and no GPU.
The paper trains on all 50,000 images; here 500 are held out, to verify an export. The weights are those of the last epoch.
"""

import ml_collections

from sivdnas_tf.config import Config


def get_config():
    """20 cells, 36 channels; the network that is trained is the one that is deployed."""
    config = ml_collections.ConfigDict(Config().to_dict())
    config.data.name = "cifar10"
    config.data.holdout_fraction = 0.01
    config.data.crop_padding = 4
    config.data.flip = True

    config.train.network = "cifar"
    config.train.channels = 36
    config.train.cells = 20
    config.train.epochs = 600
    config.train.batch_size = 96
    config.train.learning_rate = 0.025
    config.train.final_learning_rate = 0.0
    config.train.schedule = "cosine"
    config.train.momentum = 0.9
    config.train.weight_decay = 3e-4
    config.train.gradient_clip_norm = 5.0
    config.train.drop_path_rate = 0.3
    config.train.auxiliary_weight = 0.4
    config.train.cutout_length = 16
    config.train.checkpoint_choice = "last"

    # The paper limits no CIFAR network: room for every cell of the zoo.
    config.budget.network = "cifar"
    config.budget.channels = 36
    config.budget.cells = 20
    config.budget.classes = 10
    config.budget.resolution = 32
    config.budget.macs = 1e9
    return config
