"""The paper's search and retraining on CIFAR-10 ("base": 50 epochs of search, 600 of training), with the paper's settings.

    python -m sivdnas_tf run --config=configs/cifar10.py --workdir=runs/cifar10 --config.data.data_dir=DIR

DIR holds a prepared TFDS cifar10 (`tfds build cifar10 --data_dir=DIR`). The paper reports 2.50 ± 0.06 % error, 3.6M params, and 8
GPU-hours of search on one GTX 1080 Ti. Not run here: the machines that this repository is made on have two cores and no GPU.

Where the paper is silent (METHOD.md section 2 of our reading): how w and phi become mixing weights (here as they are, initially 1), the
initial dropout rates (log delta = -5), and how the KL is weighted (1/N, the ELBO as written, prunes nothing in 50 epochs; kl_weight =
0.01 here). The paper trains on all 50,000 images; here 500 are held out, to choose a checkpoint and to verify the export, so each half
of the search has 24,750.
"""

from configs import cifar10_eval, imagenet_eval


def get_config():
    """The search, the retraining of cifar10_eval.py, and the mobile setting as the budget."""
    config = cifar10_eval.get_config()

    config.search.channels = 16
    config.search.cells = 8
    config.search.epochs = 50
    config.search.warmup_epochs = 15
    config.search.batch_size = 64
    config.search.learning_rate = 0.025
    config.search.final_learning_rate = 0.001
    config.search.weight_decay = 3e-4
    config.search.gradient_clip_norm = 5.0
    config.search.architecture_learning_rate = 3e-4
    config.search.architecture_beta_1 = 0.5
    config.search.architecture_beta_2 = 0.999
    config.search.architecture_weight_decay = 1e-3
    config.search.prior_gap_decay = 0.95

    # The mobile setting: what the cells would cost at 224x224 with 48 channels and 14 cells.
    config.budget = imagenet_eval.get_config().budget
    return config
