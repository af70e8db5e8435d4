"""What changes over a run as functions of the epoch, counted from 0: prior gap, drop-path rate, learning rate."""

import math

import keras
import tensorflow as tf

from sivdnas_tf.errors import ConfigError, nearest


def kl_scale(epoch, warmup_epochs, ramp_epochs):
    """Share of the divergence's weight in force in `epoch` (from 0): (e + 1) / ramp_epochs, at most 1, e epochs after the warm-up."""
    return min(1.0, max(epoch - warmup_epochs + 1, 0) / ramp_epochs) if ramp_epochs else 1.0


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


def linear_learning_rate(epoch, initial, final, epochs):
    """Learning rate of `epoch`: initial + (final - initial) * epoch / epochs, and `final` from `epochs` on.

    PyTorch's LambdaLR(lambda epoch: 1 - epoch / epochs) where `final` is 0. Departure: P-DARTS' train_imagenet.py reaches almost 0 five
    epochs earlier, and its last five epochs have rates of their own; the paper says "decayed linearly" and no more.

    Args:
      epoch: index of the current epoch.
      initial, final: rates at epoch 0 and at epoch `epochs`.
      epochs: length of the decay, at least 1.

    Returns:
      float.
    """
    _check_positive(epochs=epochs)
    return initial + (final - initial) * min(epoch, epochs) / epochs


_LEARNING_RATES = {"cosine": cosine_learning_rate, "linear": linear_learning_rate}


def learning_rate(epoch, initial, final, epochs, *, schedule="cosine", warmup_epochs=0):
    """Learning rate of `epoch`: that of the schedule, in epoch e < warmup_epochs times (e + 1) / warmup_epochs.

    The warm-up of P-DARTS' and PC-DARTS' train_imagenet.py (5 epochs for batches above 256): it scales what the schedule gives, in whole
    epochs, so that the last epoch of the warm-up has the schedule's own rate already, which has been falling since epoch 0.

    Args:
      epoch: index of the current epoch.
      initial, final, epochs: as of `cosine_learning_rate` and `linear_learning_rate`.
      schedule: one of `config.LEARNING_RATE_SCHEDULES`.
      warmup_epochs: at least 0.

    Returns:
      float.

    Raises:
      ConfigError: for an unknown schedule, epochs below 1 or a negative warm-up.
    """
    if schedule not in _LEARNING_RATES:
        raise ConfigError(
            f"unknown schedule of the learning rate.{nearest(schedule, _LEARNING_RATES)} Expected one of {', '.join(_LEARNING_RATES)}. "
            f"Received: {schedule!r}"
        )
    if warmup_epochs < 0:
        raise ConfigError(f"warmup_epochs must be at least 0. Received: warmup_epochs={warmup_epochs}")
    rate = _LEARNING_RATES[schedule](epoch, initial, final, epochs)
    return rate * (epoch + 1) / warmup_epochs if epoch < warmup_epochs else rate


@keras.saving.register_keras_serializable(package="sivdnas_tf")
class EpochLearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that is constant within an epoch: `learning_rate(step // steps_per_epoch, ...)`.

    DARTS steps its scheduler once an epoch; Keras' schedules move every step.

    Args:
      initial, final: learning rates at epoch 0 and at epoch `epochs`.
      epochs: length of the decay.
      steps_per_epoch: steps of the optimizer in an epoch.
      schedule, warmup_epochs: as of `learning_rate`.

    Raises:
      ConfigError: as `learning_rate`, or where steps_per_epoch is below 1.
    """

    def __init__(self, initial, final, epochs, steps_per_epoch, schedule="cosine", warmup_epochs=0):
        _check_positive(epochs=epochs, steps_per_epoch=steps_per_epoch)
        self.initial = float(initial)
        self.final = float(final)
        self.epochs = int(epochs)
        self.steps_per_epoch = int(steps_per_epoch)
        self.schedule = schedule
        self.warmup_epochs = int(warmup_epochs)
        options = {"schedule": schedule, "warmup_epochs": self.warmup_epochs}
        self._rates = [learning_rate(epoch, self.initial, self.final, self.epochs, **options) for epoch in range(self.epochs + 1)]

    def __call__(self, step):
        """The learning rate at `step` (integer scalar, tensor or variable), float32 scalar."""
        epoch = tf.cast(step, tf.int64) // self.steps_per_epoch
        return tf.gather(tf.constant(self._rates, tf.float32), tf.minimum(epoch, self.epochs))

    def get_config(self):
        """Constructor arguments."""
        names = ("initial", "final", "epochs", "steps_per_epoch", "schedule", "warmup_epochs")
        return {name: getattr(self, name) for name in names}


def _check_positive(**counts):
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} must be at least 1. Received: {name}={count}")
