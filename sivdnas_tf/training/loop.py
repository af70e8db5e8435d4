"""One loop for search and training: epochs, metrics, TensorBoard, progress, checkpoints, resume, interruption. Knows nothing of NAS.

The state of a loop is its checkpoint: everything in `state`, the step number, and the sums of the running epoch's metrics. Batches are
a function of the epoch and of how many to skip, so a run that is killed continues from its newest checkpoint with the same batches.
Order at the end of an epoch: metrics file, then checkpoint; a kill between the two repeats the epoch and rewrites its line.
"""

import contextlib
import dataclasses
import math
import pathlib
import shutil
import signal
import sys
import time
import typing

import numpy as np
import tensorflow as tf
import tqdm

from sivdnas_tf.errors import Interrupted, NonFiniteError, StorageError
from sivdnas_tf.training.distribution import distributed, workers_together
from sivdnas_tf.training.tracing import AheadTracer

# What TensorFlow raises for a checkpoint whose files are damaged or gone, and for a truncated one.
UNREADABLE = (tf.errors.OpError, IndexError)


@dataclasses.dataclass(frozen=True)
class LoopPlan:
    """What a loop runs.

    Attributes:
      stage: "search" or "train": the run directory's subdirectory, and the word in messages.
      epochs: number of epochs.
      steps_per_epoch: steps of each.
      batch_size: images a step that the throughput counts.
      batches: function of `(epoch, skip)` to a `tf.data.Dataset` of the epoch's batches from number `skip` on.
      step: function of `epoch` to the functions of a batch that make one step, one after the other, each compiled apart and called in
        a replica context; they return dicts of scalars, whose names are the same throughout an epoch.
      metric_names: every name that a step may return; the first is the loss that must stay finite.
      state: dict of trackables (`model_state` of a model, optimizers) to save and restore.
      advice: what to try when the loss stops being finite.
      jit_compile: whether XLA compiles the step.
      on_epoch_begin: function of the epoch.
      on_epoch_end: function of `(epoch, record)`, returns a dict that is added to the record; called within the epoch's TensorBoard
        writer, so that it may add summaries.
      on_step_begin: function of the step number.
      summary: function of the record to the line that is printed after an epoch.
      remarks: function of the record to the lines that are printed after that one.
    """

    stage: str
    epochs: int
    steps_per_epoch: int
    batch_size: int
    batches: typing.Callable
    step: typing.Callable
    metric_names: tuple
    state: dict
    advice: str
    summary: typing.Callable
    remarks: typing.Callable = lambda record: ()
    jit_compile: bool = False
    on_epoch_begin: typing.Callable = lambda epoch: None
    on_epoch_end: typing.Callable = lambda epoch, record: {}
    on_step_begin: typing.Callable = lambda step: None


def model_state(model):
    """The variables of a Keras model, for `LoopPlan.state`.

    Given the model itself, tf.train.Checkpoint follows attributes and misses the layers that a layer keeps in a list: their moving
    averages would start anew in a run that continues.
    """
    return [variable.value for variable in model.variables]


class Loop:
    """Runs a `LoopPlan` in a run directory, from wherever its newest checkpoint is.

    Args:
      plan: the `LoopPlan`.
      run_dir: the `RunDir`.
      strategy: a `tf.distribute.Strategy`; the state's variables were made in its scope.
      checkpoint_config: a `config.CheckpointConfig`.
      say: function of a line for the user.
      restore_from: the `RunDir` with the checkpoints to continue from, where it is not `run_dir`: the chief's, for the other workers.
    """

    def __init__(self, plan, run_dir, strategy, checkpoint_config, say=print, restore_from=None):
        self.plan, self.run_dir, self.strategy, self.config, self.say = plan, run_dir, strategy, checkpoint_config, say
        self._restore_from = restore_from or run_dir
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False, name="loop_step")
        self._sums = tf.Variable(tf.zeros([len(plan.metric_names) + 2], tf.float64), trainable=False, name="loop_sums")
        self._checkpoint = tf.train.Checkpoint(step=self._step, sums=self._sums, **plan.state)
        # Exists before a restore: made at the first save, it would be read then, from a checkpoint that may have been passed over.
        self._checkpoint.save_counter.assign(0)
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, str(run_dir.file(f"{plan.stage}/checkpoints")), max_to_keep=checkpoint_config.keep
        )
        self._last_save = time.monotonic()
        self._compiled, self._tracer = {}, AheadTracer()

    def run(self, until=None):
        """Runs to the last epoch and returns the records of metrics.jsonl.

        Args:
          until: number of epochs after which it stops, with the state saved, as if it were to continue; None for all of them. What
            depends on the number of epochs, a learning rate say, does not depend on it.

        Raises:
          NonFiniteError: where a metric of a step or of an epoch becomes NaN or infinite; the last good checkpoint stays.
          StorageError: where a file cannot be written (a full disk); the last good checkpoint stays.
          WorkerLostError: where another worker is gone; the last good checkpoint stays.
          Interrupted: after SIGINT or SIGTERM, once the state is saved.
        """
        self._restore()
        step, end = int(self._step.numpy()), self.plan.epochs if until is None else until
        records = self._restore_from.read_metrics(self.plan.stage)[: step // self.plan.steps_per_epoch]
        with self._writing():
            writer = tf.summary.create_file_writer(str(self.run_dir.file(f"{self.plan.stage}/tensorboard")))
            writer.init()
        with self._tracer, _signals() as received, writer.as_default():
            for epoch in range(step // self.plan.steps_per_epoch, end):
                with workers_together(self.plan.stage, self.strategy, self._where):
                    record = self._run_epoch(epoch, received)
                records.append(record)
                with self._writing():
                    writer.flush()
                    self.run_dir.write_metrics(self.plan.stage, records)
                last = epoch + 1 == end
                if last or received or (epoch + 1) % self.config.every_epochs == 0:
                    self._save()
                self._stop_if(received)
        with self._writing():
            writer.close()
        return records

    def _restore(self):
        """Restores the newest checkpoint that can be read; an unreadable one is named and passed over."""
        checkpoints = self._checkpoints()
        for path in reversed(checkpoints):
            try:
                self._read(path)
            except UNREADABLE as error:
                reason = str(error).splitlines()[0][:200]
                self.say(f"{self.plan.stage}: checkpoint {path} cannot be read ({reason}); trying an older one")
                continue
            step = int(self._step.numpy())
            self.say(
                f"{self.plan.stage}: resuming at step {step}, epoch {step // self.plan.steps_per_epoch + 1} of {self.plan.epochs} ({path})"
            )
            return
        if checkpoints:
            self.say(f"{self.plan.stage}: no checkpoint can be read; starting again from the first step")

    def _read(self, path):
        """Restores a checkpoint; of metrics that it does not have, which were added at the end since it was written, the sums are 0."""
        shape = tf.train.load_checkpoint(path).get_variable_to_shape_map().get("sums/.ATTRIBUTES/VARIABLE_VALUE", self._sums.shape)
        if shape[0] >= self._sums.shape[0]:
            self._checkpoint.restore(path).assert_existing_objects_matched()
            return
        fewer = tf.Variable(tf.zeros(shape, tf.float64), trainable=False)
        tf.train.Checkpoint(step=self._step, sums=fewer, **self.plan.state).restore(path).assert_existing_objects_matched()
        self._sums.assign(tf.concat([fewer[:-2], tf.zeros(self._sums.shape[0] - shape[0], tf.float64), fewer[-2:]], axis=0))

    def _where(self):
        return f" at step {int(self._step.numpy())}; the last good checkpoint stays, {self._last_good()}"

    def _last_good(self):
        return (self._checkpoints() or ["none yet"])[-1]

    def _checkpoints(self):
        """Paths of the checkpoints to continue from, oldest first."""
        if self._restore_from is self.run_dir:
            return self._manager.checkpoints
        state = tf.train.get_checkpoint_state(str(self._restore_from.file(f"{self.plan.stage}/checkpoints")))
        return list(state.all_model_checkpoint_paths) if state else []

    def _save(self):
        with self._writing():
            self._manager.save(checkpoint_number=int(self._step.numpy()))
        self._last_save = time.monotonic()

    @contextlib.contextmanager
    def _writing(self, failures=(OSError, tf.errors.OpError)):
        """Turns a failure to write into a `StorageError`, and removes what a checkpoint left behind that was not finished."""
        try:
            yield
        except failures as error:
            for path in pathlib.Path(self._manager.directory).glob("ckpt-*_temp"):
                shutil.rmtree(path, ignore_errors=True)
            # TensorFlow's message goes "{{node}} path; reason [Op:name]".
            reason = (
                error.strerror or str(error)
                if isinstance(error, OSError)
                else error.message.splitlines()[0].split("; ")[-1].split(" [Op:")[0]
            )
            raise StorageError(
                f"{self.plan.stage}: writing in {self.run_dir.path} failed at step {int(self._step.numpy())}: {reason}. The last good "
                f"checkpoint stays: {self._last_good()}. Make room there; the same command continues"
            ) from error

    def _run_epoch(self, epoch, received):
        plan = self.plan
        skip = int(self._step.numpy()) - epoch * plan.steps_per_epoch
        plan.on_epoch_begin(epoch)
        step_functions = [self._compile(function) for function in plan.step(epoch)]
        batches = distributed(self.strategy, plan.batches(epoch, skip))
        coming = [*step_functions, *(self._compile(function) for function in plan.step(plan.epochs - 1))]
        sums, started = self._sums.numpy() if skip else np.zeros(self._sums.shape), time.monotonic()
        seconds_before, seen = sums[-1], {}
        with self._progress(epoch, skip) as progress:
            for batch in batches:
                step = int(self._step.numpy())
                plan.on_step_begin(step)
                if self.strategy.num_replicas_in_sync == 1:  # several replicas number their collectives as they are traced
                    self._tracer.trace(coming, batch)
                seen = {name: float(value) for function in step_functions for name, value in self._call(function, batch).items()}
                self._check_finite(seen, step)
                sums[:-2] += [seen.get(name, 0.0) for name in plan.metric_names]
                sums[-2] += 1
                sums[-1] = seconds_before + time.monotonic() - started
                self._step.assign_add(1)
                self._sums.assign(sums)
                progress.update(plan.batch_size)
                progress.set_postfix({name: f"{sums[i] / sums[-2]:.4f}" for i, name in enumerate(plan.metric_names) if name in seen})
                self._save_if_due(received)
        return self._record(epoch, sums, seen)

    def _call(self, function, batch):
        self._tracer.wait(function)
        return function(batch)

    def _compile(self, step_function):
        """The function over all replicas as one tf.function, the same for the same function."""
        strategy = self.strategy
        if step_function not in self._compiled:

            @tf.function(autograph=False, jit_compile=self.plan.jit_compile)
            def distributed_step(batch):
                logs = strategy.run(step_function, args=(batch,))
                return {name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in logs.items()}

            self._compiled[step_function] = distributed_step
        return self._compiled[step_function]

    def _progress(self, epoch, skip):
        # disable=None: a bar on a terminal only; a log file gets the line an epoch.
        return tqdm.tqdm(
            total=self.plan.steps_per_epoch * self.plan.batch_size,
            initial=skip * self.plan.batch_size,
            desc=f"{self.plan.stage} {epoch + 1}/{self.plan.epochs}",
            unit=" images",
            leave=False,
            disable=None,
            file=sys.stderr,
        )

    def _check_finite(self, seen, step):
        for name, value in seen.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{self.plan.stage}: {name} became {value} at step {step} (epoch {step // self.plan.steps_per_epoch + 1}). "
                    f"The last good checkpoint stays: {self._last_good()}. Try {self.plan.advice}"
                )

    def _save_if_due(self, received):
        minutes = self.config.every_minutes
        in_epoch = int(self._step.numpy()) % self.plan.steps_per_epoch
        due = minutes and time.monotonic() - self._last_save > 60 * minutes
        if in_epoch and (due or received):
            self._save()
            self._stop_if(received)

    def _stop_if(self, received):
        if received:
            number = received[0]
            saved = "state saved" if self._restore_from is self.run_dir else "worker 0 keeps the state"
            raise Interrupted(
                number,
                f"{self.plan.stage}: {signal.Signals(number).name} received, {saved} at step {int(self._step.numpy())} in "
                f"{self._restore_from.path}: the same command continues",
            )

    def _record(self, epoch, sums, seen):
        """The epoch's line of metrics.jsonl: means over its steps, null for what its steps did not return."""
        plan, count, seconds = self.plan, sums[-2], sums[-1]
        record = {"epoch": epoch + 1, "step": int(self._step.numpy())}
        record |= {name: sums[i] / count if name in seen else None for i, name in enumerate(plan.metric_names)}
        with self._writing(OSError):  # an error of TensorFlow's would be of what it computes
            record |= plan.on_epoch_end(epoch, record)
        # What is measured after the epoch can overflow first (moving averages), and JSON has no NaN.
        self._check_finite({name: value for name, value in record.items() if isinstance(value, (int, float))}, record["step"] - 1)
        record |= {"seconds": round(seconds, 3), "images_per_second": round(count * plan.batch_size / seconds, 1)}
        with self._writing():
            for name, value in record.items():
                if name not in ("epoch", "step") and isinstance(value, (int, float)):
                    tf.summary.scalar(f"{plan.stage}/{name}", value, step=epoch + 1)
        self.say(f"{plan.stage} {epoch + 1}/{plan.epochs}  {plan.summary(record)}  {record['images_per_second']:.0f} images/s")
        for remark in plan.remarks(record):
            self.say(remark)
        return record


@contextlib.contextmanager
def _signals():
    """Collects SIGINT and SIGTERM in the list that it yields, so that a step is finished and saved before the process ends.

    A second SIGINT interrupts at once. Only the main thread can set handlers; elsewhere signals are left as they are.
    """
    received = []

    def handler(number, frame):
        if received and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        received.append(number)

    previous = {}
    with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
