"""The whole pipeline on scikit-learn's 1,797 real handwritten digits, in minutes on a laptop's CPU.

python -m sivdnas_tf run --config=configs/quickstart.py --workdir=runs/quickstart      (or: make quickstart)
"""

import ml_collections

from sivdnas_tf.config import Config


def get_config():
    """A small supernet, a small network, a budget that the derived cell must meet."""
    config = ml_collections.ConfigDict(Config().to_dict())
    config.data.name = "digits"
    config.data.crop_padding = 1
    config.data.flip = False  # a mirrored digit is another symbol

    config.search.channels = 4
    config.search.cells = 3
    config.search.epochs = 24
    config.search.warmup_epochs = 4
    config.search.batch_size = 32
    # 340 architecture steps: learning rate x steps = 10 lets log delta rise from -5 to +5 (METHOD.md section 2).
    config.search.architecture_learning_rate = 0.03
    config.search.kl_weight = 0.01

    config.train.channels = 12
    config.train.cells = 5
    config.train.epochs = 25
    config.train.batch_size = 64
    config.train.drop_path_rate = 0.1
    config.train.cutout_length = 2
    config.train.learning_rate = 0.05

    # The network that is trained here is the one that is deployed.
    config.budget.network = "cifar"
    config.budget.channels = 12
    config.budget.cells = 5
    config.budget.classes = 10
    config.budget.resolution = 8
    config.budget.image_channels = 1
    config.budget.macs = 2e6
    return config
