"""Training a published or searched cell on ImageNet with the paper's mobile settings (250 epochs).

    python -m sivdnas_tf train --config=configs/imagenet_eval.py --genotype=DARTS_V2 --workdir=runs/imagenet --config.data.data_dir=DIR

DIR holds a prepared TFDS imagenet2012, or with --config.data.name=folder:PATH instead PATH holds train/ and val/, a directory a class in
each. --genotype is a name of the zoo or a file, another run's genotype.json say.

The paper reports 25.3 % top-1 and 8.0 % top-5 error with 5.0M params and 577M multiply-adds for its "base" cell, 25.6 % and 8.1 % with 4.1M
and 462M for "convergence", and 26.7 % and 8.7 % with 4.7M and 574M for DARTS (second order). Not run here at full length: the machines
that this repository is made on have two cores and no GPU.

The batch of 1024 is that of all replicas together, and the learning rate is meant for it. Gradients are clipped at 5 and no path is
dropped, as in P-DARTS' and PC-DARTS' train_imagenet.py, whose settings the paper follows without naming these two; the crops and the
colour jitter are theirs too. 0.5 % of the training images are held out, to verify an export; the paper's figures are of the validation
images, which `evaluate --split=test` measures.
"""

import ml_collections

from sivdnas_tf.config import Config


def get_config():
    """14 cells, 48 channels, 224x224; the network that is trained is the one that is deployed, within 600M multiply-adds."""
    config = ml_collections.ConfigDict(Config().to_dict())
    config.data.name = "imagenet2012"
    config.data.resolution = 224
    config.data.holdout_fraction = 0.005
    config.data.streaming = True
    config.data.central_crop = 0.875  # 256 to 224 pixels
    config.data.random_resized_crop = True
    config.data.crop_padding = 0
    config.data.flip = True
    config.data.brightness_jitter = 0.4
    config.data.contrast_jitter = 0.4
    config.data.saturation_jitter = 0.4
    config.data.hue_jitter = 0.2
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)

    config.train.network = "imagenet"
    config.train.channels = 48
    config.train.cells = 14
    config.train.epochs = 250
    config.train.batch_size = 1024
    config.train.learning_rate = 0.5
    config.train.final_learning_rate = 0.0
    config.train.schedule = "linear"
    config.train.warmup_epochs = 5
    config.train.momentum = 0.9
    config.train.weight_decay = 3e-5
    config.train.gradient_clip_norm = 5.0
    config.train.drop_path_rate = 0.0
    config.train.auxiliary_weight = 0.4
    config.train.label_smoothing = 0.1
    config.train.cutout_length = 0
    config.train.checkpoint_choice = "last"

    config.budget.network = "imagenet"
    config.budget.channels = 48
    config.budget.cells = 14
    config.budget.classes = 1000
    config.budget.resolution = 224
    config.budget.macs = 600e6
    return config
