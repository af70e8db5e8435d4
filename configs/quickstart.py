"""The whole pipeline on scikit-learn's 1,797 real handwritten digits, in minutes on a laptop's CPU.

python -m sivdnas_tf run --config=configs/quickstart.py --workdir=runs/quickstart      (or: make quickstart)

On 2 cores it took 2 min 29 s, the installation of the packages included. It found cells that keep 4 and 7 of 98 operations: 1,093,888
multiply-adds, 103,226 params, test accuracy 0.9861. Chosen for time, not for the best cell: the dropout rates rise faster than the
supernet learns. Another kind of processor, whose kernels give other last bits, found cells of 8 and 14 operations: 759,808 multiply-adds,
0.9833, in 4 min 31 s.
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
    config.search.epochs = 8
    config.search.warmup_epochs = 2
    config.search.batch_size = 64
    # 60 architecture steps: learning rate x steps = 9.6 lets log delta rise from -5 above 0 (METHOD.md section 2).
    config.search.architecture_learning_rate = 0.16
    config.search.kl_weight = 0.05

    config.train.channels = 16
    config.train.cells = 4
    config.train.epochs = 12
    config.train.batch_size = 64
    config.train.learning_rate = 0.05
    config.train.drop_path_rate = 0.1
    config.train.cutout_length = 2

    # The network that is trained here is the one that is deployed.
    config.budget.network = "cifar"
    config.budget.channels = 16
    config.budget.cells = 4
    config.budget.classes = 10
    config.budget.resolution = 8
    config.budget.image_channels = 1
    config.budget.macs = 3e6
    return config
