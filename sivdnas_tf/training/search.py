"""The search stage: images to posterior.npz (METHOD.md section 3)."""

import tempfile

import keras
import numpy as np

from sivdnas_tf.config import check_searchable
from sivdnas_tf.data.augment import configured_augmentation
from sivdnas_tf.data.datasets import as_datasets, bilevel_batches, steps_per_epoch, with_name_of
from sivdnas_tf.errors import ConfigError, DataError
from sivdnas_tf.methods.registry import get_method
from sivdnas_tf.models.supernet import Supernet
from sivdnas_tf.posterior import named_method
from sivdnas_tf.profiling import costs
from sivdnas_tf.random_search import write_random_search
from sivdnas_tf.run_dir import as_run_dir, write_json
from sivdnas_tf.search_space import get_search_space, plan_network
from sivdnas_tf.training import objective, schedules
from sivdnas_tf.training.distribution import (
    begin_stage,
    check_batch_size,
    check_jit_compile,
    functions_as_written,
    is_chief,
    make_strategy,
    own_run_dir,
    precision_scope,
    scaled_for,
    set_seeds,
    workers_together,
)
from sivdnas_tf.training.loop import Loop, LoopPlan, model_state
from sivdnas_tf.training.search_history import PosteriorHistory, Watch

RESOLUTIONS = (8, 64)  # smallest and largest: below, a twice reduced image has one pixel; above, memory and time are not a proxy's
_METRICS = ("loss", "accuracy", "architecture_loss", "architecture_accuracy", "kl", "mixing_gradient_norm", "dropout_rate_gradient_norm")
_ADVICE = "a smaller search.learning_rate or search.architecture_learning_rate, or a smaller search.gradient_clip_norm."


def search_datasets(config, datasets):
    """The images that a search sees: those of `datasets`, or their halves at `search.resolution` where it is set."""
    resolution = config.search.resolution
    return datasets.halves_at(resolution) if resolution not in (0, datasets.image_shape[0]) else datasets


def search_steps(config, datasets):
    """Steps of an epoch: those of the weight half, or `search.steps_per_epoch`; raises `DataError` where the half has fewer."""
    available = steps_per_epoch(datasets.weights, config.search.batch_size)
    if config.search.steps_per_epoch > available:
        raise DataError(
            f"search.steps_per_epoch must be at most {available}, the batches of {config.search.batch_size} that half of the training "
            f"images make. Received: {config.search.steps_per_epoch}"
        )
    return config.search.steps_per_epoch or available


def supernet_plan(config, image_shape, classes):
    """The `NetworkPlan` of a configuration's supernet; raises `ConfigError` where there is no such network."""
    if not RESOLUTIONS[0] <= image_shape[0] <= RESOLUTIONS[1]:
        raise ConfigError(
            f"a search takes images of {RESOLUTIONS[0]} to {RESOLUTIONS[1]} pixels a side: search.resolution makes them so. "
            f"Received: images of {image_shape[0]} pixels"
        )
    space = get_search_space(config.search.search_space)
    return plan_network(
        space.networks[0],
        channels=config.search.channels,
        cells=config.search.cells,
        classes=classes,
        resolution=image_shape[0],
        image_channels=image_shape[2],
        multipliers=(len(space.outputs),) * len(space.cell_types),
    )


def build_supernet(config, image_shape, classes, steps, class_weights=None):
    """The compiled supernet of a configuration; call it in the strategy's scope.

    Args:
      config: a `Config`.
      image_shape: (resolution, resolution, channels).
      classes: number of classes.
      steps: steps an epoch, which the weights' learning rate follows.
      class_weights: float `[classes]`, or None.
    """
    search, space = config.search, get_search_space(config.search.search_space)
    method, plan = get_method(search.method), supernet_plan(config, image_shape, classes)
    with precision_scope(search.precision):
        supernet = Supernet(
            space,
            plan,
            method=method,
            mixing=method.mixing_in(search),
            initial_log_dropout_rate=search.initial_log_dropout_rate,
            noise_in=search.noise_in,
            noise_shape=search.noise_shape,
            gate_gradient=method.gate_gradient_in(search),
            gate_temperature=search.gate_temperature,
            normalize_skips=search.normalize_skips,
            recompute=search.recompute,
            seed=config.seed,
        )
    # Keras' SGD keeps the learning rate inside the velocity, PyTorch's outside: they part only where the cosine moves.
    weight_optimizer = keras.optimizers.SGD(
        schedules.EpochLearningRate(search.learning_rate, search.final_learning_rate, search.epochs, steps), momentum=search.momentum
    )
    supernet.compile(
        scaled_for(search.precision, weight_optimizer),
        scaled_for(search.precision, _adam(search, search.architecture_learning_rate)),
        dropout_rate_optimizer=_dropout_rate_optimizer(search, supernet),
        kl_weight=search.kl_weight,
        kl_centered=search.kl_centered,
        weight_decay=search.weight_decay,
        architecture_weight_decay=search.architecture_weight_decay,
        gradient_clip_norm=search.gradient_clip_norm,
        hypergradient_order=method.hypergradient_order_in(search),
        class_weights=class_weights,
        cost_scale=search.cost_scale,
        kl_until_budget=method.kl_until_budget_in(search),
        cost_terms=_cost_terms(config, unit=config.budget.macs) if search.steered_by_budget else None,
    )
    return supernet


def _adam(search, learning_rate):
    return keras.optimizers.Adam(learning_rate, search.architecture_beta_1, search.architecture_beta_2, epsilon=1e-8)


def _dropout_rate_optimizer(search, supernet):
    """The optimizer of the log dropout rates where they have one of their own, else None."""
    if not search.dropout_rate_learning_rate or not supernet.dropout_rate_variables:
        return None
    return scaled_for(search.precision, _adam(search, search.dropout_rate_learning_rate))


def _cost_terms(config, unit=1.0):
    """`costs.expected_cost_terms` of the deployed network as arrays, divided by `unit`."""
    fixed, terms = costs.expected_cost_terms(get_search_space(config.search.search_space), config.budget)
    return fixed / unit, {cell_type: np.array(rows) / unit for cell_type, rows in terms.items()}


def run_search(config, datasets, run_dir=None, overwrite=False, say=print):
    """Searches, or continues a search, or returns a finished one's posterior.

    Args:
      config: a `Config`.
      datasets: `Datasets`, of which only the splits weights and architecture are read; or a `tf.data.Dataset` of `(image, label)`
        (`data.datasets.as_datasets`).
      run_dir: the `RunDir` or the path of the directory that gets config.json and search/*. None searches in a temporary directory
        that is removed at the end: nothing but the result is kept, and an interrupted search is lost.
      overwrite: whether an earlier search in `run_dir` is removed first.
      say: function of a line for the user.

    Returns:
      The `Posterior`.

    Raises:
      RunDirError, ConfigError, DataError: see the modules that check; nothing is trained or written then.
      NonFiniteError, Interrupted: as `Loop.run`.
    """
    if run_dir is None:
        with tempfile.TemporaryDirectory(prefix="sivdnas-search-") as directory:
            return run_search(config, datasets, directory, overwrite, say)
    if not get_method(config.search.method).trains_supernet:
        return write_random_search(config, as_run_dir(run_dir), overwrite, say)
    check_searchable(config)
    run_dir, datasets = as_run_dir(run_dir), as_datasets(datasets, config)
    config = with_name_of(config, datasets)
    # What can never run is refused before its settings are on record, where they would stand in the way of better ones.
    datasets = search_datasets(config, datasets)
    strategy = make_strategy(config.distribution.strategy)
    check_batch_size(config.search.batch_size, strategy, "search.batch_size")
    check_jit_compile(config.search.jit_compile, strategy, "search.jit_compile")
    steps = search_steps(config, datasets)
    supernet_plan(config, datasets.image_shape, len(datasets.class_names))
    configured_augmentation(config.data, config.search.cutout_length).check(datasets.image_shape)
    cost_terms = _cost_terms(config)
    state = begin_stage(run_dir, strategy, "search", config.stage_settings("search"), overwrite)
    if is_chief(strategy):
        write_json(run_dir.file("config.json"), config.to_dict())
    if state.done:
        say(f"search: done already ({run_dir.file('search/posterior.npz')})")
        return run_dir.read_posterior()
    set_seeds(config.seed, config.deterministic)
    labels = np.concatenate([datasets.weights.labels, datasets.architecture.labels])
    weights = objective.class_weights(config.data.class_weights, labels, len(datasets.class_names))
    with workers_together("search", strategy), strategy.scope():
        supernet = build_supernet(config, datasets.image_shape, len(datasets.class_names), steps, weights)
    with own_run_dir(run_dir, strategy) as own, functions_as_written():
        plan = _loop_plan(config, datasets, own, supernet, steps, cost_terms)
        Loop(plan, own, strategy, config.checkpoint, say, restore_from=run_dir).run()
        posterior = supernet.posterior(config.search.epochs)
        own.write_posterior(posterior)
    return posterior


def _loop_plan(config, datasets, run_dir, supernet, steps, cost_terms):
    search, augmentation = config.search, configured_augmentation(config.data, config.search.cutout_length)
    warm_up, bilevel = (supernet.weight_step,), (supernet.architecture_step, supernet.weight_step)
    history = PosteriorHistory(run_dir, supernet, config.budget, *cost_terms, rank_by=config.derive.rank_by)
    watch = Watch(run_dir, supernet.space, config)

    def on_epoch_begin(epoch):
        # Not annealed is lambda = 0.
        gap = schedules.prior_gap(epoch, search.warmup_epochs, search.prior_gap_decay) if supernet.method.annealed else 1.0
        supernet.operation_prior_gap.assign(gap)
        supernet.edge_prior_gap.assign(gap)
        supernet.kl_scale.assign(schedules.kl_scale(epoch, search.warmup_epochs, search.kl_ramp_epochs))

    def on_epoch_end(epoch, record):
        rates = schedules.cosine_learning_rate(epoch, search.learning_rate, search.final_learning_rate, search.epochs)
        new = {
            **history.append(epoch),
            "prior_gap": float(supernet.operation_prior_gap.numpy()),
            "learning_rate": rates,
            "frozen": epoch < search.warmup_epochs,
            **named_method(search.method),
        }
        return {**new, "findings": watch.see({**record, **new})}

    return LoopPlan(
        stage="search",
        epochs=search.epochs,
        steps_per_epoch=steps,
        batch_size=2 * search.batch_size,
        batches=lambda epoch, skip: bilevel_batches(
            datasets, search.batch_size, seed=config.seed, epoch=epoch, skip_batches=skip, max_batches=steps, augmentation=augmentation
        ),
        step=lambda epoch: warm_up if epoch < search.warmup_epochs else bilevel,
        metric_names=_METRICS,
        state={
            "supernet": model_state(supernet),
            "weight_optimizer": supernet.weight_optimizer,
            "architecture_optimizer": supernet.architecture_optimizer,
            **({"dropout_rate_optimizer": supernet.dropout_rate_optimizer} if supernet.dropout_rate_optimizer else {}),
        },
        advice=_ADVICE,
        summary=_summary,
        remarks=watch.remarks,
        jit_compile=search.jit_compile,
        on_epoch_begin=on_epoch_begin,
        on_epoch_end=on_epoch_end,
    )


def _summary(record):
    text = f"loss {record['loss']:.3f}  accuracy {record['accuracy']:.3f}"
    if record["frozen"]:
        return f"{text}  (warm-up: architecture frozen)"
    return (
        f"{text}  architecture half: loss {record['architecture_loss']:.3f}  accuracy {record['architecture_accuracy']:.3f}  "
        f"kl {record['kl']:.1f}  expected operations {record['expected_operations']:.1f}"
    )
