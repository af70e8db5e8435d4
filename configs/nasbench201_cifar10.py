"""CIFAR-10 in NAS-Bench-201's space: a search whose cell can be looked up in the benchmark's table by the string that derive prints.

    python -m sivdnas_tf search --config=configs/nasbench201_cifar10.py --workdir=runs/nasbench201 --config.data.data_dir=DIR

then `derive --workdir=runs/nasbench201`. DIR holds a prepared TFDS cifar10 (`tfds build cifar10 --data_dir=DIR`).
`--config.search.method=M` takes every method. The supernet is a proxy of 8 channels and a cell a stage; the network that is deployed, and
trained, is the benchmark's own: 16 channels, five cells a stage. Searches took 4 to 11 minutes on two CPU cores that two of them and other
work shared, and darts_second 13 to 18; with both cores to itself 13 minutes and 16 seconds, derive included. docs/ablation.md has what came
out, and why skips are normalised and gates pass gradient here. The prior stops at the budget, so that how much is kept does not depend on
the search's length. None of the three is the paper's. Every cell meets the budget of 230 million multiply-adds (six 3x3 convolutions have
220 million): DARTS' rule cannot prune to a smaller one.
"""

import ml_collections

from sivdnas_tf.config import Config


def get_config():
    """The configuration."""
    config = ml_collections.ConfigDict(Config().to_dict())
    config.data.name = "cifar10"
    config.data.holdout_fraction = 0.02

    config.search.search_space = "nasbench201"
    config.search.channels = 8
    config.search.cells = 3
    config.search.epochs = 10
    config.search.warmup_epochs = 2
    config.search.steps_per_epoch = 84
    config.search.batch_size = 64
    config.search.normalize_skips = True
    config.search.gate_gradient = "straight_through"
    config.search.kl_weight = 0.03
    config.search.kl_until_budget = True
    config.search.architecture_learning_rate = 0.01

    config.budget.network = "nasbench201"
    config.budget.channels = 16
    config.budget.cells = 15
    config.budget.classes = 10
    config.budget.resolution = 32
    config.budget.macs = 230e6

    config.train.network = "nasbench201"
    config.train.channels = 16
    config.train.cells = 15
    config.train.auxiliary_weight = 0.0
    config.train.epochs = 200
    config.train.batch_size = 256
    config.train.learning_rate = 0.1
    config.train.weight_decay = 5e-4
    config.train.drop_path_rate = 0.0
    config.train.cutout_length = 0
    return config
