import dataclasses
import importlib.util
import json
import math

import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import Config, replace
from sivdnas_tf.data.augment import Augmentation
from sivdnas_tf.data.datasets import bilevel_batches
from sivdnas_tf.derive import derive
from sivdnas_tf.diagnosis import watched
from sivdnas_tf.errors import ConfigError, DataError, RunDirError
from sivdnas_tf.posterior import keep_probability
from sivdnas_tf.profiling.costs import expected_cost_terms
from sivdnas_tf.run_dir import RunDir, read_json
from sivdnas_tf.search_space import CELL_TYPES, DARTS_PRIMITIVES, SearchSpace, get_search_space
from sivdnas_tf.training import search as search_module
from sivdnas_tf.training.loop import Loop
from sivdnas_tf.training.search import build_supernet, run_search
from sivdnas_tf.uncertainty import describe

EPOCHS, STEPS = 3, 5
OF_THE_ARCHITECTURE = ["architecture_loss", "architecture_accuracy", "kl", "mixing_gradient_norm", "dropout_rate_gradient_norm"]
OF_THE_POSTERIOR = ["expected_operations", "expected_edges", "expected_macs", "macs_std", "macs_low", "macs_high", "mean_entropy"]
FIELDS = ["epoch", "step", "loss", "accuracy", *OF_THE_ARCHITECTURE, *OF_THE_POSTERIOR, "mode_operations", "skip_share", "weightless_share"]
FIELDS += ["prior_gap", "learning_rate", "frozen", "findings", "seconds", "images_per_second"]
INITIAL_KEEP_PROBABILITY = 1 / (1 + math.exp(-5))


@pytest.fixture(name="config", scope="module")
def fixture_config(tiny_config):
    spec = importlib.util.spec_from_file_location("tiny", tiny_config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Config.from_dict(module.get_config().to_dict())


@pytest.fixture(name="records", scope="module")
def fixture_records(searched):
    return RunDir(searched.path).read_metrics("search")


@pytest.fixture(name="history", scope="module")
def fixture_history(searched):
    return RunDir(searched.path).read_npz("search/posterior_history.npz")


@pytest.fixture(name="no_training")
def fixture_no_training(monkeypatch):
    def refuse(*_):
        raise AssertionError("a step was begun")

    monkeypatch.setattr(Loop, "_run_epoch", refuse)


def listing(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_every_epoch_has_a_record(records):
    assert [list(record) for record in records] == [FIELDS] * EPOCHS
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["step"] for record in records] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert [record["frozen"] for record in records] == [True, False, False]
    for record in records:
        unknown = {name for name, value in record.items() if value is None}
        assert unknown == (set(OF_THE_ARCHITECTURE) if record["frozen"] else set())
        assert all(math.isfinite(value) for name, value in record.items() if value is not None and name != "findings")
        assert 0 < record["accuracy"] < 1 and record["seconds"] > 0
        # Both halves' images count.
        assert record["images_per_second"] == pytest.approx(STEPS * 2 * 128 / record["seconds"], rel=0.01)
    assert records[-1]["loss"] < records[0]["loss"]


def test_the_prior_gap_and_the_learning_rate_follow_their_schedules(records):
    assert [record["prior_gap"] for record in records] == [1.0, 1.0, 0.5]
    cosine = [0.001 + (0.025 - 0.001) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2 for epoch in range(EPOCHS)]
    assert [record["learning_rate"] for record in records] == pytest.approx(cosine)


def test_the_architecture_is_frozen_in_the_warm_up_and_moves_after_it(history):
    for cell_type in CELL_TYPES:
        for kind in ("operation", "edge"):
            first, second, third = history[f"{cell_type}_{kind}_keep_probability"]
            np.testing.assert_allclose(first, INITIAL_KEEP_PROBABILITY, rtol=1e-6)
            assert np.all(first == first.flat[0])
            assert np.all(second != first) and np.all(third != second)


def test_the_history_has_the_axes_that_it_names(history, records):
    space = get_search_space("darts")
    n_edges, n_primitives = len(space.edges), len(space.primitives)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["edges"].tolist() == list(space.edge_names) and history["primitives"].tolist() == list(space.primitives)
    expected = np.zeros(EPOCHS)
    for cell_type in CELL_TYPES:
        operations, edges = history[f"{cell_type}_operation_keep_probability"], history[f"{cell_type}_edge_keep_probability"]
        assert operations.shape == (EPOCHS, n_edges, n_primitives) and edges.shape == (EPOCHS, n_edges)
        expected += (operations * edges[..., np.newaxis]).sum(axis=(1, 2))
    assert [record["expected_operations"] for record in records] == pytest.approx(expected)
    assert set(history) == {"epoch", "edges", "primitives"} | {
        f"{c}_{k}_keep_probability" for c in CELL_TYPES for k in ("operation", "edge")
    }


def test_the_posterior_file_has_the_keys_of_the_interface(searched, history):
    space = get_search_space("darts")
    with np.load(searched.path / "search" / "posterior.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    names = ("operation_weights", "log_operation_dropout_rate", "edge_weights", "log_edge_dropout_rate")
    parameters = [f"{cell_type}_{name}" for cell_type in ("normal", "reduction") for name in names]
    assert set(arrays) == {*parameters, "edges", "primitives", "epoch", "search_space"}
    assert arrays["epoch"] == EPOCHS and arrays["search_space"] == "darts"
    assert arrays["edges"].tolist() == list(space.edge_names) and arrays["primitives"].tolist() == list(space.primitives)
    for name in parameters:
        assert arrays[name].shape == ((14, 7) if "operation" in name else (14,))
        assert np.all(np.isfinite(arrays[name])) and len(np.unique(arrays[name])) > 1
    for cell_type in CELL_TYPES:
        for kind in ("operation", "edge"):
            last = keep_probability(arrays[f"{cell_type}_log_{kind}_dropout_rate"])
            np.testing.assert_array_equal(last, history[f"{cell_type}_{kind}_keep_probability"][-1])


def test_the_run_directory_records_the_configuration_and_keeps_two_checkpoints(searched, config):
    assert read_json(searched.path / "config.json") == json.loads(json.dumps(config.to_dict()))
    assert read_json(searched.path / "stages" / "search.json") == json.loads(json.dumps(config.stage_settings("search")))
    indices = sorted(path.name for path in (searched.path / "search" / "checkpoints").glob("*.index"))
    assert indices == ["ckpt-10.index", "ckpt-15.index"]


def test_tensorboard_has_scalars_and_histograms(searched, read_events, records, history):
    scalars, histograms = read_events(searched.path / "search" / "tensorboard")
    assert set(scalars) == {f"search/{name}" for name in FIELDS if name not in ("epoch", "step", "findings")}
    for name in ("loss", "kl", "prior_gap", "learning_rate", "expected_operations"):
        expected = {record["epoch"]: pytest.approx(record[name], rel=1e-6) for record in records if record[name] is not None}
        assert scalars[f"search/{name}"] == expected
    assert set(histograms) == {f"search/{key}" for key in history if key.endswith("keep_probability")}
    for name, by_epoch in histograms.items():
        assert sorted(by_epoch) == [1, 2, 3]
        values = history[name.removeprefix("search/")]
        for epoch, buckets in by_epoch.items():  # rows of (left edge, right edge, count)
            assert buckets[:, 2].sum() == values[epoch - 1].size
            assert buckets[:, 0].min() <= values[epoch - 1].min() + 1e-6


def test_a_search_says_one_line_an_epoch(searched, records):
    lines = [line for line in searched.lines if not line.startswith("  ! ")]
    assert [line.partition("  ")[0] for line in lines] == ["search 1/3", "search 2/3", "search 3/3"]
    assert "(warm-up: architecture frozen)" in lines[0]
    for line, record in zip(lines[1:], records[1:], strict=True):
        assert f"kl {record['kl']:.1f}" in line and f"expected operations {record['expected_operations']:.1f}" in line
        assert f"architecture half: loss {record['architecture_loss']:.3f}" in line


def test_the_test_split_was_not_read(searched):
    with pytest.raises(AssertionError, match="the test split was read: images"):
        len(searched.datasets.test.images)
    assert len(searched.datasets.weights) == 647


def test_a_finished_search_returns_its_posterior_at_once(searched, config, tmp_path, no_training, monkeypatch):
    monkeypatch.setattr(search_module, "build_supernet", None)
    run_dir, lines = RunDir(searched.copy(tmp_path / "run")), []
    before = listing(run_dir.path)
    posterior = run_search(config, searched.datasets, run_dir, say=lines.append)
    assert lines == [f"search: done already ({run_dir.file('search/posterior.npz')})"]
    assert listing(run_dir.path) == before
    for name, value in run_dir.read_posterior().to_arrays().items():
        np.testing.assert_array_equal(posterior.to_arrays()[name], value)


def test_other_settings_are_refused_by_name_and_change_nothing(searched, config, tmp_path, no_training):
    run_dir = RunDir(searched.copy(tmp_path / "run"))
    before = listing(run_dir.path)
    changed = replace(config, seed=1, search={"kl_weight": 0.25, "epochs": 4}, data={"flip": True})
    with pytest.raises(RunDirError) as caught:
        run_search(changed, searched.datasets, run_dir)
    for part in ("seed=0, now 1", "data.flip=False, now True", "search.epochs=3, now 4", "search.kl_weight=0.05, now 0.25"):
        assert part in str(caught.value)
    assert listing(run_dir.path) == before


def test_class_weights_are_among_the_settings_and_reach_the_supernet(searched, config, tmp_path, no_training, monkeypatch):
    class Captured(Exception):
        pass

    def capture(*arguments):
        raise Captured(arguments[-1])

    balanced = replace(config, data={"class_weights": "balanced"})
    with pytest.raises(RunDirError, match=r"data.class_weights='none', now 'balanced'"):
        run_search(balanced, searched.datasets, RunDir(searched.copy(tmp_path / "run")))
    monkeypatch.setattr(search_module, "build_supernet", capture)
    with pytest.raises(Captured) as caught:
        run_search(balanced, searched.datasets, RunDir(tmp_path / "new"))
    counts = np.bincount(searched.datasets.train.labels)
    np.testing.assert_allclose(caught.value.args[0], counts.sum() / (10 * counts), rtol=1e-6)


def test_settings_of_later_stages_do_not_concern_a_search(searched, config, tmp_path, no_training):
    later = replace(config, train={"epochs": 9}, budget={"macs": 1.0}, derive={"rule": "mode"}, export={"formats": ["onnx"]})
    later = replace(later, checkpoint={"keep": 5})
    run_search(later, searched.datasets, RunDir(searched.copy(tmp_path / "run")), say=lambda line: None)


def test_overwrite_starts_again(searched, config, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a supernet was built")

    monkeypatch.setattr(search_module, "build_supernet", refuse)
    run_dir = RunDir(searched.copy(tmp_path / "run"))
    with pytest.raises(AssertionError, match="a supernet was built"):
        run_search(replace(config, seed=1), searched.datasets, run_dir, overwrite=True)
    assert not run_dir.is_done("search") and not run_dir.file("search/metrics.jsonl").exists()
    assert read_json(run_dir.file("stages/search.json"))["seed"] == read_json(run_dir.file("config.json"))["seed"] == 1


def test_the_checkpoint_alone_gives_the_posterior(searched, config, tmp_path, no_training):
    """A kill after the last checkpoint: nothing is trained again, and the architecture comes from the checkpoint, bit for bit."""
    run_dir, lines = RunDir(searched.copy(tmp_path / "run")), []
    expected = run_dir.read_posterior().to_arrays()
    run_dir.file("search/posterior.npz").unlink()
    posterior = run_search(config, searched.datasets, run_dir, say=lines.append)
    assert len(lines) == 1 and "resuming at step 15" in lines[0]
    for name, value in expected.items():
        np.testing.assert_array_equal(posterior.to_arrays()[name], value)
        np.testing.assert_array_equal(run_dir.read_posterior().to_arrays()[name], value)


def test_the_checkpoint_holds_both_optimizers(searched):
    reader = tf.train.load_checkpoint(str(searched.path / "search" / "checkpoints" / "ckpt-15"))
    names = [name for name in reader.get_variable_to_shape_map() if "optimizer" in name]
    iterations = {name.split("/")[0]: reader.get_tensor(name) for name in names if "iterations" in name}
    # The architecture took no step in the warm-up.
    assert iterations == {"weight_optimizer": 15, "architecture_optimizer": 10}
    adam = [reader.get_tensor(name) for name in names if name.startswith("architecture_optimizer/_variables/")]
    momentum = [reader.get_tensor(name) for name in names if name.startswith("weight_optimizer/_variables/")]
    assert len(adam) == 2 * 8 and all(np.all(moments) for moments in adam)
    assert len(momentum) > 70 and sum(map(np.any, momentum)) > 0.9 * len(momentum)


REFUSED = {
    "batch larger than the split": ({"search": {"batch_size": 1000}}, DataError, "batch_size=1000"),
    "odd channels": ({"search": {"channels": 5}}, ConfigError, "channels=5"),
    "crop larger than the image": ({"data": {"crop_padding": 8}}, ConfigError, "crop_padding must be from 0 to 7"),
    "cutout larger than the image": ({"search": {"cutout_length": 16}}, ConfigError, "cutout_length must be from 0 to 7"),
    "size that does not halve twice": (
        {"search": {"resolution": 9}},
        ConfigError,
        "multiple of 4, since every reduction halves an even size exactly. Received: resolution=9",
    ),
    "images too small for a search": (
        {"search": {"resolution": 4}, "data": {"crop_padding": 0}},
        ConfigError,
        "a search takes images of 8 to 64 pixels a side: search.resolution makes them so. Received: images of 4 pixels",
    ),
    "more steps than images": (
        {"search": {"steps_per_epoch": 6}},
        DataError,
        "search.steps_per_epoch must be at most 5, the batches of 128 that half of the training images make. Received: 6",
    ),
    "batch that replicas cannot share": (
        {"search": {"batch_size": 33}, "distribution": {"strategy": "mirrored"}},
        ConfigError,
        "search.batch_size must be a multiple of the number of replicas, 2. Received: 33",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused_before_it_is_on_record(digits, config, tmp_path, name):
    changes, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        run_search(replace(config, **changes), digits, RunDir(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.fixture(name="planned")
def fixture_planned(tmp_path, monkeypatch):
    """Function of a configuration and datasets to the `LoopPlan` that a search with them would run."""

    class Captured(Exception):
        pass

    class Capturing(Loop):
        def run(self):
            raise Captured(self.plan)

    monkeypatch.setattr(search_module, "Loop", Capturing)

    def plan_of(config, datasets):
        with pytest.raises(Captured) as caught:
            run_search(config, datasets, RunDir(tmp_path), overwrite=True)
        return caught.value.args[0]

    return plan_of


def test_an_epoch_is_augmented_batches_of_both_halves(config, digits, planned):
    plan = planned(replace(config, seed=7, search={"cutout_length": 3}), digits)
    assert plan.steps_per_epoch == STEPS
    augmentation = Augmentation(crop_padding=1, flip=False, cutout_length=3)
    expected = list(bilevel_batches(digits, 128, seed=7, epoch=2, skip_batches=3, augmentation=augmentation).as_numpy_iterator())
    actual = list(plan.batches(2, 3).as_numpy_iterator())
    assert len(actual) == len(expected) == 2
    tf.nest.map_structure(np.testing.assert_array_equal, actual, expected)


def test_an_epoch_of_fewer_steps_is_the_start_of_the_whole_one(config, digits, planned):
    plan = planned(replace(config, search={"steps_per_epoch": 3}), digits)
    assert plan.steps_per_epoch == 3
    whole = planned(config, digits)
    tf.nest.map_structure(
        np.testing.assert_array_equal, list(plan.batches(1, 0).as_numpy_iterator()), list(whole.batches(1, 0).as_numpy_iterator())[:3]
    )
    assert len(list(plan.batches(1, 2).as_numpy_iterator())) == 1


def test_a_search_sees_images_at_its_own_resolution(config, digits, planned):
    plan = planned(replace(config, search={"resolution": 12}), digits)
    (images, _), (architecture_images, _) = next(iter(plan.batches(0, 0)))
    assert images.shape == architecture_images.shape == (128, 12, 12, 1)
    assert digits.image_shape == (8, 8, 1)  # the caller's are as they were


@pytest.mark.parametrize("resolution", [12, pytest.param(64, marks=pytest.mark.slow)])
def test_a_supernet_takes_a_step_at_any_size_that_halves_twice(config, resolution, monkeypatch):
    # 12 ends in images of 3 pixels, which have no phases; 8 is the size of every other test. Two nodes trace faster than four.
    monkeypatch.setattr(search_module, "get_search_space", lambda name: SearchSpace(name, DARTS_PRIMITIVES, n_nodes=2))
    supernet = build_supernet(replace(config, search={"channels": 2}), (resolution, resolution, 1), 10, steps=1)
    generator = np.random.default_rng(0)
    half = tf.constant(generator.normal(size=(4, resolution, resolution, 1)), tf.float32), tf.constant([0, 1, 2, 3])
    logs = tf.function(supernet.weight_step, autograph=False)((half, half))
    assert all(np.isfinite(float(value)) for value in logs.values())


def test_the_supernet_has_the_settings_of_its_configuration(config):
    settings = {"mixing": "softmax", "initial_log_dropout_rate": -2.0, "gradient_clip_norm": 3.0, "recompute": True}
    config = replace(config, search=settings, seed=5)
    supernet = build_supernet(config, (8, 8, 1), 10, steps=7)
    assert all(cell.recompute for cell in supernet.cells)
    assert (supernet.plan.channels, len(supernet.plan.cells), supernet.plan.classes, supernet.plan.image_channels) == (4, 3, 10, 1)
    assert (supernet.kl_weight, supernet.gradient_clip_norm, supernet.seed) == (0.05, 3.0, 5)
    for layer in (*supernet.operation_dropout.values(), *supernet.edge_dropout.values()):
        assert layer.mixing == "softmax"
        np.testing.assert_array_equal(layer.log_dropout_rate.numpy(), -2.0)
    adam, sgd = supernet.architecture_optimizer, supernet.weight_optimizer
    assert (adam.beta_1, adam.beta_2, float(adam.learning_rate)) == (0.5, 0.999, pytest.approx(0.3))
    assert (sgd.momentum, float(sgd.learning_rate)) == (0.9, pytest.approx(0.025))
    # The rate falls after an epoch, which here has 7 steps.
    sgd.iterations.assign(6)
    assert float(sgd.learning_rate) == pytest.approx(0.025)
    sgd.iterations.assign(7)
    assert float(sgd.learning_rate) == pytest.approx(0.019)


def test_the_expected_macs_are_of_the_deployed_network(history, records, config):
    fixed, terms = expected_cost_terms(get_search_space("darts"), config.budget)
    expected = np.full(EPOCHS, float(fixed))
    for cell_type in CELL_TYPES:
        operations, edges = history[f"{cell_type}_operation_keep_probability"], history[f"{cell_type}_edge_keep_probability"]
        expected += (operations * edges[..., np.newaxis] * np.array(terms[cell_type])).sum(axis=(1, 2))
    assert [record["expected_macs"] for record in records] == pytest.approx(expected)


def test_the_records_say_what_the_posterior_does_not_know(searched, records, config):
    posterior = RunDir(searched.path).read_posterior()
    details = describe(posterior, config.budget)
    for name in ("expected_operations", "expected_edges", "expected_macs", "macs_std", "mean_entropy"):
        assert records[-1][name] == pytest.approx(details[name], rel=1e-12)
    assert [records[-1]["macs_low"], records[-1]["macs_high"]] == [details["macs_interval"][end] for end in ("low", "high")]
    assert {name: records[-1][name] for name in watched(posterior)} == watched(posterior)
    for record in records:
        assert 0 < record["macs_std"] < record["macs_high"] - record["macs_low"] and record["expected_edges"] < 28


@pytest.mark.slow
def test_a_larger_cost_scale_lowers_the_derived_macs(config, digits, tmp_path):
    budget, derived, expected = dataclasses.replace(config.budget, macs=1e9), [], []
    for scale in (0.0, 20.0):
        # Ten architecture steps of about 1 take log delta from -5 past 0, where `mode` drops.
        search = {"cost_scale": scale, "kl_weight": 0.0, "architecture_learning_rate": 1.0}
        steered, path = replace(config, search=search), tmp_path / str(scale)
        posterior = run_search(steered, digits, RunDir(path), say=lambda line: None)
        derived.append(derive(posterior, rule="mode", seed=0, budget=budget).details["cost"]["macs"])
        expected.append(RunDir(path).read_metrics("search")[-1]["expected_macs"])
    assert derived[1] < 0.8 * derived[0] and expected[1] < 0.8 * expected[0]


def test_the_budget_is_on_record_where_it_steers_the_search(config):
    assert "budget" not in config.stage_settings("search")
    steered = replace(config, search={"cost_scale": 1.0})
    assert steered.stage_settings("search")["budget"]["macs"] == config.budget.macs
    assert "budget" not in steered.stage_settings("train")


@pytest.mark.slow
def test_a_search_on_two_replicas(config, digits, tmp_path):
    mirrored = replace(config, search={"epochs": 2}, distribution={"strategy": "mirrored"})
    assert len(tf.config.list_logical_devices("CPU")) == 2
    lines = []
    posterior = run_search(mirrored, digits, RunDir(tmp_path), say=lines.append)
    records = RunDir(tmp_path).read_metrics("search")
    assert len([line for line in lines if not line.startswith("  ! ")]) == len(records) == 2
    assert records[0]["frozen"] and not records[1]["frozen"]
    assert records[1]["loss"] < records[0]["loss"]
    for name, value in dataclasses.asdict(posterior.normal).items():
        assert np.all(np.isfinite(value)), name
    assert np.all(posterior.normal.log_operation_dropout_rate != -5.0)
