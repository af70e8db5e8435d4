"""The supernet in mixed precision and compiled by XLA: options for accelerators, whose correctness a CPU can show."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import BATCH, TINY, assert_same, values

from sivdnas_tf.layers.mixed_operation import MixedOperation
from sivdnas_tf.models.supernet import Supernet
from sivdnas_tf.search_space import plan_network
from sivdnas_tf.training.distribution import precision_scope, scaled_for

PLAN = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
GENERATOR = np.random.default_rng(0)


def batch():
    return GENERATOR.normal(size=(BATCH, 8, 8, 1)).astype(np.float32), GENERATOR.integers(0, 3, BATCH).astype(np.int32)


DATA = (batch(), batch())


def supernet(precision="float32", **kwargs):
    """The same weights in every precision."""
    keras.utils.set_random_seed(0)
    with precision_scope(precision):
        network = Supernet(TINY, PLAN, mixing="average", initial_log_dropout_rate=-2.0, **kwargs)
    optimizers = [scaled_for(precision, optimizer) for optimizer in (keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.SGD(0.1))]
    network.compile(*optimizers, kl_weight=0.01, weight_decay=1e-3, gradient_clip_norm=5.0)
    return network


class Stepping:
    """A supernet and its step, traced once: every step starts from the same weights."""

    def __init__(self, precision="float32", jit_compile=False):
        self.network = supernet(precision)
        self._initial = values(self._variables())
        self._step = tf.function(self.network.bilevel_step, autograph=False, jit_compile=jit_compile)

    def _variables(self):
        network = self.network
        return [*network.variables, *network.weight_optimizer.variables, *network.architecture_optimizer.variables]

    def reset(self):
        for variable, value in zip(self._variables(), self._initial, strict=True):
            variable.assign(value)
        return self

    def step(self):
        """The logs of a step and every variable's change."""
        before = values(self.network.trainable_variables)
        logs = self._step(DATA)
        changes = [new - old for old, new in zip(before, values(self.network.trainable_variables), strict=True)]
        return {name: float(value) for name, value in logs.items()}, changes


@pytest.fixture(scope="module")
def plain():
    return Stepping().step()


@pytest.fixture(name="half", scope="module")
def fixture_half():
    return Stepping("mixed_float16")


def assert_close(actual, expected, tolerance):
    """Logs, and changes as a whole: single ones of a coarse precision differ by more."""
    (logs, changes), (expected_logs, expected_changes) = actual, expected
    for name in ("loss", "architecture_loss", "kl"):
        assert logs[name] == pytest.approx(expected_logs[name], rel=tolerance)
    one, other = (np.concatenate([change.ravel() for change in each]) for each in (changes, expected_changes))
    assert np.linalg.norm(one - other) < 5.0 * tolerance * np.linalg.norm(other)


@pytest.mark.parametrize(("precision", "tolerance"), [("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)])
def test_a_step_in_mixed_precision_is_nearly_that_of_float32(precision, tolerance, plain, half):
    stepping = half.reset() if precision == "mixed_float16" else Stepping(precision)
    network = stepping.network
    assert keras.config.dtype_policy().name == "float32"
    assert {variable.dtype for variable in network.trainable_variables} == {"float32"}
    cell = network.cells[0]
    assert cell.compute_dtype == precision.removeprefix("mixed_") and network(DATA[0][0]).dtype == tf.float32
    assert all(sample.dtype == tf.float32 for sample, _ in network.samples(network.draw(0)).values())
    result = stepping.step()
    assert_close(result, plain, tolerance)
    assert any((new != old).any() for new, old in zip(result[1], plain[1], strict=True))  # another arithmetic it is


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_normalised_skip_has_the_precision_of_all_else(precision):
    with precision_scope(precision):
        mixed = MixedOperation(("skip_connect",), 4, 1, normalize_skips=True)
    image = tf.cast(DATA[0][0], precision.removeprefix("mixed_")) * tf.ones([4], precision.removeprefix("mixed_"))
    begun = mixed.beginnings(image, tf.constant([True]))  # traced outside the scope, as a step is
    assert begun["skip"].dtype == image.dtype
    assert float(tf.math.reduce_std(tf.cast(begun["skip"], tf.float32))) == pytest.approx(1.0, abs=0.02)


def test_a_step_whose_gradients_overflow_is_skipped_and_the_next_one_is_not(half):
    network = half.reset().network
    optimizer, before = network.weight_optimizer, values(network.weight_variables)
    optimizer.dynamic_scale.assign(2.0**60)
    logs, _ = half.step()
    assert all(np.isfinite(value) for value in logs.values())
    assert_same(before, values(network.weight_variables))
    assert float(optimizer.dynamic_scale) == 2.0**59 and int(optimizer.iterations) == 0
    assert logs["mixing_gradient_norm"] > 0 and logs["dropout_rate_gradient_norm"] > 0
    network.architecture_optimizer.dynamic_scale.assign(2.0**120)
    logs, _ = half.step()
    assert int(network.architecture_optimizer.iterations) == 1  # of the step before
    assert logs["mixing_gradient_norm"] == logs["dropout_rate_gradient_norm"] == 0
    optimizer.dynamic_scale.assign(2.0**10)
    _, changes = half.step()
    assert all(np.isfinite(change).all() for change in changes) and any(change.any() for change in changes)
    assert float(optimizer.dynamic_scale) == 2.0**10 and int(optimizer.iterations) == 1


def test_gradients_are_clipped_and_decayed_as_without_a_scale(half):
    steps = []
    for scale in (1.0, 2.0**8):
        half.reset().network.weight_optimizer.dynamic_scale.assign(scale)
        steps.append(half.step())
    assert_close(*reversed(steps), 0.01)


@pytest.mark.slow
def test_xla_computes_the_same_step_with_the_same_draw(monkeypatch, plain):
    # XLA's stateless random numbers are others: given those of TensorFlow, everything else must agree.
    compiled = Stepping(jit_compile=True)
    draw = compiled.network.draw(0)
    monkeypatch.setattr(compiled.network, "draw", lambda step, batch_size: draw)
    assert_close(compiled.step(), plain, 1e-4)
