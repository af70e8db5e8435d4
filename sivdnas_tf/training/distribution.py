"""Devices, seeds, and gradient steps that come out the same on one replica and on several."""

import contextlib
import functools
import os
import tempfile

import keras
import tensorflow as tf

from sivdnas_tf.config import STRATEGIES, cluster_workers
from sivdnas_tf.errors import ConfigError, WorkerLostError
from sivdnas_tf.run_dir import RunDir, StageState


def make_strategy(name):
    """The `tf.distribute.Strategy` of a configuration.

    Args:
      name: one of `config.STRATEGIES`: "none" (TensorFlow's default: one device), "mirrored" (every GPU, or every logical CPU where there
        is no GPU), "multi_worker" (over the processes that TF_CONFIG names; call this before anything else uses TensorFlow), or "auto"
        (multi_worker where TF_CONFIG names several workers, else mirrored exactly where there are several GPUs).

    Raises:
      ConfigError: for any other name, a wrong TF_CONFIG, "multi_worker" without one, or after TensorFlow was used.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"distribution.strategy must be one of {', '.join(STRATEGIES)}. Received: {name!r}")
    workers = cluster_workers()
    if name == "multi_worker" and not workers:
        raise ConfigError(
            "distribution.strategy multi_worker needs the cluster in TF_CONFIG: the addresses of all workers, and which of them this is. "
            f"Received: TF_CONFIG={os.environ.get('TF_CONFIG')!r}"
        )
    if name == "multi_worker" or (name == "auto" and len(workers) > 1):
        return _multi_worker_strategy()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "none" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    devices = gpus or tf.config.list_logical_devices("CPU")
    return _mirrored_strategy(tuple(device.name for device in devices))


@functools.cache
def _mirrored_strategy(devices):
    """The process's only one: two over the same devices number their collectives alike, and abort each other (search, then train)."""
    return tf.distribute.MirroredStrategy(list(devices))


@functools.cache
def _multi_worker_strategy():
    """The process's only one: it connects to the other workers when it is made."""
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:  # "Collective ops must be configured at program startup"
        raise ConfigError(
            "a strategy over several workers must be made before TensorFlow is used: call make_strategy first. "
            f"Received: {' '.join(str(error).split())}"
        ) from error


def distributed(strategy, batches):
    """`batches`, of which every replica gets its share; over several hosts each makes the same batches and takes its part of them."""
    if strategy.num_replicas_in_sync == 1:
        return batches
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return strategy.experimental_distribute_dataset(batches.with_options(options))


@contextlib.contextmanager
def workers_together(stage, strategy, state=lambda: ""):
    """Turns what TensorFlow raises when another worker is gone into a `WorkerLostError`.

    Args:
      stage: for the message.
      strategy: the `tf.distribute.Strategy`; on a single host nothing is changed.
      state: function to what the message says of where the stage is and what is kept.
    """
    try:
        yield
    except tf.errors.UnavailableError as error:
        if len(cluster_workers()) < 2 or strategy.cluster_resolver is None:
            raise
        lines = error.message.splitlines()
        reason = next((line for line in lines if "ollective" in line), lines[0])[:200]
        raise WorkerLostError(
            f"{stage}: another worker is gone{state()} ({reason}). Start the same command again on every worker"
        ) from error


def is_chief(strategy):
    """Whether this process writes the files of a run: worker 0, or the only process."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_type or resolver.task_id == 0


def wait_for_all(strategy):
    """Returns when every worker has come here; raises `tf.errors.UnavailableError` where one is gone."""
    if strategy.cluster_resolver is not None and len(cluster_workers()) > 1:

        @tf.function
        def meet():
            return strategy.run(lambda: replica_mean([tf.ones([])]))

        meet()


@contextlib.contextmanager
def own_run_dir(run_dir, strategy):
    """The `RunDir` that this process writes in: `run_dir` for the chief; for other workers a temporary one, which nobody reads."""
    if is_chief(strategy):
        yield run_dir
        return
    with tempfile.TemporaryDirectory(prefix="sivdnas-worker-") as directory:
        yield RunDir(directory)


def begin_stage(run_dir, strategy, stage, settings, overwrite=False):
    """`RunDir.begin` by the chief, whose directory all workers see; the others wait for it and then check that theirs is the same stage.

    Returns:
      The `StageState`.

    Raises:
      RunDirError: as `RunDir.begin`.
      WorkerLostError: where a worker is gone before all have come here, one that refused say.
    """
    state = run_dir.begin(stage, settings, overwrite) if is_chief(strategy) else None
    with workers_together(stage, strategy):
        wait_for_all(strategy)
    if state is None:
        run_dir.check_consistent(stage, settings)
        state = StageState(done=run_dir.is_done(stage), started=True)
    return state


def check_batch_size(batch_size, strategy, field):
    """Raises `ConfigError` unless every replica gets the same number of images: their losses are averaged with equal weights."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise ConfigError(f"{field} must be a multiple of the number of replicas, {replicas}. Received: {batch_size}")


def set_seeds(seed, deterministic):
    """Seeds Python, NumPy and Keras (initial weights); with `deterministic`, TensorFlow uses only operations that repeat bit for bit.

    It then also leaves sums in the order in which they were written: its arithmetic optimizer regroups them in another way for two devices
    of a process than for two processes, which shows in the last bits.
    """
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
        tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})


@contextlib.contextmanager
def functions_as_written():
    """Within, TensorFlow runs traced functions as they are, without a variant for each set of outputs that a call leaves unused.

    For a supernet, whose few functions are called a hundred times each and compute little that is not asked for, making, optimizing and
    starting the variants takes seconds before the first step, for nothing.
    """
    before = tf.config.optimizer.get_experimental_options().get("function_optimization", True)
    tf.config.optimizer.set_experimental_options({"function_optimization": False})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"function_optimization": before})


@contextlib.contextmanager
def precision_scope(name):
    """Layers made within compute in Keras' dtype policy `name`, one of `config.PRECISIONS`; their variables stay float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def scaled_for(precision, optimizer):
    """`optimizer`, for "mixed_float16" in Keras' LossScaleOptimizer, which skips a step whose gradients overflow and halves the scale."""
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer


def loss_scale(optimizer):
    """What the gradients handed to `apply_gradients` must be multiplied by, a float32 scalar, or None for 1."""
    return tf.convert_to_tensor(optimizer.dynamic_scale) if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else None


def check_jit_compile(jit_compile, strategy, field):
    """Raises `ConfigError` where XLA is asked for with several replicas, whose variables it cannot update."""
    if jit_compile and strategy.num_replicas_in_sync > 1:
        raise ConfigError(
            f"{field} works on one device: XLA cannot update the variables of several replicas. Expected false, or distribution.strategy "
            f"none. Received: {field}=True on {strategy.num_replicas_in_sync} replicas"
        )


def replica_mean(tensors):
    """The list of tensors, averaged over the replicas; called in a replica context, by every replica."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, tensors)


def apply_gradients(optimizer, gradients, variables, *, clip_norm=0.0, weight_decays=None):
    """One optimizer step with gradients averaged over the replicas; called in a replica context, by every replica.

    Averages first and clips after, as one device with the whole batch would: Keras' own `clipnorm` clips each replica's part.
    Weight decay is coupled, g <- clip(g) + decay * v, as PyTorch's SGD and Adam do it; Keras' `weight_decay` is decoupled.

    Args:
      optimizer: a built Keras optimizer.
      gradients: a list of tensors, of the replica's own mean loss, times `loss_scale(optimizer)` where that is not None.
      variables: a list of Keras variables.
      clip_norm: largest global norm; 0 leaves the gradients as they are.
      weight_decays: a list of floats, or None for no decay.

    Returns:
      The gradients of the whole batch's mean loss, unscaled, before clipping and decay: a list of tensors, the same in every replica.
    """
    gradients, scale = replica_mean(gradients), loss_scale(optimizer)
    if scale is not None:
        gradients = [gradient / scale for gradient in gradients]
    averaged = gradients
    if clip_norm:
        gradients, _ = tf.clip_by_global_norm(gradients, clip_norm)
    if weight_decays is not None:
        gradients = [
            gradient + decay * tf.convert_to_tensor(variable) if decay else gradient
            for gradient, variable, decay in zip(gradients, variables, weight_decays, strict=True)
        ]
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    if replicas > 1:  # Keras sums over the replicas
        gradients = [gradient / replicas for gradient in gradients]
    if scale is not None:  # Keras divides by it again, and skips the step where a gradient is not finite (clipping makes all of them nan)
        gradients = [gradient * scale for gradient in gradients]
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return averaged
