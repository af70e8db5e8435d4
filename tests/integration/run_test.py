"""The whole pipeline at size one, through the command line."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from sivdnas_tf.__main__ import main
from sivdnas_tf.genotype import Genotype

# What INTERFACE.md lists for the stages that are built.
FILES = (
    "config.json",
    "search/metrics.jsonl",
    "search/posterior_history.npz",
    "search/posterior.npz",
    "search/checkpoints/checkpoint",
    "genotype.json",
    "derive.json",
    "train/data.json",
    "train/metrics.jsonl",
    "train/checkpoints/checkpoint",
    "train/weights.weights.h5",
    "evaluation.json",
    "export/saved_model/1/saved_model.pb",
    "export/model.onnx",
    "export/model_fp32.tflite",
    "export/manifest.json",
    "report.html",
)
STAGES = ("search", "derive", "train", "evaluate", "export")


def listing(path, *but):
    return {
        str(item.relative_to(path)): hashlib.sha256(item.read_bytes()).hexdigest()
        for item in path.rglob("*")
        if item.is_file() and item.name not in but
    }


def call(capsys, *arguments):
    """`(exit code, lines on standard output, lines on standard error)`."""
    capsys.readouterr()
    code = main(["sivdnas_tf", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err.splitlines()


@pytest.fixture(name="finished", scope="module")
def fixture_finished(tmp_path_factory, tiny_config, trained, capture):
    """A finished run, whose first stages were made by their own commands: its directory, and what `run` printed for the rest."""
    workdir = trained.copy(tmp_path_factory.mktemp("finished") / "run")
    code, out = capture("run", f"--config={tiny_config}", f"--workdir={workdir}")
    assert code == 0
    return workdir, out


@pytest.fixture(name="capture", scope="module")
def fixture_capture():
    import contextlib
    import io

    def capture(*arguments):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = main(["sivdnas_tf", *arguments])
        return code, output.getvalue().splitlines()

    return capture


@pytest.mark.parametrize("name", FILES)
def test_the_run_directory_has(finished, name):
    assert (finished[0] / name).stat().st_size > 0


def test_the_run_directory_has_nothing_else_but_checkpoints_events_and_records(finished):
    workdir, _ = finished
    known = (
        *FILES,
        "search/diagnosis.json",
        "export/",
        "search/checkpoints/",
        "search/tensorboard/",
        "train/checkpoints/",
        "train/tensorboard/",
        "stages/",
    )
    assert [name for name in listing(workdir) if not name.startswith(known)] == []
    for stage in ("search", "train"):
        assert list((workdir / stage / "tensorboard").glob("events.out.tfevents.*"))
    assert sorted(path.stem for path in (workdir / "stages").iterdir()) == sorted(STAGES)


def test_a_run_goes_on_behind_what_is_done_and_ends_with_artifacts_and_accuracy(finished):
    workdir, lines = finished
    assert [line.split(":")[0] for line in lines if "done already" in line] == ["search", "derive", "train"]
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert lines[-1].startswith(f"evaluate: test split, 359 images: top-1 {evaluation['top1']:.4f}  top-5 {evaluation['top5']:.4f}")
    table = [line.split() for line in lines]
    for artifact in json.loads((workdir / "export" / "manifest.json").read_text())["artifacts"]:
        assert any(row[:2] == [artifact["path"], f"{artifact['bytes']:,}"] for row in table)
    assert f"report: {workdir / 'report.html'}" in lines


def test_the_evaluation_is_of_the_test_split(finished):
    result = json.loads((finished[0] / "evaluation.json").read_text())
    assert list(result) == ["split", "images", "top1", "top5", "loss"]
    assert (result["split"], result["images"]) == ("test", 359)
    assert 0 <= result["top1"] <= result["top5"] <= 1 and result["loss"] > 0
    assert (result["top1"] * 359) == pytest.approx(round(result["top1"] * 359))


def test_the_exported_artifacts_agree(finished):
    workdir, _ = finished
    manifest = json.loads((workdir / "export" / "manifest.json").read_text())
    genotype = Genotype.load(workdir / "genotype.json")
    model = manifest["model"]
    assert Genotype.from_dict(model["genotype"]) == genotype
    assert (model["network"], model["channels"], model["cells"], model["resolution"], model["classes"]) == ("cifar", 4, 3, 8, 10)
    derived = json.loads((workdir / "derive.json").read_text())
    assert (model["macs"], model["params"]) == (derived["cost"]["macs"], derived["cost"]["params"])
    assert model["labels"] == [str(digit) for digit in range(10)]
    fields = {"format", "path", "bytes", "sha256", "input", "output", "max_abs_diff", "top1_agreement", "latency_ms"}
    assert [artifact["format"] for artifact in manifest["artifacts"]] == ["saved_model", "onnx", "tflite"]
    for artifact in manifest["artifacts"]:
        assert set(artifact) == fields
        assert (workdir / "export" / artifact["path"]).exists()
        assert artifact["max_abs_diff"] < 1e-3 and artifact["top1_agreement"] >= 0.99


def test_verify_finds_what_was_exported(finished, capsys):
    code, lines, errors = call(capsys, "verify", f"--manifest={finished[0]}/export/manifest.json")
    assert (code, errors) == (0, [])
    assert len(lines) == 3


def test_run_again_finds_every_stage_done_and_changes_nothing(finished, tiny_config, capsys):
    workdir, _ = finished
    before = listing(workdir, "report.html")
    code, lines, errors = call(capsys, "run", f"--config={tiny_config}", f"--workdir={workdir}")
    assert (code, errors) == (0, [])
    assert [line.split(":")[0] for line in lines if "done already (" in line] == list(STAGES)
    assert listing(workdir, "report.html") == before


def test_another_configuration_is_refused_and_changes_nothing(finished, tiny_config, capsys):
    workdir, _ = finished
    before = listing(workdir)
    code, lines, errors = call(capsys, "run", f"--config={tiny_config}", f"--workdir={workdir}", "--config.search.kl_weight=0.5")
    assert (code, lines, len(errors)) == (2, [], 1)
    assert "search.kl_weight=0.05, now 0.5" in errors[0]
    for command, flag, expected in (
        ("evaluate", "--split=holdout", "split='test', now 'holdout'"),
        ("export", "--onnx_layout=nchw", "export.onnx_layout='nhwc', now 'nchw'"),
    ):
        code, lines, errors = call(capsys, command, f"--workdir={workdir}", flag)
        assert (code, lines, len(errors)) == (2, [], 1)
        assert expected in errors[0]
    assert listing(workdir) == before


def test_over_the_budget_is_exit_code_3_and_changes_nothing(finished, capsys):
    workdir, _ = finished
    before = listing(workdir)
    for command in ("derive", "export"):
        code, lines, errors = call(capsys, command, f"--workdir={workdir}", "--budget_macs=1", "--overwrite")
        assert (code, lines, len(errors)) == (3, [], 1)
        assert "Expected at most 1 macs" in errors[0]
    assert listing(workdir) == before


def test_an_artifact_that_does_not_agree_is_exit_code_4(trained, tmp_path, capsys):
    workdir = trained.copy(tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["export"]["max_abs_diff"] = 1e-30
    (workdir / "config.json").write_text(json.dumps(config))
    code, _, errors = call(capsys, "export", f"--workdir={workdir}", "--formats=onnx")
    assert (code, len(errors)) == (4, 1)
    assert "does not agree with the Keras model. Expected logits within 1e-30" in errors[0]
    assert not (workdir / "export" / "manifest.json").exists()


def test_a_genotype_that_the_weights_were_not_made_of_is_refused(trained, tmp_path, capsys):
    workdir = trained.copy(tmp_path / "run")
    code, _, _ = call(capsys, "derive", f"--workdir={workdir}", "--rule=mode", "--budget_macs=1e9", "--overwrite")
    assert code == 0
    for command in ("evaluate", "export"):
        code, lines, errors = call(capsys, command, f"--workdir={workdir}")
        assert (code, lines, len(errors)) == (2, [], 1)
        assert "train in" in errors[0] and "genotype_sha256=" in errors[0]
    assert not (workdir / "evaluation.json").exists()


@pytest.mark.slow
def test_a_run_from_nothing_in_a_process_of_its_own(tmp_path, tiny_config, request):
    """Start-up noise included: nothing on standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_") and name != "PYTHONUNBUFFERED"}
    result = subprocess.run(
        [sys.executable, "-m", "sivdnas_tf", "run", f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}"],
        cwd=request.config.rootpath,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].startswith("evaluate: test split, 359 images: top-1 ")
    assert all((tmp_path / "run" / name).exists() for name in FILES)
    assert "done already" not in result.stdout
