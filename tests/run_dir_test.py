import json
import os
import pathlib
import random
import stat
import zipfile

import numpy as np
import pytest

from sivdnas_tf.config import Config, replace
from sivdnas_tf.errors import GenotypeError, RunDirError
from sivdnas_tf.posterior import CellPosterior, Posterior, keep_probability
from sivdnas_tf.run_dir import RunDir, atomic_path, new_run_dir, read_json, write_bytes, write_json
from sivdnas_tf.search_space import get_search_space
from sivdnas_tf.zoo import registry


@pytest.fixture(name="run_dir")
def fixture_run_dir(tmp_path):
    return RunDir(tmp_path / "run")


def make_posterior(seed=0):
    generator = np.random.default_rng(seed)
    draw = lambda *shape: generator.normal(size=shape).astype(np.float32)  # noqa: E731
    return Posterior("darts", 12, *(CellPosterior(draw(14, 7), draw(14, 7), draw(14), draw(14)) for _ in range(2)))


def files(path):
    return sorted(str(p.relative_to(path)) for p in pathlib.Path(path).rglob("*") if p.is_file())


def test_atomic_path_writes_whole_files_and_makes_directories(tmp_path):
    path = tmp_path / "a" / "b" / "weights.weights.h5"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary != path
        assert temporary.name.endswith(".weights.h5")  # Keras chooses the format by the suffix
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert files(tmp_path) == ["a/b/weights.weights.h5"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path, error):
    path = tmp_path / "x.json"
    write_bytes(path, b"old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["x.json"]


def test_a_failing_rename_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_bytes(path, b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full_disk)
            with pytest.raises(OSError, match="No space"):
                write_bytes(path, b"new")
        assert path.read_bytes() == b"old"
        assert files(tmp_path) == ["x.json"]


def test_files_are_synced_before_they_get_their_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments, name=name, real=real: (calls.append(name), real(*arguments)))
    write_bytes(tmp_path / "x", b"1")
    assert calls == ["fsync", "replace"]


def test_files_have_ordinary_permissions(tmp_path):
    old = os.umask(0o022)
    try:
        write_bytes(tmp_path / "x", b"1")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_json_round_trip_and_refusals(tmp_path):
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "v.json", {"loss": float("nan")})
    assert read_json(tmp_path / "v.json") == value
    assert files(tmp_path) == ["v.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"{} {}", None])
def test_damaged_json_is_one_line(tmp_path, content):
    path = tmp_path / "v.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunDirError, match=r"cannot read .*v\.json") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_a_work_directory_is_made_or_required(tmp_path):
    assert RunDir(tmp_path / "deep" / "run").path.is_dir()
    with pytest.raises(RunDirError, match=r"must be that of a run. Received: .*missing"):
        RunDir(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()
    assert RunDir(tmp_path / "deep" / "run", create=False).file("search/posterior.npz") == tmp_path / "deep/run/search/posterior.npz"


def test_a_refusal_takes_the_directories_with_it_that_were_made_for_the_run(tmp_path):
    (tmp_path / "theirs").mkdir()
    for path in ("theirs/a/b", "theirs"):
        with pytest.raises(GenotypeError), new_run_dir(tmp_path / path) as run_dir:
            assert run_dir.path.is_dir()
            raise GenotypeError("refused")
        assert [item.name for item in tmp_path.rglob("*")] == ["theirs"]
    with pytest.raises(GenotypeError), new_run_dir(tmp_path / "run") as run_dir:
        write_json(run_dir.file("config.json"), {})
        raise GenotypeError("refused late")
    assert files(tmp_path) == ["run/config.json"]


@pytest.mark.parametrize("create", [True, False])
def test_a_work_directory_that_is_a_file(tmp_path, create):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirError, match=r"must be a directory. Received: .*file, which is a file"):
        RunDir(tmp_path / "file", create)
    with pytest.raises(RunDirError, match="Received: "):
        RunDir(tmp_path / "file" / "run", create)
    with pytest.raises(RunDirError, match=r"must be writable. Received: .*File name too long"):
        RunDir(tmp_path / ("x" * 300), create)
    assert (tmp_path / "file").read_text() == "x"


def test_a_work_directory_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):  # permissions do not stop the superuser, so that they cannot stand in for this
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(RunDirError, match=r"must be writable. Received: .*\(Permission denied\)"):
        RunDir(tmp_path)


SETTINGS = {"search": {"epochs": 2, "channels": 4}, "seed": 0}


def finish(run_dir, stage="search"):
    name = {"search": "search/posterior.npz", "derive": "genotype.json", "evaluate": "evaluation.json"}[stage]
    write_bytes(run_dir.file(name), b"done")


def test_begin_starts_continues_and_recognises_a_stage(run_dir):
    first = run_dir.begin("search", SETTINGS)
    assert (first.done, first.started) == (False, False)
    write_bytes(run_dir.file("search/checkpoints/1"), b"state")
    second = run_dir.begin("search", SETTINGS)
    assert (second.done, second.started) == (False, True)
    assert run_dir.file("search/checkpoints/1").exists()
    assert not run_dir.is_done("search")
    finish(run_dir)
    third = run_dir.begin("search", {"seed": 0, "search": {"channels": 4, "epochs": 2}})
    assert (third.done, third.started) == (True, True)
    assert run_dir.is_done("search")


def test_settings_are_compared_as_json(run_dir):
    run_dir.begin("export", {"formats": ("onnx", "tflite"), "macs": 6e8})
    assert run_dir.begin("export", {"formats": ["onnx", "tflite"], "macs": 600000000}).started


@pytest.mark.parametrize("done", [False, True])
def test_begin_refuses_other_settings_and_names_them(run_dir, done):
    run_dir.begin("search", SETTINGS)
    write_bytes(run_dir.file("search/checkpoints/1"), b"state")
    if done:
        finish(run_dir)
    before = files(run_dir.path)
    with pytest.raises(RunDirError) as caught:
        run_dir.begin("search", {"search": {"epochs": 3, "channels": 4}, "seed": 0, "new": 1})
    message = str(caught.value)
    assert "search.epochs=2, now 3; new=None, now 1" in message
    assert "channels" not in message and "--overwrite" in message and "\n" not in message
    assert files(run_dir.path) == before


def test_begin_shortens_a_long_difference(run_dir):
    run_dir.begin("search", {str(i): i for i in range(10)})
    with pytest.raises(RunDirError, match=r"; and 6 more\. Expected"):
        run_dir.begin("search", {str(i): i + 1 for i in range(10)})


def test_overwrite_removes_what_the_stage_owns_and_nothing_else(run_dir):
    run_dir.begin("search", SETTINGS)
    run_dir.begin("derive", SETTINGS)
    finish(run_dir, "search")
    finish(run_dir, "derive")
    write_bytes(run_dir.file("derive.json"), b"{}")
    write_bytes(run_dir.file("config.json"), b"{}")
    state = run_dir.begin("derive", {"other": 1}, overwrite=True)
    assert (state.done, state.started) == (False, False)
    assert files(run_dir.path) == ["config.json", "search/posterior.npz", "stages/derive.json", "stages/search.json"]
    run_dir.begin("search", SETTINGS, overwrite=True)
    assert not run_dir.file("search").exists()
    assert run_dir.is_done("derive") is False


def test_files_without_a_record_are_refused_and_kept(run_dir):
    finish(run_dir)
    with pytest.raises(RunDirError, match="was not made by search"):
        run_dir.begin("search", SETTINGS)
    assert run_dir.is_done("search")
    assert not run_dir.begin("search", SETTINGS, overwrite=True).started
    assert not run_dir.is_done("search")


def test_check_consistent_compares_only_the_given_fields(run_dir):
    run_dir.check_consistent("train", {"seed": 1})  # no record: nothing to contradict
    run_dir.begin("train", {"seed": 1, "genotype_sha256": "abc"})
    run_dir.check_consistent("train", {"seed": 1})
    with pytest.raises(RunDirError, match="seed=1, now 2"):
        run_dir.check_consistent("train", {"seed": 2})


def test_sha256_is_of_the_files_bytes(run_dir):
    run_dir.file("a").write_bytes(b"abc")
    assert run_dir.sha256("a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_damaged_record_is_named_and_overwrite_replaces_it(run_dir):
    write_bytes(run_dir.file("stages/search.json"), b"{")
    with pytest.raises(RunDirError, match=r"cannot read .*search\.json"):
        run_dir.begin("search", SETTINGS)
    assert run_dir.begin("search", SETTINGS, overwrite=True).started is False
    assert run_dir.begin("search", SETTINGS).started


def test_require_names_the_stage_that_is_missing(run_dir):
    with pytest.raises(RunDirError, match=r"has no search/posterior\.npz: `search` has not finished there"):
        run_dir.require("search")
    finish(run_dir)
    run_dir.require("search")


def test_posterior_round_trip(run_dir):
    posterior = make_posterior()
    run_dir.write_posterior(posterior)
    read = run_dir.read_posterior()
    assert (read.search_space, read.epoch) == ("darts", 12)
    for cell_type in ("normal", "reduction"):
        for name, value in vars(posterior.cell(cell_type)).items():
            np.testing.assert_array_equal(getattr(read.cell(cell_type), name), value)
    assert run_dir.is_done("search")


def test_posterior_file_has_the_documented_keys(run_dir):
    run_dir.write_posterior(make_posterior())
    with np.load(run_dir.file("search/posterior.npz"), allow_pickle=False) as archive:
        parameters = ("operation_weights", "log_operation_dropout_rate", "edge_weights", "log_edge_dropout_rate")
        names = {f"{cell_type}_{parameter}" for cell_type in ("normal", "reduction") for parameter in parameters}
        assert set(archive.files) == names | {"edges", "primitives", "epoch", "search_space"}
        assert tuple(archive["edges"]) == get_search_space("darts").edge_names
        assert archive["normal_operation_weights"].shape == (14, 7)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("normal_edge_weights", None, "lacks 'normal_edge_weights'"),
        ("epoch", None, "lacks 'epoch'"),
        ("epoch", np.zeros(2), "epoch must be an integer"),
        ("epoch", np.array("three"), "epoch must be an integer"),
        ("edges", np.array(["0->2"]), "edges must be those of the search space 'darts'"),
        ("edges", np.array("0->2"), "edges must be those of the search space 'darts'"),
        ("primitives", np.array(["none"] * 7), "primitives must be those"),
        ("normal_edge_weights", np.zeros(13, np.float32), r"must be finite, of shape \(14,\). Received: shape=\(13,\)"),
        ("reduction_operation_weights", np.zeros((14, 8), np.float32), r"of shape \(14, 7\)"),
        ("normal_log_edge_dropout_rate", np.full(14, np.nan, np.float32), "must be finite"),
        ("normal_log_edge_dropout_rate", np.array(["x"] * 14), "Received: shape=.*dtype=<U1"),
    ],
)
def test_a_posterior_file_that_does_not_fit_is_refused(run_dir, key, value, message):
    arrays = make_posterior().to_arrays()
    del arrays[key]
    if value is not None:
        arrays[key] = value
    run_dir.write_npz("search/posterior.npz", arrays)
    with pytest.raises(RunDirError, match=message) as caught:
        run_dir.read_posterior()
    assert "\n" not in str(caught.value)


def test_npz_round_trip_without_pickles(run_dir):
    run_dir.write_npz("h.npz", {"a": np.arange(3), "b": np.array("text")})
    read = run_dir.read_npz("h.npz")
    assert read["a"].tolist() == [0, 1, 2] and str(read["b"]) == "text"
    np.savez(run_dir.file("p.npz"), a=np.array([{}], dtype=object))
    with pytest.raises(RunDirError, match="Object arrays cannot be loaded"):
        run_dir.read_npz("p.npz")


def test_other_files_are_not_npz(run_dir):
    np.save(run_dir.file("array.npy"), np.zeros(3))
    write_bytes(run_dir.file("empty.npz"), b"")
    write_bytes(run_dir.file("text.npz"), b"text")
    with zipfile.ZipFile(run_dir.file("zip.npz"), "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((((")
    for name in ("array.npy", "empty.npz", "text.npz", "zip.npz", "missing.npz", "."):
        with pytest.raises(RunDirError, match="cannot read ") as caught:
            run_dir.read_npz(name)
        assert "\n" not in str(caught.value)


def test_damaged_npz_files_are_refused(run_dir):
    run_dir.write_posterior(make_posterior())
    path = run_dir.file("search/posterior.npz")
    whole, generator, refused = path.read_bytes(), random.Random(0), 0
    for trial in range(400):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged[: generator.randrange(len(whole))] if trial % 4 == 0 else damaged)
        try:  # a flipped bit in an unused field of the archive harms nothing
            run_dir.read_posterior()
        except RunDirError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 300


def test_genotype_round_trip(run_dir):
    run_dir.write_genotype(registry.load("PDARTS"))
    assert run_dir.read_genotype() == registry.load("PDARTS")
    write_bytes(run_dir.file("genotype.json"), b"{")
    with pytest.raises(GenotypeError, match=r"genotype\.json: a genotype must be JSON"):
        run_dir.read_genotype()


def test_metrics_round_trip(run_dir):
    assert run_dir.read_metrics("search") == []
    records = [{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 1.25}]
    run_dir.write_metrics("search", records)
    assert run_dir.read_metrics("search") == records
    assert [json.loads(line) for line in run_dir.file("search/metrics.jsonl").read_text().splitlines()] == records
    write_bytes(run_dir.file("search/metrics.jsonl"), b'{"epoch": 0}\n{"epo')
    with pytest.raises(RunDirError, match=r"cannot read .*metrics\.jsonl"):
        run_dir.read_metrics("search")


def test_keep_probability_is_the_logistic_function():
    log_rates = np.array([-800, -20, -5, 0, 5, 20, 800], np.float32)
    np.testing.assert_allclose(keep_probability(log_rates)[1:-1], 1 / (1 + np.exp(log_rates[1:-1].astype(np.float64))), rtol=1e-14)
    assert keep_probability(log_rates)[[0, 3, -1]].tolist() == [1.0, 0.5, 0.0]
    posterior = make_posterior()
    assert posterior.normal.operation_keep_probability.shape == (14, 7)
    assert posterior.normal.edge_keep_probability.shape == (14,)


def test_a_stage_is_done_with_the_settings_that_it_was_made_with(tmp_path):
    run_dir = RunDir(tmp_path)
    assert not run_dir.is_done_with("evaluate", {"a": 1})
    run_dir.begin("evaluate", {"a": 1, "b": (2, 3)})
    assert not run_dir.is_done_with("evaluate", {"a": 1, "b": (2, 3)})
    write_json(run_dir.file("evaluation.json"), {})
    assert run_dir.is_done_with("evaluate", {"a": 1, "b": [2, 3]})
    assert not run_dir.is_done_with("evaluate", {"a": 2, "b": [2, 3]}) and not run_dir.is_done_with("evaluate", {"a": 1})


def test_a_record_of_before_a_field_has_its_default_there(tmp_path):
    run_dir, settings = RunDir(tmp_path), Config().stage_settings("search")
    old = {**settings, "search": {name: value for name, value in settings["search"].items() if name != "method"}}
    run_dir.begin("search", old)
    assert run_dir.begin("search", settings).started
    run_dir.check_consistent("search", settings)
    changed = replace(Config(), search={"method": "random"}).stage_settings("search")
    with pytest.raises(RunDirError, match=r"other settings: search.method='si_vdnas', now 'random'\. Expected"):
        run_dir.begin("search", changed)
    with pytest.raises(RunDirError, match=r"search.method='si_vdnas', now 'random'"):
        run_dir.check_consistent("search", changed)
