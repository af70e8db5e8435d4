"""What changes over a run as functions of the epoch, counted from 0: prior gap, drop-path rate, learning rate."""

import math

import keras
import tensorflow as tf

from sivdnas_tf.errors import ConfigError


def prior_gap(epoch, warmup_epochs, decay):
    """(1 - lambda)^2 during `epoch`: 1 until the end of the warm-up, then multiplied by `decay` after every finished epoch.

    Algorithm 1 writes the decay inside its loop; an epoch is Section 4.2's reading (METHOD.md section 3). The first epoch that
    updates the architecture, `epoch == warmup_epochs`, still has 1.

    Args:
      epoch: index of the current epoch.
      warmup_epochs: epochs in which the architecture is frozen.
      decay: 0.95 in the paper.

    Returns:
      float in [0, 1].
    """
    return float(decay) ** max(0, epoch - warmup_epochs)


def drop_path_rate(epoch, epochs, final_rate):
    """Probability of dropping a path during `epoch`: final_rate * epoch / epochs, as quark0/darts (so the last epoch falls one short).

    Args:
      epoch: index of the current epoch.
      epochs: of the whole training, at least 1.
      final_rate: what the rate grows towards, linearly from 0.

    Returns:
      float.
    """
    _check_positive(epochs=epochs)
    return final_rate * epoch / epochs


def cosine_learning_rate(epoch, initial, final, epochs):
    """Learning rate of `epoch`: final + (initial - final) * (1 + cos(pi * epoch / epochs)) / 2, and `final` from `epochs` on.

    PyTorch's CosineAnnealingLR(T_max=epochs, eta_min=final) in closed form; after T_max PyTorch's rises again, which no run reaches.

    Args:
      epoch: index of the current epoch.
      initial, final: rates at epoch 0 and at epoch `epochs`.
      epochs: length of the annealing, at least 1.

    Returns:
      float.
    """
    _check_positive(epochs=epochs)
    return final + (initial - final) * (1.0 + math.cos(math.pi * min(epoch, epochs) / epochs)) / 2.0


@keras.saving.register_keras_serializable(package="sivdnas_tf")
class EpochCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Cosine annealing that is constant within an epoch: `cosine_learning_rate(step // steps_per_epoch, ...)`.

    DARTS steps its scheduler once an epoch; Keras' CosineDecay moves every step.

    Args:
      initial, final: learning rates at epoch 0 and at epoch `epochs`.
      epochs: length of the annealing.
      steps_per_epoch: steps of the optimizer in an epoch.

    Raises:
      ConfigError: where epochs or steps_per_epoch is below 1.
    """

    def __init__(self, initial, final, epochs, steps_per_epoch):
        _check_positive(epochs=epochs, steps_per_epoch=steps_per_epoch)
        self.initial = float(initial)
        self.final = float(final)
        self.epochs = int(epochs)
        self.steps_per_epoch = int(steps_per_epoch)
        self._rates = [cosine_learning_rate(epoch, self.initial, self.final, self.epochs) for epoch in range(self.epochs + 1)]

    def __call__(self, step):
        """The learning rate at `step` (integer scalar, tensor or variable), float32 scalar."""
        epoch = tf.cast(step, tf.int64) // self.steps_per_epoch
        return tf.gather(tf.constant(self._rates, tf.float32), tf.minimum(epoch, self.epochs))

    def get_config(self):
        """Constructor arguments."""
        return {"initial": self.initial, "final": self.final, "epochs": self.epochs, "steps_per_epoch": self.steps_per_epoch}


def _check_positive(**counts):
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} must be at least 1. Received: {name}={count}")
