import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import CheckpointConfig
from sivdnas_tf.errors import Interrupted, NonFiniteError, StorageError
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.training import loop as loop_module
from sivdnas_tf.training.distribution import make_strategy
from sivdnas_tf.training.loop import Loop, LoopPlan

EPOCHS, STEPS, BATCH = 3, 4, 2
TIMES = ("seconds", "images_per_second")


class Fake:
    """A problem without a network: one variable that every batch changes. Its first epoch is a warm-up that returns fewer metrics."""

    def __init__(
        self, path, *, strategy=None, poison=None, on_step=None, epochs=EPOCHS, ballast=0, metrics=("loss", "accuracy"), **checkpoint
    ):
        strategy = strategy or tf.distribute.get_strategy()
        with strategy.scope():
            self.variable = tf.Variable([1.0, -2.0, 3.0], aggregation=tf.VariableAggregation.MEAN)
        self.poison, self.traced, self.lines, self.begun, self.drawn = poison or {}, [], [], [], []
        plan = LoopPlan(
            stage="search",
            epochs=epochs,
            steps_per_epoch=STEPS,
            batch_size=BATCH,
            batches=self.batches,
            step=lambda epoch: (self.update,) if epoch == 0 else (self.look, self.update),
            metric_names=metrics,
            state={"variable": self.variable, "ballast": tf.Variable(tf.zeros([ballast]))},
            advice="a smaller learning rate.",
            summary=lambda record: f"loss {record['loss']:.3f}",
            on_epoch_begin=self.begun.append,
            on_epoch_end=lambda epoch, record: {"double_loss": 2 * record["loss"], "frozen": epoch == 0},
            on_step_begin=on_step or (lambda step: None),
        )
        self.run_dir = RunDir(path)
        self.loop = Loop(plan, self.run_dir, strategy, CheckpointConfig(**checkpoint), self.lines.append)

    def batches(self, epoch, skip):
        self.drawn.append((epoch, skip))
        values = np.random.default_rng(epoch).normal(size=(STEPS, BATCH)).astype(np.float32)
        for (number, step), value in self.poison.items():
            values[step] = value if number == epoch else values[step]
        return tf.data.Dataset.from_tensor_slices(values[skip:].reshape(-1)).batch(BATCH, drop_remainder=True)

    def look(self, batch):
        self.traced.append("look")
        return {"accuracy": tf.reduce_max(batch)}

    def update(self, batch):
        self.traced.append("update")
        self.variable.assign(self.variable * 0.9 + tf.reduce_mean(batch))
        return {"loss": tf.reduce_mean(batch) ** 2}

    def run(self):
        return self.loop.run()

    @property
    def saved(self):
        return sorted(int(path.name[5:-6]) for path in self.run_dir.file("search/checkpoints").glob("ckpt-*.index"))


def kill_at(step, *numbers):
    """An `on_step_begin` that sends this process signals when `step` begins."""

    def on_step(current):
        for number in numbers if current == step else ():
            os.kill(os.getpid(), number)

    return on_step


def timeless(records):
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def test_a_checkpoint_of_fewer_metrics_is_continued(tmp_path):
    """Of a run that began before a metric was added."""
    whole = timeless(Fake(tmp_path / "whole").run())
    with pytest.raises(Interrupted):
        Fake(tmp_path / "old", on_step=kill_at(6, signal.SIGTERM)).run()
    new = Fake(tmp_path / "old", metrics=("loss", "accuracy", "later"))
    records = timeless(new.run())
    assert new.lines[0].startswith("search: resuming at step 7, epoch 2 of 3")
    assert [{**record, "later": None} for record in whole] == [{"later": None, **record} for record in records]


def truncate(data, share=0.5):
    return data[: int(share * len(data))]


def invert_the_counter(data):
    """Wrong bytes in the counter of saves, two here, which the loop itself never reads; it follows step, four sums and the variable."""
    counter = slice(8 + 4 * 8 + 3 * 4, 8 + 4 * 8 + 3 * 4 + 8)
    assert data[counter] == np.int64(2).tobytes()
    return data[: counter.start] + bytes(255 - byte for byte in data[counter]) + data[counter.stop :]


def damage(path, change, name="ckpt-8.data-00000-of-00001"):
    file = path / "search" / "checkpoints" / name
    file.write_bytes(change(file.read_bytes()))


@pytest.fixture(name="uninterrupted", scope="module")
def fixture_uninterrupted(tmp_path_factory):
    fake = Fake(tmp_path_factory.mktemp("loop") / "run")
    return types.SimpleNamespace(records=fake.run(), variable=fake.variable.numpy(), fake=fake, path=fake.run_dir.path)


def assert_same_end(fake, records, uninterrupted):
    """Bit for bit: the variable, and every record but its times."""
    np.testing.assert_array_equal(fake.variable.numpy(), uninterrupted.variable)
    assert timeless(records) == timeless(uninterrupted.records)
    assert fake.run_dir.read_metrics("search") == records


def test_a_run_records_every_epoch(uninterrupted):
    records = uninterrupted.records
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["step"] for record in records] == [4, 8, 12]
    for epoch, record in enumerate(records):
        values = np.random.default_rng(epoch).normal(size=(STEPS, BATCH)).astype(np.float32)
        assert record["loss"] == pytest.approx(np.mean(values.mean(axis=1) ** 2), rel=1e-6)
        assert record["double_loss"] == 2 * record["loss"]
        assert record["accuracy"] == (None if epoch == 0 else pytest.approx(values.max(axis=1).mean(), rel=1e-6))
        assert record["frozen"] is (epoch == 0)
        assert record["seconds"] > 0 and record["images_per_second"] > 0
        assert list(record) == ["epoch", "step", "loss", "accuracy", "double_loss", "frozen", *TIMES]
    lines = (uninterrupted.path / "search" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records


def test_a_run_says_one_line_an_epoch_and_compiles_each_part_of_a_step_once(uninterrupted):
    fake = uninterrupted.fake
    assert [line.partition("  ")[0] for line in fake.lines] == ["search 1/3", "search 2/3", "search 3/3"]
    for line, record in zip(fake.lines, uninterrupted.records, strict=True):
        assert f"  loss {record['loss']:.3f}  " in line and line.endswith(" images/s")
    assert fake.traced == ["update", "look"]
    assert fake.begun == [0, 1, 2]
    assert fake.drawn == [(0, 0), (1, 0), (2, 0)]


def test_remarks_follow_the_line_of_their_epoch(tmp_path):
    fake = Fake(tmp_path, epochs=2)
    fake.loop.plan = dataclasses.replace(fake.loop.plan, remarks=lambda record: [f"  ! {record['double_loss']}"] * (record["epoch"] - 1))
    records = fake.run()
    assert [line.partition("  ")[0] for line in fake.lines] == ["search 1/2", "search 2/2", ""]
    assert fake.lines[-1] == f"  ! {records[1]['double_loss']}"


def test_scalars_are_in_tensorboard(uninterrupted, read_events):
    scalars, _ = read_events(uninterrupted.path / "search" / "tensorboard")
    assert {"search/loss", "search/accuracy", "search/double_loss", "search/frozen", "search/seconds"} <= set(scalars)
    for name in ("loss", "accuracy", "double_loss"):
        expected = {record["epoch"]: pytest.approx(record[name], rel=1e-6) for record in uninterrupted.records if record[name] is not None}
        assert scalars[f"search/{name}"] == expected


def test_the_newest_checkpoints_stay(uninterrupted, tmp_path):
    assert uninterrupted.fake.saved == [8, 12]
    every_second = Fake(tmp_path, every_epochs=2, keep=5)
    every_second.run()
    assert every_second.saved == [8, 12]  # epoch 2, and the last one


def test_a_finished_run_does_nothing_more(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted.path, tmp_path / "run")
    fake = Fake(tmp_path / "run")
    assert_same_end(fake, fake.run(), uninterrupted)
    assert fake.traced == fake.begun == []


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("step", [1, 6])
def test_a_signal_saves_and_the_next_run_continues_bit_for_bit(tmp_path, uninterrupted, number, exit_code, step):
    previous = signal.getsignal(number)
    fake = Fake(tmp_path / "run", on_step=kill_at(step, number))
    with pytest.raises(Interrupted) as caught:
        fake.run()
    assert caught.value.exit_code == exit_code
    assert f"{number.name} received, state saved at step {step + 1}" in str(caught.value)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert signal.getsignal(number) is previous
    assert fake.saved[-1] == step + 1
    assert len(fake.run_dir.read_metrics("search")) == step // STEPS
    # The directory may have been moved meanwhile.
    (tmp_path / "run").rename(tmp_path / "moved")
    again = Fake(tmp_path / "moved")
    assert_same_end(again, again.run(), uninterrupted)
    assert again.lines[0].startswith(f"search: resuming at step {step + 1}, epoch {step // STEPS + 1} of 3 (")
    assert again.drawn[0] == (step // STEPS, step % STEPS + 1)


def test_a_signal_in_the_last_step_of_an_epoch_saves_whatever_the_interval(tmp_path, uninterrupted):
    fake = Fake(tmp_path, on_step=kill_at(STEPS - 1, signal.SIGTERM), every_epochs=2)
    with pytest.raises(Interrupted, match="state saved at step 4"):
        fake.run()
    assert fake.saved == [4]
    assert len(fake.run_dir.read_metrics("search")) == 1
    again = Fake(tmp_path)
    assert_same_end(again, again.run(), uninterrupted)
    assert again.begun == [1, 2]


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    previous = signal.getsignal(signal.SIGINT)
    fake = Fake(tmp_path, on_step=kill_at(2, signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fake.run()
    assert fake.saved == []
    assert signal.getsignal(signal.SIGINT) is previous


def test_handlers_are_restored_after_a_run_and_after_an_error(tmp_path):
    previous = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    during = []
    Fake(tmp_path / "a", epochs=1, on_step=lambda step: during.append(signal.getsignal(signal.SIGTERM))).run()
    assert previous[1] not in during
    with pytest.raises(NonFiniteError):
        Fake(tmp_path / "b", poison={(0, 0): np.nan}).run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == previous


def test_a_kill_between_metrics_and_checkpoint_repeats_the_epoch(tmp_path, uninterrupted, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(self):
        raise Killed

    Fake(tmp_path, epochs=1).run()
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_save", killed)
        with pytest.raises(Killed):
            Fake(tmp_path).run()
    fake = Fake(tmp_path)
    assert len(fake.run_dir.read_metrics("search")) == 2
    assert_same_end(fake, fake.run(), uninterrupted)
    assert fake.begun == [1, 2]


def test_kill_9_within_an_epoch(tmp_path, uninterrupted):
    script = (
        f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r}); import signal, loop_test\n"
        f"loop_test.Fake({str(tmp_path)!r}, every_minutes=1e-9, on_step=loop_test.kill_at(6, signal.SIGKILL)).run()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    fake = Fake(tmp_path)
    assert_same_end(fake, fake.run(), uninterrupted)
    assert "resuming at step 6, epoch 2 of 3" in fake.lines[0]


@pytest.mark.parametrize("name", ["ckpt-8.data-00000-of-00001", "ckpt-8.index"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, None])
def test_a_damaged_newest_checkpoint_falls_back_to_the_older_one(tmp_path, uninterrupted, name, share):
    Fake(tmp_path, epochs=2).run()
    if share is None:
        (tmp_path / "search" / "checkpoints" / name).unlink()
    else:
        damage(tmp_path, functools.partial(truncate, share=share), name)
    fake = Fake(tmp_path)
    assert_same_end(fake, fake.run(), uninterrupted)
    assert "ckpt-8 cannot be read (" in fake.lines[0] and fake.lines[0].endswith("trying an older one")
    assert "\n" not in fake.lines[0]
    assert "resuming at step 4, epoch 2 of 3" in fake.lines[1]
    assert fake.saved == [8, 12]


@pytest.mark.parametrize("change", [truncate, invert_the_counter])
def test_without_a_readable_checkpoint_it_starts_again_and_says_so(tmp_path, uninterrupted, change):
    Fake(tmp_path, epochs=2, keep=1).run()
    damage(tmp_path, change)
    fake = Fake(tmp_path)
    assert_same_end(fake, fake.run(), uninterrupted)
    assert "ckpt-8 cannot be read" in fake.lines[0]
    assert fake.lines[1] == "search: no checkpoint can be read; starting again from the first step"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, uninterrupted, value):
    fake = Fake(tmp_path, poison={(1, 2): value})
    with pytest.raises(NonFiniteError) as caught:
        fake.run()
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert f"search: accuracy became {value} at step 6 (epoch 2)." in message  # the first that the step returns
    assert "ckpt-4" in message and message.endswith("Try a smaller learning rate.")
    assert len(fake.run_dir.read_metrics("search")) == 1
    assert fake.saved == [4]
    mended = Fake(tmp_path)
    assert_same_end(mended, mended.run(), uninterrupted)
    assert mended.begun == [1, 2]


def test_a_metric_of_an_epoch_that_is_not_finite_stops_the_run(tmp_path):
    """Moving averages overflow before the loss of a training step does; metrics.jsonl cannot hold the value."""
    fake = Fake(tmp_path)
    measure = {0: 0.5, 1: np.inf}
    fake.loop.plan = dataclasses.replace(fake.loop.plan, on_epoch_end=lambda epoch, record: {"holdout_loss": measure[epoch]})
    with pytest.raises(NonFiniteError, match=r"search: holdout_loss became inf at step 7 \(epoch 2\)\..*ckpt-4"):
        fake.run()
    assert len(fake.run_dir.read_metrics("search")) == 1 and fake.saved == [4]


def test_a_loss_that_is_not_finite_from_the_start(tmp_path):
    with pytest.raises(NonFiniteError, match=r"loss became nan at step 0 \(epoch 1\).*stays: none yet"):
        Fake(tmp_path, poison={(0, 0): np.nan}).run()


class Clock:
    """Stands in for the module `time`: 20 seconds a step."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def step(self, step):
        del step
        self.now += 20.0


@contextlib.contextmanager
def full_disk(limit):
    """Writes beyond `limit` bytes a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_run_in_one_line_and_the_last_good_checkpoint_continues(tmp_path, uninterrupted):
    Fake(tmp_path, epochs=1).run()
    fake = Fake(tmp_path)
    with full_disk(30), pytest.raises(StorageError) as caught:  # a checkpoint's data are more
        fake.run()
    message = str(caught.value)
    assert caught.value.exit_code == 1 and "\n" not in message
    assert re.search(rf"search: writing in {re.escape(str(tmp_path))} failed at step [48]: File too large\. ", message)
    assert f"The last good checkpoint stays: {tmp_path / 'search/checkpoints/ckpt-4'}." in message
    assert fake.saved == [4] and not list(tmp_path.rglob("*_temp"))
    assert len(fake.run_dir.read_metrics("search")) == 1
    again = Fake(tmp_path)
    assert_same_end(again, again.run(), uninterrupted)


@pytest.mark.parametrize(("limit", "written"), [(30, 1), (700, 2)], ids=["metrics", "checkpoint"])
def test_a_disk_that_is_full_for_the_metrics_or_only_for_the_checkpoint(tmp_path, uninterrupted, limit, written, monkeypatch):
    Fake(tmp_path, epochs=1, ballast=1000).run()
    fake = Fake(tmp_path, ballast=1000)
    monkeypatch.setattr(tf.summary, "scalar", lambda *arguments, **options: None)
    with pytest.raises(StorageError, match="File too large"), full_disk(limit):
        fake.run()
    assert len(fake.run_dir.read_metrics("search")) == written
    again = Fake(tmp_path, ballast=1000)
    assert_same_end(again, again.run(), uninterrupted)


def test_minutes_between_checkpoints(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop_module, "time", clock)
    fake = Fake(tmp_path / "half", keep=50, every_minutes=0.5, on_step=clock.step)
    records = fake.run()
    assert fake.saved == [2, 4, 6, 8, 10, 12]
    assert [(record["seconds"], record["images_per_second"]) for record in records] == [(80.0, 0.1)] * 3
    never = Fake(tmp_path / "never", keep=50, every_minutes=0.0, on_step=clock.step)
    never.run()
    assert never.saved == [4, 8, 12]


def test_seconds_of_an_interrupted_epoch_add_up(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop_module, "time", clock)

    def on_step(step):
        clock.step(step)
        kill_at(2, signal.SIGTERM)(step)

    with pytest.raises(Interrupted):
        Fake(tmp_path, on_step=on_step).run()
    clock.now += 5000.0
    records = Fake(tmp_path, on_step=clock.step).run()
    assert [record["seconds"] for record in records] == [80.0, 80.0, 80.0]


def test_the_progress_bar_is_for_terminals(tmp_path, monkeypatch, capsys):
    Fake(tmp_path / "file", epochs=1).run()
    assert capsys.readouterr().err == ""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    Fake(tmp_path / "terminal", epochs=1).run()
    assert "search 1/1" in terminal.getvalue() and "loss=" in terminal.getvalue()


@pytest.fixture(name="mirrored")
def fixture_mirrored():
    strategy = make_strategy("mirrored")
    assert strategy.num_replicas_in_sync == 2
    return strategy


def test_two_replicas_average_their_metrics_and_resume(tmp_path, mirrored):
    whole = Fake(tmp_path / "whole", strategy=mirrored)
    records = whole.run()
    for epoch, record in enumerate(records):
        values = np.random.default_rng(epoch).normal(size=(STEPS, BATCH)).astype(np.float32)
        # A replica sees one of a batch's two values, so the mean of the squares is not the square of the mean.
        assert record["loss"] == pytest.approx(np.mean(values**2), rel=1e-5)
        assert record["accuracy"] == (None if epoch == 0 else pytest.approx(values.mean(), rel=1e-5))
    with pytest.raises(Interrupted):
        Fake(tmp_path / "cut", strategy=mirrored, on_step=kill_at(5, signal.SIGTERM)).run()
    again = Fake(tmp_path / "cut", strategy=mirrored)
    assert timeless(again.run()) == timeless(records)
    np.testing.assert_array_equal(again.variable.numpy(), whole.variable.numpy())
    assert "resuming at step 6" in again.lines[0]
