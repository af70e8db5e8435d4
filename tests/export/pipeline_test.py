"""The export stage: what it writes, how far that agrees with Keras, and what it refuses."""

import dataclasses
import json
import re
import shutil

import numpy as np
import onnx
import pytest

from export import pipeline
from export.pipeline import artifact_lines, run_export
from export.to_onnx import write_onnx
from export.verify import digest
from sivdnas_tf.config import replace
from sivdnas_tf.data.augment import normalise
from sivdnas_tf.errors import AgreementError, BudgetError, RunDirError
from sivdnas_tf.profiling.costs import network_cost
from sivdnas_tf.quiet import import_tensorflow
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.training.train import WEIGHTS

FORMATS = ("saved_model", "onnx", "tflite")


def listing(path):
    """Every file and directory under a path, with its content."""
    return {str(item.relative_to(path)): item.read_bytes() if item.is_file() else None for item in sorted(path.rglob("*"))}


def statistics_of(exported):
    return exported.trained.datasets.mean, exported.trained.datasets.std


def cost_of(trained):
    shape = trained.datasets.image_shape
    return network_cost(
        trained.genotype,
        network="cifar",
        channels=4,
        cells=3,
        classes=len(trained.datasets.class_names),
        resolution=shape[0],
        image_channels=shape[2],
    )


def save_other_weights(trained, run_dir, difference):
    """Writes the trained weights to a run directory, the first kernel's with `difference` added."""
    kernel = trained.network.variables[0]
    value = np.array(kernel)
    kernel.assign(value + difference)
    trained.network.save_weights(run_dir.file(WEIGHTS), overwrite=True)
    kernel.assign(value)


@pytest.mark.parametrize("artifact_format", FORMATS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_format_agrees_with_the_trained_network(exported, artifact_format, batch_size):
    datasets = exported.trained.datasets
    pixels = datasets.test.images[5 : 5 + batch_size]  # images that the export has not seen
    normalised = normalise(pixels, datasets.mean, datasets.std).numpy()
    inside = exported.manifest["model"]["preprocessing"]["mode"] == "inside"
    expected = exported.trained.network(normalised, training=False).numpy()
    outputs = exported.load(artifact_format).run(pixels.astype(np.float32) if inside else normalised)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=2e-5)
    assert np.ptp(expected) > 100 * 2e-5  # or a constant would agree too


@pytest.mark.parametrize("artifact_format", FORMATS)
def test_manifest_tells_what_the_runtime_takes_and_gives(exported, artifact_format):
    entry, model = exported.entry(artifact_format), exported.manifest["model"]
    size, channels = model["resolution"], model["image_channels"]
    batch = 1 if artifact_format == "tflite" else None
    nchw = artifact_format == "onnx" and channels == 3
    shape = [batch, channels, size, size] if nchw else [batch, size, size, channels]
    assert entry["input"] == {"name": "image", "shape": shape, "dtype": "float32", "layout": "nchw" if nchw else "nhwc"}
    assert entry["output"] == {"name": "logits", "shape": [batch, model["classes"]], "dtype": "float32"}


def test_manifest_describes_the_model(exported):
    trained, model = exported.trained, exported.manifest["model"]
    assert set(model) >= {"genotype", "network", "channels", "cells", "resolution", "classes", "macs", "params"} | {
        "preprocessing",
        "labels",
        "version",
    }
    assert model["genotype"] == trained.genotype.to_dict()
    assert (model["network"], model["channels"], model["cells"], model["resolution"]) == ("cifar", 4, 3, 8)
    assert model["labels"] == list(trained.datasets.class_names) and len(model["labels"]) == model["classes"]
    cost = cost_of(trained)
    assert (model["macs"], model["macs_ptflops"], model["params"]) == (*dataclasses.astuple(cost)[1:], cost.params)
    assert model["params"] == sum(int(np.prod(variable.shape)) for variable in trained.network.trainable_variables)


def test_preprocessing_in_the_manifest_leads_from_pixels_to_what_the_model_takes(exported_everything, exported_partial):
    for exported in (exported_everything, exported_partial):
        datasets, preprocessing = exported.trained.datasets, exported.manifest["model"]["preprocessing"]
        np.testing.assert_array_equal(np.float32(preprocessing["mean"]), datasets.mean)
        np.testing.assert_array_equal(np.float32(preprocessing["std"]), datasets.std)
    assert exported_partial.manifest["model"]["preprocessing"]["input_range"] == [0, 255]
    mean, std = float(exported_everything.trained.datasets.mean[0]), float(exported_everything.trained.datasets.std[0])
    outside = exported_everything.manifest["model"]["preprocessing"]
    assert outside["mode"] == "outside"
    np.testing.assert_allclose(outside["input_range"], [(0 - mean) / std, (1 - mean) / std], rtol=1e-5)


@pytest.mark.parametrize("artifact_format", FORMATS)
def test_manifest_holds_digest_and_measurements(exported, artifact_format):
    entry = exported.entry(artifact_format)
    assert (entry["bytes"], entry["sha256"]) == digest(exported.directory / entry["path"])
    assert 0 <= entry["max_abs_diff"] < 2e-5 and entry["top1_agreement"] == 1.0 and entry["latency_ms"] > 0
    images = exported.manifest["verification"]["images"]
    assert any(re.match(f"export: {entry['path']} agrees .* on {images} held-out images", line) for line in exported.lines)


def test_only_what_the_manifest_names_is_in_the_directory(exported):
    entries = exported.manifest["artifacts"]
    assert [entry["format"] for entry in entries] == list(FORMATS)
    assert [entry["path"] for entry in entries] == ["saved_model/1", "model.onnx", "model_fp32.tflite"]
    assert {path.name for path in exported.directory.iterdir()} == {
        "saved_model",
        "model.onnx",
        "model_fp32.tflite",
        "verification.npz",
        "manifest.json",
    }
    run_dir = exported.trained.run_dir
    assert not list(run_dir.path.glob(".export*")) and run_dir.is_done("export")
    assert run_dir.file("export").stat().st_mode & 0o777 == run_dir.file("stages").stat().st_mode & 0o777
    json.dumps(exported.manifest, allow_nan=False)


def test_verification_images_are_spread_over_the_held_out_ones(exported_everything):
    holdout = normalise(exported_everything.trained.datasets.holdout.images, *statistics_of(exported_everything)).numpy()
    with np.load(exported_everything.directory / "verification.npz") as archive:
        images = archive["images"]
    positions = [int(np.flatnonzero((holdout == image).all(axis=(1, 2, 3)))[0]) for image in images]
    assert len(positions) == 40 and len(holdout) > 120
    assert set(np.diff(positions)) <= {len(holdout) // 40, len(holdout) // 40 + 1}


def test_all_held_out_images_are_used_where_there_are_fewer(exported_partial):
    holdout = exported_partial.trained.datasets.holdout.images
    with np.load(exported_partial.directory / "verification.npz") as archive:
        np.testing.assert_array_equal(archive["images"], holdout, strict=True)  # pixels, as the model takes them
    assert exported_partial.manifest["verification"]["images"] == len(holdout) < 40


def test_exported_onnx_graph_does_the_multiply_adds_of_the_manifest(exported):
    proto = onnx.shape_inference.infer_shapes(onnx.load(exported.directory / "model.onnx"))
    weights = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in proto.graph.value_info}
    macs = 0
    for node in proto.graph.node:
        if node.op_type == "Conv":
            macs += int(np.prod(weights[node.input[1]])) * int(np.prod(shapes[node.output[0]][2:]))
        elif node.op_type in ("MatMul", "Gemm"):
            macs += int(np.prod(weights[node.input[1]]))
    assert macs == exported.manifest["model"]["macs"]


def test_table_has_a_row_an_artifact(exported):
    lines = list(artifact_lines(exported.manifest))
    assert len(lines) == len(FORMATS) + 2
    for line, entry in zip(lines[1:], exported.manifest["artifacts"], strict=False):
        assert line.startswith(entry["path"]) and f"{entry['bytes']:,}" in line
    assert f"{exported.manifest['model']['macs']:,} macs" in lines[-1]


def test_rerun_is_done_already_and_other_settings_are_refused(exported):
    trained, before, lines = exported.trained, listing(exported.trained.run_dir.path), []
    assert trained.export(say=lines.append) == exported.manifest
    assert len(lines) == 1 and lines[0].startswith("export: done already")
    for other, field in (
        ({"export": {"max_abs_diff": 0.5}}, "max_abs_diff"),
        ({"budget": {"macs": 1e9}}, "budget.macs"),
        ({"export": {"formats": ["onnx"]}}, "formats"),
    ):
        with pytest.raises(RunDirError, match=field):
            trained.export(**other)
    assert listing(trained.run_dir.path) == before


def test_overwrite_replaces_quietly(exported_partial, tmp_path, capfd):
    import_tensorflow()  # as a command does, for the level of its messages
    run_dir = RunDir(shutil.copytree(exported_partial.trained.run_dir.path, tmp_path / "run"))
    (run_dir.path / ".export-killed").mkdir()
    manifest = exported_partial.trained.export(run_dir, overwrite=True, export={"formats": ["tflite"], "verification_images": 5})
    assert [entry["format"] for entry in manifest["artifacts"]] == ["tflite"] and manifest["verification"]["images"] == 5
    assert {path.name for path in run_dir.file("export").iterdir()} == {"model_fp32.tflite", "verification.npz", "manifest.json"}
    assert not list(run_dir.path.glob(".export*"))
    assert capfd.readouterr() == ("", "")


def test_an_export_that_the_program_did_not_make_is_not_replaced(partial, tmp_path):
    run_dir = partial.copy(tmp_path / "run")
    run_dir.file("export").mkdir()
    run_dir.file("export/notes.txt").write_text("mine")
    with pytest.raises(RunDirError, match="was not made by export"):
        partial.export(run_dir)
    assert run_dir.file("export/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("convention", ["macs", "macs_ptflops"])
def test_over_budget_nothing_is_written(exported_partial, convention):
    trained, cost = exported_partial.trained, cost_of(exported_partial.trained)
    before = listing(trained.run_dir.path)
    budget = {"macs": getattr(cost, convention) - 1, "convention": convention}
    with pytest.raises(BudgetError, match="channels=2 is the widest that would fit") as info:
        trained.export(overwrite=True, budget=budget)
    assert info.value.exit_code == 3 and f"{getattr(cost, convention):,}" in str(info.value) and "cells=3" in str(info.value)
    assert listing(trained.run_dir.path) == before


def test_the_latency_of_what_is_written_is_held_to_its_limit(partial, tmp_path, monkeypatch):
    measured = []

    def median_latency_ms(model, runtime):
        measured.append((model.input_shape, model.output_shape, runtime))
        return 2.0

    monkeypatch.setattr(pipeline, "median_latency_ms", median_latency_ms)
    run_dir, budget = partial.copy(tmp_path / "run"), {"latency_ms": 1.5, "latency_runtime": "onnxruntime"}
    before = sorted(run_dir.path.rglob("*"))
    with pytest.raises(
        BudgetError, match=r"the exported network takes longer.*at most 1\.5 ms.*in onnxruntime.*Received: 2 ms at .*cells=3"
    ):
        partial.export(run_dir, budget=budget, export={"formats": ("onnx",)})
    assert sorted(run_dir.path.rglob("*")) == before
    for _ in range(2):  # the second finds it done, and measures nothing
        partial.export(run_dir, budget={**budget, "latency_ms": 2.0}, export={"formats": ("onnx",)})
    assert measured == [((None, 8, 8, 3), (None, 3), "onnxruntime")] * 2


def test_the_written_network_is_priced_not_the_one_of_the_budget(partial):
    # What config.budget describes, an ImageNet network, costs far more than this.
    budget = {"macs": cost_of(partial).macs}
    assert pipeline.check_deployed_budget(replace(partial.config, budget=budget), partial.genotype, partial.datasets) == cost_of(partial)


def test_within_the_limit_but_not_agreeing_leaves_an_earlier_export_alone(exported_partial):
    trained = exported_partial.trained
    before = listing(trained.run_dir.path)
    with pytest.raises(AgreementError, match=r"model\.onnx does not agree .* Expected logits within 1e-12 .* max_abs_diff=") as info:
        trained.export(overwrite=True, export={"formats": ["onnx"], "max_abs_diff": 1e-12})
    assert info.value.exit_code == 4
    assert listing(trained.run_dir.path) == before


def test_a_wrong_artifact_leaves_nothing(partial, tmp_path, monkeypatch):
    def write_another_model(model, path, layout):
        kernel = next(variable for variable in model.variables if variable.name == "kernel")
        value = np.array(kernel)
        kernel.assign(value * 1.01)
        write_onnx(model, path, layout)
        kernel.assign(value)

    monkeypatch.setattr(pipeline, "write_onnx", write_another_model)
    run_dir = partial.copy(tmp_path / "run")
    before = listing(run_dir.path)
    with pytest.raises(AgreementError, match=r"model\.onnx does not agree"):
        partial.export(run_dir, export={"formats": ["onnx"], "max_abs_diff": 1e-5})
    assert listing(run_dir.path) == before  # so that the next attempt may have other settings


def test_input_of_another_training_is_refused(everything, partial, tmp_path):
    run_dir = partial.copy(tmp_path / "run")
    with pytest.raises(RunDirError, match="genotype_sha256"):
        run_export(partial.config, everything.genotype, partial.datasets, run_dir)
    run_dir.file(WEIGHTS).write_bytes(everything.run_dir.file(WEIGHTS).read_bytes())
    with pytest.raises(RunDirError, match="weights of the run's network"):
        partial.export(run_dir)
    run_dir.file(WEIGHTS).write_bytes(b"not a file of weights")
    with pytest.raises(RunDirError, match="weights of the run's network"):
        partial.export(run_dir)
    run_dir.file(WEIGHTS).unlink()
    with pytest.raises(RunDirError, match="`train` has not finished"):
        partial.export(run_dir)
    assert not run_dir.file("export").exists()


def test_weights_trained_anew_are_noticed(exported_partial, tmp_path):
    trained = exported_partial.trained
    run_dir = RunDir(shutil.copytree(trained.run_dir.path, tmp_path / "run"))
    save_other_weights(trained, run_dir, 1.0)
    with pytest.raises(RunDirError, match="weights_sha256"):
        trained.export(run_dir)


def test_logits_that_are_not_finite_are_not_exported(partial, tmp_path):
    run_dir = partial.copy(tmp_path / "run")
    save_other_weights(partial, run_dir, np.nan)
    with pytest.raises(RunDirError, match="finite logits"):
        partial.export(run_dir)
    assert not run_dir.file("export").exists()
