"""Twenty bilevel steps of a tiny supernet, in a process of its own: what workers_test compares.

    python bilevel_steps.py OUTPUT STRATEGY DEVICES REPEATS

STRATEGY is that of the configuration, DEVICES the number of logical CPUs; every batch holds its images REPEATS times, one time after the
other, so that two replicas may be given the images that one is given. The chief writes all variables and losses to OUTPUT (.npz).
"""

import pathlib
import sys

import tensorflow as tf

STEPS, BATCH = 20, 8


def main():
    """Makes the steps and writes the result."""
    output, strategy_name, devices, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    tf.config.threading.set_intra_op_parallelism_threads(1)  # how a sum is split among threads decides its last bits
    from sivdnas_tf.training.distribution import distributed, is_chief, make_strategy, set_seeds

    strategy = make_strategy(strategy_name)
    set_seeds(0, deterministic=True)
    import numpy as np

    from sivdnas_tf.models.supernet import Supernet
    from sivdnas_tf.search_space import plan_network

    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
    from tiny import TINY, compiled

    plan = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
    with strategy.scope():
        network = Supernet(TINY, plan, mixing="average", initial_log_dropout_rate=-1.0)
        compiled(network, weight_rate=0.05)
    generator = np.random.default_rng(0)

    def half():
        images = generator.normal(size=(STEPS, BATCH, 8, 8, 1)).astype(np.float32)
        labels = generator.integers(0, 3, (STEPS, BATCH)).astype(np.int32)
        return np.tile(images, (1, repeats, 1, 1, 1)), np.tile(labels, (1, repeats))

    batches = distributed(strategy, tf.data.Dataset.from_tensor_slices((half(), half())))

    def compiled_apart(half):  # as the search's loop compiles them
        @tf.function(autograph=False)
        def step(batch):
            logs = strategy.run(half, args=(batch,))
            return {name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in logs.items()}

        return step

    halves = [compiled_apart(half) for half in (network.architecture_step, network.weight_step)]
    losses = [[float(value) for half in halves for _, value in sorted(half(batch).items())] for batch in batches]
    optimizers = (network.weight_optimizer, network.architecture_optimizer)
    arrays = {variable.path: variable.numpy() for variable in network.variables}
    arrays |= {f"{number}/{variable.path}": variable.numpy() for number, each in enumerate(optimizers) for variable in each.variables}
    if is_chief(strategy):
        np.savez(output, logs=np.array(losses), **{name.replace("/", "|"): value for name, value in arrays.items()})


if __name__ == "__main__":
    main()
