import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.errors import ConfigError
from sivdnas_tf.training import distribution

START = (np.array([1.0, -2.0, 3.0], np.float32), np.array([[0.5], [4.0]], np.float32))
# Of two replicas; the second is much larger, so that clipping each before the mean gives another direction.
REPLICA_GRADIENTS = (
    (np.array([0.1, 0.2, 0.0], np.float32), np.array([[0.0], [-0.1]], np.float32)),
    (np.array([-30.0, 5.0, 10.0], np.float32), np.array([[7.0], [3.0]], np.float32)),
)
MEAN_GRADIENTS = tuple(np.mean(pair, axis=0) for pair in zip(*REPLICA_GRADIENTS, strict=True))


@pytest.fixture(scope="module")
def mirrored():
    return distribution.make_strategy("mirrored")


def step(strategy, gradients_of, *, momentum=0.0, steps=1, **kwargs):
    """Variables after `steps` SGD steps with the gradients that `gradients_of(replica)` gives."""
    with strategy.scope():
        variables = [keras.Variable(value) for value in START]
        optimizer = keras.optimizers.SGD(0.1, momentum=momentum)
        optimizer.build(variables)

    def replica_step():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        gradients = [tf.gather(tf.stack(each), replica) for each in zip(*gradients_of, strict=True)]
        return distribution.apply_gradients(optimizer, gradients, variables, **kwargs)

    run = tf.function(lambda: strategy.run(replica_step))
    for _ in range(steps):
        returned = run()
        for gradient, per_replica in zip(np.array(gradients_of, object).mean(axis=0), returned, strict=True):
            for value in strategy.experimental_local_results(per_replica):  # whatever is clipped and decayed after
                np.testing.assert_allclose(value, gradient, rtol=1e-6)
    assert optimizer.iterations.numpy() == steps
    return [variable.numpy() for variable in variables]


def clipped(gradients, norm):
    total = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
    return [gradient * min(1.0, norm / total) for gradient in gradients]


SETTINGS = {
    "plain": {},
    "clipped": {"clip_norm": 2.0},
    "clip that does not bind": {"clip_norm": 1e3},
    "decayed": {"weight_decays": [0.5, 0.0]},
    "clipped and decayed": {"clip_norm": 2.0, "weight_decays": [0.5, 0.25]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_one_step_is_the_formula_and_two_replicas_agree_with_one(name, mirrored):
    settings = SETTINGS[name]
    one = step(tf.distribute.get_strategy(), [MEAN_GRADIENTS], **settings)
    two = step(mirrored, REPLICA_GRADIENTS, **settings)
    norm = settings.get("clip_norm", 0.0)
    gradients = clipped(MEAN_GRADIENTS, norm) if norm else MEAN_GRADIENTS
    decays = settings.get("weight_decays", [0.0, 0.0])
    for start, gradient, decay, value_of_one, value_of_two in zip(START, gradients, decays, one, two, strict=True):
        expected = start - 0.1 * (gradient + decay * start)  # coupled: the clip does not see the decay
        np.testing.assert_allclose(value_of_one, expected, rtol=1e-6)
        np.testing.assert_allclose(value_of_two, expected, rtol=1e-6)


def test_clipping_each_replica_by_itself_would_give_another_step():
    # Without this the agreement above would prove nothing.
    own = [clipped(gradients, 2.0) for gradients in REPLICA_GRADIENTS]
    mean = [np.mean(pair, axis=0) for pair in zip(*own, strict=True)]
    assert np.abs(mean[0] - clipped(MEAN_GRADIENTS, 2.0)[0]).max() > 0.1


def test_decay_goes_through_the_momentum_as_pytorchs_does():
    values = step(tf.distribute.get_strategy(), [MEAN_GRADIENTS], momentum=0.9, steps=3, weight_decays=[0.5, 0.5])
    for start, gradient, value in zip(START, MEAN_GRADIENTS, values, strict=True):
        expected, velocity = start, np.zeros_like(start)
        for _ in range(3):
            velocity = 0.9 * velocity + gradient + 0.5 * expected
            expected = expected - 0.1 * velocity
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_decay_is_needed_for_every_variable():
    with pytest.raises(ValueError, match="shorter"):
        step(tf.distribute.get_strategy(), [MEAN_GRADIENTS], weight_decays=[0.5])


def test_strategies_by_name(mirrored):
    assert distribution.make_strategy("none") is tf.distribute.get_strategy()
    assert isinstance(mirrored, tf.distribute.MirroredStrategy) and mirrored.num_replicas_in_sync == 2
    if len(tf.config.list_logical_devices("GPU")) < 2:
        assert distribution.make_strategy("auto").num_replicas_in_sync == 1


def test_two_stages_in_one_process_get_the_same_strategy(mirrored):
    # Collectives of two strategies over the same devices would meet under the same number, and abort where their shapes differ.
    def mean(strategy, shape):
        run = tf.function(lambda: strategy.run(lambda: tf.distribute.get_replica_context().all_reduce("mean", [tf.fill(shape, 2.0)])))
        return strategy.experimental_local_results(run()[0])[1]

    search, train = distribution.make_strategy("mirrored"), distribution.make_strategy("mirrored")
    assert search is train is mirrored
    for strategy, shape in ((search, [5]), (train, [32]), (search, [7])):
        np.testing.assert_array_equal(mean(strategy, shape), np.full(shape, 2.0))


@pytest.mark.parametrize("name", ["multiworker", "", None])
def test_an_unknown_strategy_is_refused(name):
    with pytest.raises(ConfigError, match=r"strategy must be one of auto, none, mirrored, multi_worker\. Received: "):
        distribution.make_strategy(name)


BAD_CLUSTERS = {
    "no JSON": "{",
    "no object": "[1]",
    "no task": '{"cluster": {"worker": ["a:1", "b:1"]}}',
    "no such worker": '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
    "another job": '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
}


@pytest.mark.parametrize("name", BAD_CLUSTERS)
def test_a_wrong_cluster_is_refused(name, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", BAD_CLUSTERS[name])
    with pytest.raises(ConfigError, match=r"TF_CONFIG must be such as .* Received: '"):
        distribution.make_strategy("auto")


def test_several_workers_need_a_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ConfigError, match=r"multi_worker needs the cluster in TF_CONFIG.* Received: TF_CONFIG=None"):
        distribution.make_strategy("multi_worker")


def test_a_batch_must_divide_evenly_among_the_replicas(mirrored):
    distribution.check_batch_size(4, mirrored, "search.batch_size")
    distribution.check_batch_size(5, tf.distribute.get_strategy(), "search.batch_size")
    with pytest.raises(ConfigError, match=r"^search\.batch_size must be a multiple of the number of replicas, 2\. Received: 5$"):
        distribution.check_batch_size(5, mirrored, "search.batch_size")


@pytest.mark.parametrize("deterministic", [False, True])
def test_seeds_fix_python_numpy_and_initial_weights(deterministic, monkeypatch):
    calls = []  # not for real: it cannot be switched off again for the tests that follow
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: calls.append("determinism"))
    monkeypatch.setattr(tf.config.optimizer, "set_experimental_options", calls.append)

    def drawn(seed):
        distribution.set_seeds(seed, deterministic)
        return (
            random.random(),
            np.random.random(),
            keras.random.normal((3,)).numpy().tolist(),
            keras.layers.Dense(2).kernel_initializer((2, 2)).numpy().tolist(),
        )

    assert drawn(1) == drawn(1)
    assert all(first != other for first, other in zip(drawn(1), drawn(2), strict=True))
    assert calls == ["determinism", {"arithmetic_optimization": False}] * 4 * deterministic


# Precision and XLA.


@pytest.mark.parametrize("before", [True, False])
def test_functions_run_as_written_within_and_as_before_after(before, monkeypatch):
    options = {"function_optimization": before}
    monkeypatch.setattr(tf.config.optimizer, "get_experimental_options", lambda: dict(options))
    monkeypatch.setattr(tf.config.optimizer, "set_experimental_options", options.update)
    with pytest.raises(KeyError), distribution.functions_as_written():
        assert options == {"function_optimization": False}
        raise KeyError
    assert options == {"function_optimization": before}


def test_a_scope_sets_the_precision_and_takes_it_back():
    with distribution.precision_scope("mixed_bfloat16"):
        assert keras.layers.Dense(1).compute_dtype == "bfloat16"
    assert keras.layers.Dense(1).compute_dtype == "float32"
    with pytest.raises(RuntimeError, match="within"), distribution.precision_scope("mixed_float16"):
        raise RuntimeError("within")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("replicas", [1, 2])
def test_with_a_loss_scale_a_step_is_the_one_without(replicas, mirrored):
    strategy = mirrored if replicas == 2 else tf.distribute.get_strategy()
    expected = step(strategy, [MEAN_GRADIENTS] * 2, momentum=0.9, steps=2, clip_norm=2.0, weight_decays=[0.5, 0.25])
    with strategy.scope():
        variables = [keras.Variable(value) for value in START]
        optimizer = distribution.scaled_for("mixed_float16", keras.optimizers.SGD(0.1, momentum=0.9))
        optimizer.build(variables)

    def replica_step():
        gradients = [tf.constant(gradient) * distribution.loss_scale(optimizer) for gradient in MEAN_GRADIENTS]
        distribution.apply_gradients(optimizer, gradients, variables, clip_norm=2.0, weight_decays=[0.5, 0.25])

    run = tf.function(lambda: strategy.run(replica_step))
    for _ in range(2):
        run()
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-6)


def test_a_checkpoint_keeps_the_loss_scale_and_the_velocity(tmp_path):
    def make():
        variables = [keras.Variable(value) for value in START]
        optimizer = distribution.scaled_for("mixed_float16", keras.optimizers.SGD(0.1, momentum=0.9))
        optimizer.build(variables)
        return optimizer, variables, tf.train.Checkpoint(optimizer=optimizer)

    optimizer, variables, checkpoint = make()
    distribution.apply_gradients(optimizer, [tf.constant(gradient) * 2.0**15 for gradient in MEAN_GRADIENTS], variables)
    optimizer.dynamic_scale.assign(8.0)
    other, _, restored = make()
    restored.read(checkpoint.write(str(tmp_path / "state"))).assert_existing_objects_matched()
    assert float(other.dynamic_scale) == 8.0 and int(other.step_counter) == 1 and int(other.iterations) == 1
    for one, same in zip(optimizer.inner_optimizer.momentums, other.inner_optimizer.momentums, strict=True):
        assert np.any(one)
        np.testing.assert_array_equal(one, same)


def test_xla_is_refused_on_several_replicas(mirrored):
    distribution.check_jit_compile(True, tf.distribute.get_strategy(), "search.jit_compile")
    distribution.check_jit_compile(False, mirrored, "search.jit_compile")
    with pytest.raises(ConfigError, match=r"search\.jit_compile works on one device.* Received: search\.jit_compile=True on 2 replicas"):
        distribution.check_jit_compile(True, mirrored, "search.jit_compile")
