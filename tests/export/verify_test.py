"""Agreement of artifacts, and its repetition from a manifest that may have been damaged or come from a stranger."""

import json
import math
import os
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from export import runtimes
from export.verify import check_agreement, compare, digest, verify_manifest, write_verification
from sivdnas_tf.__main__ import main
from sivdnas_tf.errors import AgreementError, RunDirError

FORMATS = ("saved_model", "onnx", "tflite")
# A file of each artifact whose change must be noticed.
FILES = {
    "saved_model": "saved_model/1/variables/variables.data-00000-of-00001",
    "onnx": "model.onnx",
    "tflite": "model_fp32.tflite",
    "verification": "verification.npz",
}


@pytest.fixture
def directory(exported_partial, tmp_path):
    """A copy of an export, to be damaged."""
    return shutil.copytree(exported_partial.directory, tmp_path / "export")


def read(directory):
    return json.loads((directory / "manifest.json").read_text())


def write(directory, manifest):
    (directory / "manifest.json").write_text(json.dumps(manifest))


def entry_of(manifest, artifact_format):
    return next(entry for entry in manifest["artifacts"] if entry["format"] == artifact_format)


def sign(directory):
    """Records the digests anew: what then fails, fails for another reason."""
    manifest = read(directory)
    for entry in (*manifest["artifacts"], manifest["verification"]):
        entry["sha256"] = digest(directory / entry["path"])[1]
    write(directory, manifest)


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def fake(outputs):
    """A runtime that gives `outputs`, whatever the images."""
    outputs = np.asarray(outputs, np.float32)
    image = {"name": "image", "shape": [None, 1, 1, 1], "dtype": "float32", "layout": "nhwc"}
    return runtimes.Runtime(image, {}, lambda images: outputs[: len(images)])


def compared(outputs, logits):
    return compare(fake(outputs), np.zeros((len(logits), 1, 1, 1), np.float32), np.asarray(logits, np.float32))


def test_repeated_verification_finds_what_the_export_found(exported, tmp_path):
    directory = shutil.copytree(exported.directory, tmp_path / "elsewhere")
    lines = []
    results = verify_manifest(directory / "manifest.json", lines.append)
    assert [result["format"] for result in results] == list(FORMATS)
    for result, entry, line in zip(results, exported.manifest["artifacts"], lines, strict=True):
        assert result["path"] == entry["path"] and line.startswith(f"verify: {entry['path']} agrees")
        assert result["max_abs_diff"] == pytest.approx(entry["max_abs_diff"], abs=1e-6)
        assert result["top1_agreement"] == entry["top1_agreement"]


def test_command_exits_with_0_2_and_4(directory, capfd):
    manifest = directory / "manifest.json"
    assert main(["sivdnas_tf", "verify", f"--manifest={manifest}"]) == 0
    output, errors = capfd.readouterr()
    assert len(output.splitlines()) == 3 and errors == ""
    flip_byte(directory / FILES["onnx"])
    assert main(["sivdnas_tf", "verify", f"--manifest={manifest}"]) == 4
    assert "model.onnx has changed" in capfd.readouterr().err
    (directory / FILES["onnx"]).unlink()
    assert main(["sivdnas_tf", "verify", f"--manifest={manifest}"]) == 2
    assert "missing" in capfd.readouterr().err


@pytest.mark.parametrize("changed", FILES)
def test_a_flipped_byte_is_detected(directory, changed):
    flip_byte(directory / FILES[changed])
    with pytest.raises(AgreementError, match=r"has changed since it was exported. Expected sha256 [0-9a-f]{64}") as info:
        verify_manifest(directory / "manifest.json")
    assert info.value.exit_code == 4


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_named(directory, missing):
    name = "saved_model/1" if missing == "saved_model" else FILES[missing]
    path = directory / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(RunDirError, match=f"missing.*Received: '{name}'"):
        verify_manifest(directory / "manifest.json")


def test_a_file_too_many_in_a_saved_model_is_detected(directory):
    (directory / "saved_model/1/more.txt").write_text("")
    with pytest.raises(AgreementError, match="saved_model/1 has changed"):
        verify_manifest(directory / "manifest.json")


@pytest.mark.parametrize("name", ["../outside", "saved_model/../../outside", ".", "", "link", "{absolute}"])
def test_a_path_that_leaves_the_directory_is_refused(directory, name):
    outside = directory.parent / "outside"
    shutil.copyfile(directory / "model.onnx", outside)
    os.symlink(outside, directory / "link")
    for entry in (entry_of, lambda manifest, _: manifest["verification"]):
        manifest = read(directory)
        entry(manifest, "onnx")["path"] = name.format(absolute=outside)
        write(directory, manifest)
        with pytest.raises(RunDirError, match="must name files in its own directory"):
            verify_manifest(directory / "manifest.json")


@pytest.mark.parametrize("kind", ["link", "linked directory", "pipe"])
def test_a_saved_model_holds_plain_files_only(directory, kind):
    path = directory / "saved_model/1/more"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        os.symlink(directory / "model.onnx" if kind == "link" else directory.parent, path)
    with pytest.raises(RunDirError, match="plain file"):
        verify_manifest(directory / "manifest.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda manifest: [manifest], "must be an object"),
        (lambda manifest: {"model": {}, "artifacts": []}, "verification is not that"),
        (lambda manifest: {**manifest, "artifacts": []}, "at least one"),
        (lambda manifest: {**manifest, "artifacts": {}}, "artifacts is not that"),
        (lambda manifest: {**manifest, "artifacts": [7]}, r"artifacts\[0\] must be an object"),
        (lambda manifest: manifest["verification"].update(max_abs_diff=math.nan) or manifest, "must be a finite number"),
        (lambda manifest: manifest["verification"].update(max_abs_diff=10**400) or manifest, "must be a finite number"),
        (lambda manifest: manifest["verification"].update(min_top1_agreement="1") or manifest, "min_top1_agreement"),
        (lambda manifest: manifest["verification"].update(max_abs_diff=True) or manifest, "max_abs_diff"),
        (lambda manifest: manifest["artifacts"][0].update(format="pickle") or manifest, "one of saved_model, onnx, tflite"),
        (lambda manifest: manifest["artifacts"][1].update(path=7) or manifest, r"artifacts\[1\]: path"),
        (lambda manifest: manifest["artifacts"][1].update(path="a\0b") or manifest, "cannot be"),
        (lambda manifest: manifest["artifacts"][2].pop("sha256") and manifest, "no such field"),
        (lambda manifest: manifest["artifacts"][0]["input"].update(layout="chwn") or manifest, "one of nhwc, nchw"),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_line(directory, damage, message):
    write(directory, damage(read(directory)))
    with pytest.raises(RunDirError, match=message) as info:
        verify_manifest(directory / "manifest.json")
    assert "\n" not in str(info.value)


def test_a_manifest_that_is_missing_or_no_json_is_refused(directory):
    with pytest.raises(RunDirError, match="cannot read"):
        verify_manifest(directory / "other.json")
    (directory / "manifest.json").write_text("{")
    with pytest.raises(RunDirError, match="cannot read"):
        verify_manifest(directory / "manifest.json")


@pytest.mark.parametrize("artifact_format", FORMATS)
def test_an_artifact_that_no_runtime_takes_is_an_error_of_agreement(directory, artifact_format):
    file = directory / ("saved_model/1/saved_model.pb" if artifact_format == "saved_model" else FILES[artifact_format])
    file.write_bytes(file.read_bytes()[:1000])
    sign(directory)
    with pytest.raises(AgreementError, match="cannot be loaded in its runtime"):
        verify_manifest(directory / "manifest.json")


@pytest.mark.parametrize("artifact_format", FORMATS)
def test_artifacts_of_another_model_do_not_agree(directory, exported_everything, artifact_format):
    # Another network under the same name: other images, other classes.
    manifest = read(directory)
    path = directory / entry_of(manifest, artifact_format)["path"]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    source = exported_everything.directory / path.relative_to(directory)
    shutil.copytree(source, path) if source.is_dir() else shutil.copyfile(source, path)
    manifest["artifacts"] = [entry_of(manifest, artifact_format)]
    write(directory, manifest)
    sign(directory)
    with pytest.raises(AgreementError, match="must take images of"):
        verify_manifest(directory / "manifest.json")


@pytest.mark.parametrize("kept", FORMATS)
def test_every_artifact_is_run_again(directory, kept):
    with np.load(directory / "verification.npz") as archive:
        images, logits = archive["images"], archive["logits"]
    logits[7, 1] += 0.01
    write_verification(directory / "verification.npz", images, logits)
    manifest = read(directory)
    manifest["artifacts"] = [entry_of(manifest, kept)]
    write(directory, manifest)
    sign(directory)
    with pytest.raises(AgreementError, match=r"Expected logits within 0.001 .* max_abs_diff=0.01"):
        verify_manifest(directory / "manifest.json")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 8, 8, 3))}, "cannot read"),
        ({"images": np.zeros((2, 8, 8, 3)), "logits": np.zeros((3, 3))}, "a row of finite logits for each"),
        ({"images": np.zeros((0, 8, 8, 3)), "logits": np.zeros((0, 3))}, "a row of finite logits for each"),
        ({"images": np.zeros((1, 8, 8, 3)), "logits": np.full((1, 3), np.nan)}, "a row of finite logits for each"),
        ({"images": np.array([{}]), "logits": np.zeros((1, 3))}, "cannot read"),
    ],
)
def test_damaged_verification_images_are_refused(directory, arrays, message):
    np.savez(directory / "verification.npz", **arrays)
    sign(directory)
    with pytest.raises(RunDirError, match=message):
        verify_manifest(directory / "manifest.json")


def test_nothing_runs_before_everything_is_known_to_be_unchanged(directory):
    flip_byte(directory / FILES["tflite"])  # the last artifact
    lines = []
    with pytest.raises(AgreementError):
        verify_manifest(directory / "manifest.json", lines.append)
    assert lines == []


def test_digest_of_a_directory_is_what_the_documented_commands_print(exported_partial):
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    directory = exported_partial.directory / "saved_model/1"
    printed = subprocess.run(["sh", "-c", command], cwd=directory, capture_output=True, text=True, check=True).stdout
    assert digest(directory)[1] == printed.split()[0]
    assert digest(directory)[0] == sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_digest_of_a_directory_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_text("b")
    first = digest(tmp_path)[1]
    (tmp_path / "a/b").rename(tmp_path / "a/c")
    second = digest(tmp_path)[1]
    (tmp_path / "a/c").write_text("c")
    assert len({first, second, digest(tmp_path)[1]}) == 3


def test_probabilities_signature_is_the_softmax_of_the_logits(exported):
    loaded = tf.saved_model.load(str(exported.directory / "saved_model/1"))
    with np.load(exported.directory / "verification.npz") as archive:
        images, logits = archive["images"].astype(np.float32), archive["logits"]
    outputs = loaded.signatures["probabilities"](image=tf.constant(images))
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=2e-5)
    np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(logits), rtol=0, atol=2e-5)


def test_differences_are_measured_on_every_image_and_class():
    logits = np.zeros((70, 3))  # more than two batches
    logits[:, 0] = 1.0
    outputs = logits.copy()
    outputs[69, 2] = -0.25
    image = {"name": "image", "shape": [None, 1, 1, 1], "dtype": "float32", "layout": "nhwc"}
    runtime = runtimes.Runtime(image, {}, lambda images: outputs[images[:, 0, 0, 0].astype(int)])
    result = compare(runtime, np.arange(70, dtype=np.float32).reshape(70, 1, 1, 1), logits)
    assert (result["max_abs_diff"], result["top1_agreement"]) == (0.25, 1.0)
    outputs[69, 2] = 2.0
    assert compare(runtime, np.arange(70, dtype=np.float32).reshape(70, 1, 1, 1), logits)["top1_agreement"] == pytest.approx(69 / 70)


def test_equal_logits_are_the_same_class_and_unequal_ones_are_not():
    logits = [[1.0, 1.0, 0.0], [2.0, 2.0 - 1e-6, 0.0], [2.0, 1.99, 0.0], [1.0, 1.0, 0.0]]
    outputs = [[1.0, 1.0 + 1e-6, 0.0], [2.0, 2.0 + 1e-6, 0.0], [1.99, 2.0, 0.0], [0.9, 0.9, 1.0]]
    assert compared(outputs, logits)["top1_agreement"] == 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_never_agree(value):
    result = compared([[1.0, value]], [[1.0, 0.0]])
    assert result["max_abs_diff"] is None
    with pytest.raises(AgreementError, match="max_abs_diff=not finite"):
        check_agreement("model.onnx", result, 1e30, 0.0)


@pytest.mark.parametrize(
    ("difference", "agreement", "passes"), [(1e-3, 0.99, True), (1.1e-3, 1.0, False), (0.0, 0.98, False), (0.0, 1.0, True)]
)
def test_both_limits_hold(difference, agreement, passes):
    result = {"max_abs_diff": difference, "top1_agreement": agreement, "latency_ms": 1.0}
    if passes:
        check_agreement("model.onnx", result, 1e-3, 0.99)
    else:
        with pytest.raises(AgreementError, match=r"model\.onnx does not agree"):
            check_agreement("model.onnx", result, 1e-3, 0.99)


def test_logits_of_another_shape_do_not_agree():
    with pytest.raises(AgreementError, match="must give logits of shape"):
        compared([[1.0, 2.0, 3.0]], [[1.0, 2.0]])


def test_a_runtime_that_fails_is_an_error_of_agreement():
    def call(images):
        raise tf.errors.InternalError(None, None, "out of\nluck")

    with pytest.raises(AgreementError, match=r"fails in its runtime. Received: InternalError: .*out of luck"):
        runtimes.Runtime({}, {}, call).run(np.zeros(1))


def test_float32_is_not_rounded_while_artifacts_are_compared():
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    with runtimes.full_float32():
        assert not tf.config.experimental.tensor_float_32_execution_enabled()
    assert tf.config.experimental.tensor_float_32_execution_enabled() == before
