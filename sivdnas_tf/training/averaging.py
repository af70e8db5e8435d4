"""An exponential moving average of a network over the steps of its training."""

import tensorflow as tf


class MovingAverage:
    """Averages of variables. Update t, from 0 on, is  average <- d * average + (1 - d) * variable,  d = min(decay, (1 + t) / (10 + t)).

    The warm start (that of tf.train.ExponentialMovingAverage with `num_updates`) lets the average leave the initial weights behind: d is
    0.1 in the first step and reaches 0.999 after 9,000. Batch-norm's moving statistics belong to the weights that made them, so an
    average of the weights needs the average of the statistics: give both.

    Args:
      variables: Keras variables of floating point, at the values that the averages start from; every replica holds the same.
      decay: above 0 and below 1.
    """

    def __init__(self, variables, decay):
        self._variables, self._decay = list(variables), float(decay)
        self._averages = [tf.Variable(variable.numpy(), trainable=False, name="average") for variable in self._variables]
        self._updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="average_updates")

    @property
    def state(self):
        """What a checkpoint must hold: a list of `tf.Variable`s."""
        return [self._updates, *self._averages]

    def values(self):
        """`{path of a variable: its average}`, NumPy."""
        return {variable.path: average.numpy() for variable, average in zip(self._variables, self._averages, strict=True)}

    def update(self):
        """Moves every average once; called in a replica context, by every replica, after the variables have changed."""
        tf.distribute.get_replica_context().merge_call(self._update)

    def _update(self, strategy):
        # Each device moves its own copy by its own copy of the variable. These are the same everywhere: nothing is communicated.
        for average, variable in zip(self._averages, self._variables, strict=True):
            strategy.extended.update(average, self._move, args=(variable.value, self._updates))
        strategy.extended.update(self._updates, lambda updates: updates.assign_add(1))

    def _move(self, average, variable, updates):
        step = tf.cast(updates, tf.float32)
        share = tf.maximum(1.0 - self._decay, 9.0 / (10.0 + step))  # 1 - d; float32 would lose the digits of a decay near 1
        return average.assign_sub(share * (average - variable))
