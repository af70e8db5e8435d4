"""The training stage: genotype to train/weights.weights.h5 (METHOD.md section 7)."""

import dataclasses

import keras

from sivdnas_tf.data.augment import configured_augmentation
from sivdnas_tf.data.datasets import as_datasets, batches, named_errors, steps_per_epoch, with_name_of
from sivdnas_tf.data.description import write_description
from sivdnas_tf.errors import ConfigError, RunDirError
from sivdnas_tf.models.evaluation_network import DROP_PATH_SCHEDULE, evaluation_network
from sivdnas_tf.profiling.costs import check_budget, check_latency
from sivdnas_tf.run_dir import as_run_dir, atomic_path, read_json, write_json
from sivdnas_tf.search_space import plan_network
from sivdnas_tf.training import objective, schedules
from sivdnas_tf.training.averaging import MovingAverage
from sivdnas_tf.training.distribution import (
    apply_gradients,
    begin_stage,
    check_batch_size,
    check_jit_compile,
    is_chief,
    loss_scale,
    make_strategy,
    own_run_dir,
    precision_scope,
    scaled_for,
    set_seeds,
    workers_together,
)
from sivdnas_tf.training.evaluate import measure
from sivdnas_tf.training.hypergradient import first_order
from sivdnas_tf.training.loop import Loop, LoopPlan, model_state

WEIGHTS = "train/weights.weights.h5"
PAUSED_WEIGHTS = "train/paused.weights.h5"
_BEST = "train/checkpoints/best.weights.h5"
_METRICS = ("loss", "accuracy")
_ADVICE = "a smaller train.learning_rate or a smaller train.gradient_clip_norm."


def trained_plan(config, genotype, image_shape, classes):
    """The `NetworkPlan` of the network that `config.train` describes, for images of `image_shape` and a number of classes."""
    return plan_network(
        config.train.network,
        channels=config.train.channels,
        cells=config.train.cells,
        classes=classes,
        resolution=image_shape[0],
        image_channels=image_shape[2],
        multipliers=genotype.multipliers,
    )


def train_settings(config, genotype):
    """What the weights depend on, for the run directory's record of the stage."""
    return {**config.stage_settings("train"), "genotype_sha256": genotype.sha256}


def run_train(config, genotype, datasets, run_dir, overwrite=False, say=print, measure_latency=None, until=None):
    """Trains the genotype's evaluation network, or continues, or says that it is done.

    All training images but the held-out ones are trained on; the held-out ones choose the epoch whose weights are kept
    (`train.checkpoint_choice`) and nothing else. With `train.ema_decay` it is the average that they measure and that is kept.
    train/weights.weights.h5 holds the network without auxiliary head and drop path,
    train/data.json what a user of the network must know of its images.

    Args:
      config: a `Config`.
      genotype: a `Genotype`.
      datasets: `Datasets`, of which the test split is not read; or a `tf.data.Dataset` (`data.datasets.as_datasets`).
      run_dir: the `RunDir` or the path of the directory that gets config.json, train/* and, unless it has one, genotype.json.
      overwrite: whether an earlier training in `run_dir` is removed first.
      say: function of a line for the user.
      measure_latency: function of a `Genotype` to the milliseconds that its deployed network takes an image
        (`export.latency.deployed_latency_ms`); needed where `config.budget.latency_ms` limits them. It is called before a training
        begins, by the chief, unless derive.json says that `derive` measured this genotype for the same budget.
      until: number of epochs after which the training pauses, of the same schedule: train/paused.weights.h5 then holds what
        train/weights.weights.h5 would, and a later call continues. None, or train.epochs, finishes it.

    Raises:
      BudgetError: where the deployed network of `config.budget` is over budget; nothing is trained or written then.
      RunDirError, ConfigError, DataError: see the modules that check; nothing is trained or written then.
      NonFiniteError, Interrupted: as `Loop.run`.
    """
    check_budget(genotype, config.budget)
    run_dir, datasets = as_run_dir(run_dir), as_datasets(datasets, config)
    config = with_name_of(config, datasets)
    # What can never run is refused before its settings are on record, where they would stand in the way of better ones.
    strategy = make_strategy(config.distribution.strategy)
    check_batch_size(config.train.batch_size, strategy, "train.batch_size")
    check_jit_compile(config.train.jit_compile, strategy, "train.jit_compile")
    steps = steps_per_epoch(datasets.train, config.train.batch_size)
    plan = trained_plan(config, genotype, datasets.image_shape, len(datasets.class_names))
    configured_augmentation(config.data, config.train.cutout_length).check(datasets.image_shape)
    balanced = config.data.class_weights != "none"
    weights = objective.class_weights(config.data.class_weights, datasets.train.labels if balanced else None, plan.classes)
    if config.budget.latency_ms and is_chief(strategy) and (overwrite or not _began_within(config.budget, run_dir)):
        _check_latency(config.budget, genotype, run_dir, measure_latency)
    state, chief = begin_stage(run_dir, strategy, "train", train_settings(config, genotype), overwrite), is_chief(strategy)
    if chief:
        write_json(run_dir.file("config.json"), config.to_dict())
        if not run_dir.is_done("derive"):
            run_dir.write_genotype(genotype)
    if state.done:
        say(f"train: done already ({run_dir.file(WEIGHTS)})")
        return
    if chief:
        write_description(run_dir, datasets)
    set_seeds(config.seed, config.deterministic)
    with workers_together("train", strategy), strategy.scope():
        trainer = Trainer(config, genotype, plan, steps, strategy, weights)
    deployed = evaluation_network(genotype, plan)
    with own_run_dir(run_dir, strategy) as own:
        plan = _loop_plan(config, datasets, own, trainer, deployed, steps)
        with named_errors(datasets.train):
            Loop(plan, own, strategy, config.checkpoint, say, restore_from=run_dir).run(until)
    if not chief:
        return
    if config.train.checkpoint_choice == "best":
        deployed.load_weights(run_dir.file(_BEST))
    else:
        trainer.copy_to(deployed)
    _save_weights(deployed, run_dir.file(WEIGHTS if until in (None, config.train.epochs) else PAUSED_WEIGHTS))


def _began_within(budget, run_dir):
    """Whether a training has begun, and under the same budget."""
    return run_dir.file("stages/train.json").exists() and read_json(run_dir.file("config.json")).get("budget") == dataclasses.asdict(budget)


def _check_latency(budget, genotype, run_dir, measure_latency):
    if measure_latency is None:
        raise ConfigError(f"budget.latency_ms needs measure_latency, which measures it. Received: latency_ms={budget.latency_ms}, none")
    if run_dir.file("derive.json").exists():
        details = read_json(run_dir.file("derive.json"))
        derived = (details.get("budget"), (details.get("latency") or {}).get("genotype_sha256"))
        if derived == (dataclasses.asdict(budget), genotype.sha256):
            return
    check_latency(measure_latency(genotype), budget)


def load_trained(config, genotype, datasets, run_dir, weights=WEIGHTS):
    """The trained network in its deployed form: a Keras model from normalised images to logits.

    Args:
      config: a `Config`.
      genotype: a `Genotype`.
      datasets: `Datasets` or their `DataDescription`, for the shape of the images and the number of classes.
      run_dir: the `RunDir`.
      weights: `WEIGHTS`, or `PAUSED_WEIGHTS` of a training that paused.

    Raises:
      RunDirError: where the file of the weights is damaged, or of another network.
    """
    plan = trained_plan(config, genotype, datasets.image_shape, len(datasets.class_names))
    model = evaluation_network(genotype, plan)
    try:
        model.load_weights(run_dir.file(weights))
    except (OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunDirError(f"{run_dir.file(weights)} must hold the weights of the run's network. Received: {reason}") from error
    return model


class Trainer:
    """The evaluation network in its training form, its optimizer, and a step; make it in the strategy's scope.

    Args:
      config: a `Config`.
      genotype: a `Genotype`.
      plan: the `NetworkPlan`.
      steps: steps an epoch.
      strategy: the strategy whose scope this is in: with several replicas, batch-norm takes its statistics over all of them.
      class_weights: float `[classes]` that an example's cross-entropy is multiplied by, or None.
    """

    def __init__(self, config, genotype, plan, steps, strategy, class_weights=None):
        self.train, self._class_weights = config.train, class_weights
        with precision_scope(config.train.precision):
            self.model = evaluation_network(
                genotype,
                plan,
                auxiliary=config.train.auxiliary_weight > 0,
                drop_path=config.train.drop_path_rate > 0,
                synchronized=strategy.num_replicas_in_sync > 1,
                seed=config.seed,
            )
        rate = schedules.EpochLearningRate(steps_per_epoch=steps, **_rates(self.train))
        self.optimizer = scaled_for(config.train.precision, keras.optimizers.SGD(rate, momentum=self.train.momentum))
        self.optimizer.build(self.model.trainable_variables)
        self._weight_decays = [
            self.train.weight_decay if self.train.weight_decay_on == "all" or variable.name == "kernel" else 0.0
            for variable in self.model.trainable_variables
        ]
        self._average = MovingAverage(_deployed_variables(self.model), self.train.ema_decay) if self.train.ema_decay > 0 else None

    @property
    def state(self):
        """What a checkpoint must hold, for `LoopPlan.state`."""
        state = {"model": model_state(self.model), "optimizer": self.optimizer}
        return state | ({"average": self._average.state} if self._average else {})

    def copy_to(self, deployed):
        """Gives the network without auxiliary head and drop path this one's weights, or with `train.ema_decay` their average."""
        values = {variable.path: variable.numpy() for variable in self.model.variables}
        values |= self._average.values() if self._average else {}
        for variable in deployed.variables:
            variable.assign(values[variable.path])

    def set_drop_path(self, *, rate=None, step=None):
        """Assigns the rate of dropping a path, or the step that keys the masks; without drop path there is nothing to assign."""
        if self.train.drop_path_rate > 0:
            schedule = self.model.get_layer(DROP_PATH_SCHEDULE)
            if rate is not None:
                schedule.rate.assign(rate)
            if step is not None:
                schedule.step.assign(step)

    def step(self, batch):
        """One SGD step on `(images, labels)`, in a replica context; returns loss and accuracy."""
        images, labels = batch
        train, variables = self.train, self.model.trainable_variables

        def loss():
            outputs = self.model(images, training=True)
            logits, auxiliary_logits = outputs if train.auxiliary_weight > 0 else (outputs, None)
            value = objective.training_loss(
                labels,
                logits,
                auxiliary_logits,
                auxiliary_weight=train.auxiliary_weight,
                label_smoothing=train.label_smoothing,
                weights=self._class_weights,
            )
            return value, logits

        value, logits, gradients = first_order(loss, variables, scale=loss_scale(self.optimizer))
        apply_gradients(
            self.optimizer,
            gradients,
            variables,
            clip_norm=train.gradient_clip_norm,
            weight_decays=self._weight_decays,
        )
        if self._average:
            self._average.update()
        return {"loss": value, "accuracy": objective.accuracy(labels, logits)}


def _rates(train):
    """What `schedules.learning_rate` takes besides the epoch."""
    return {
        "initial": train.learning_rate,
        "final": train.final_learning_rate,
        "epochs": train.epochs,
        "schedule": train.schedule,
        "warmup_epochs": train.warmup_epochs,
    }


def _deployed_variables(model):
    """Weights and batch-norm's moving statistics of the training form that the deployed one has too."""
    of_training = ("auxiliary", DROP_PATH_SCHEDULE)
    return [variable for variable in model.variables if variable.path.split("/")[0] not in of_training]


def _save_weights(model, path):
    with atomic_path(path) as temporary:
        # On a full disk HDF5 fails without an errno, or crashes: what it will need is written first, which raises an ordinary OSError.
        needed = sum(variable.numpy().nbytes for variable in model.variables) + 4096 * len(model.variables)
        temporary.write_bytes(bytes(needed))
        model.save_weights(temporary, overwrite=True)


def _loop_plan(config, datasets, run_dir, trainer, deployed, steps):
    train, augmentation = config.train, configured_augmentation(config.data, config.train.cutout_length)
    statistics = {"mean": datasets.mean, "std": datasets.std}

    def drop_path_rate(epoch):
        return schedules.drop_path_rate(epoch, train.epochs, train.drop_path_rate)

    def on_epoch_end(epoch, record):
        del record
        trainer.copy_to(deployed)
        holdout = measure(deployed, datasets.holdout, **statistics)
        earlier = [line["holdout_accuracy"] for line in run_dir.read_metrics("train")[:epoch]]
        if train.checkpoint_choice == "best" and holdout["top1"] >= max(earlier, default=0.0):
            _save_weights(deployed, run_dir.file(_BEST))
        return {
            "holdout_loss": holdout["loss"],
            "holdout_accuracy": holdout["top1"],
            "holdout_top5": holdout["top5"],
            "learning_rate": schedules.learning_rate(epoch, **_rates(train)),
            "drop_path_rate": drop_path_rate(epoch),
        }

    return LoopPlan(
        stage="train",
        epochs=train.epochs,
        steps_per_epoch=steps,
        batch_size=train.batch_size,
        batches=lambda epoch, skip: batches(
            datasets.train, train.batch_size, seed=config.seed, epoch=epoch, skip_batches=skip, augmentation=augmentation, **statistics
        ),
        step=lambda epoch: (trainer.step,),
        metric_names=_METRICS,
        state=trainer.state,
        advice=_ADVICE,
        summary=lambda record: (
            f"loss {record['loss']:.3f}  accuracy {record['accuracy']:.3f}  held out: loss {record['holdout_loss']:.3f}  "
            f"accuracy {record['holdout_accuracy']:.3f}"
        ),
        jit_compile=train.jit_compile,
        on_epoch_begin=lambda epoch: trainer.set_drop_path(rate=drop_path_rate(epoch)),
        on_epoch_end=on_epoch_end,
        on_step_begin=lambda step: trainer.set_drop_path(step=step),
    )
