"""A search on real CIFAR-10 and a training of what it finds, of 22 to 45 minutes on two CPU cores, by how busy they are.

    python -m sivdnas_tf run --config=configs/cifar10_small.py --workdir=runs/cifar10_small --config.data.data_dir=DIR

DIR holds a prepared TFDS cifar10 (`tfds build cifar10 --data_dir=DIR`). Seed 0, on one of two shared cores while tests ran on both: the
search took 22.5 minutes, its sampled networks rose from 0.44 to 0.50 on the architecture half while the expected operations fell from
189 to 82 of 196; `mode` keeps 37 and 47 of 98 operations, the budget of 20 million multiply-adds 7 and 10. The deployed network of 3
cells and 16 channels has 89,210 params and 19,778,048 macs; trained for 5 epochs (44.6 minutes; at the pace of seed 2's last three
epochs, one core and nothing beside it, 28) it got 0.7520 on the 10,000 test images. BUILD.md has three seeds; their cells are
`SI_VDNAS_cifar10_small_0` to `_2` of the zoo.

Mixing is an average, so that the supernet starts with small logits; four epochs pass before the architecture moves; kl_weight is small
enough for the loss, too, to have a say in the dropout rates.
"""

import ml_collections

from sivdnas_tf.config import Config


def get_config():
    """A supernet of 3 cells and 8 channels that sees images at half their size; a network of 3 cells and 16 channels at full size."""
    config = ml_collections.ConfigDict(Config().to_dict())
    config.data.name = "cifar10"
    config.data.holdout_fraction = 0.02

    config.search.resolution = 16
    config.search.channels = 8
    config.search.cells = 3
    config.search.epochs = 15
    config.search.warmup_epochs = 4
    config.search.steps_per_epoch = 160
    config.search.batch_size = 64
    config.search.mixing = "average"
    config.search.learning_rate = 0.05
    config.search.architecture_learning_rate = 0.008
    config.search.kl_weight = 0.0015

    config.train.channels = 16
    config.train.cells = 3
    config.train.epochs = 5
    config.train.batch_size = 96
    config.train.learning_rate = 0.05
    config.train.drop_path_rate = 0.0
    config.train.cutout_length = 0
    config.train.auxiliary_weight = 0.0

    config.budget.network = "cifar"
    config.budget.channels = 16
    config.budget.cells = 3
    config.budget.classes = 10
    config.budget.resolution = 32
    config.budget.macs = 20e6
    return config
