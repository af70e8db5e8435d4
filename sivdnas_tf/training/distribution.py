"""Devices, seeds, and gradient steps that come out the same on one replica and on several."""

import contextlib
import functools

import keras
import tensorflow as tf

from sivdnas_tf.errors import ConfigError


def make_strategy(name):
    """The `tf.distribute.Strategy` of a configuration.

    Args:
      name: "none" (TensorFlow's default: one device), "mirrored" (every GPU, or every logical CPU where there is no GPU), or "auto"
        (mirrored exactly where there are several GPUs).

    Raises:
      ConfigError: for any other name.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if name == "none" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    if name in ("auto", "mirrored"):
        devices = gpus or tf.config.list_logical_devices("CPU")
        return _mirrored_strategy(tuple(device.name for device in devices))
    raise ConfigError(f"distribution.strategy must be auto, none or mirrored. Received: {name!r}")


@functools.cache
def _mirrored_strategy(devices):
    """The process's only one: two over the same devices number their collectives alike, and abort each other (search, then train)."""
    return tf.distribute.MirroredStrategy(list(devices))


def check_batch_size(batch_size, strategy, field):
    """Raises `ConfigError` unless every replica gets the same number of images: their losses are averaged with equal weights."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise ConfigError(f"{field} must be a multiple of the number of replicas, {replicas}. Received: {batch_size}")


def set_seeds(seed, deterministic):
    """Seeds Python, NumPy and Keras (initial weights); with `deterministic`, TensorFlow uses only operations that repeat bit for bit."""
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


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
    """
    gradients, scale = replica_mean(gradients), loss_scale(optimizer)
    if scale is not None:
        gradients = [gradient / scale for gradient in gradients]
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
