"""Training a published or searched cell on CIFAR-100 with the paper's settings: as cifar10_eval.py, but for the weight decay.

    python -m sivdnas_tf train --config=configs/cifar100_eval.py --genotype=DARTS_V2 --workdir=runs/cifar100_eval --config.data.data_dir=DIR

DIR holds a prepared TFDS cifar100. The paper reports 15.98 % error for its "base" cell, 16.20 % for "convergence", and 17.54 % for DARTS
(second order). Not run here at full length, as cifar10_eval.py.
"""

from configs import cifar10_eval


def get_config():
    """cifar10_eval.py with 100 classes and a stronger decay."""
    config = cifar10_eval.get_config()
    config.data.name = "cifar100"
    config.train.weight_decay = 5e-4
    config.budget.classes = 100
    return config
