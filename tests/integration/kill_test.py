"""A search that is killed goes on where it was: a real process, a real SIGKILL."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

_SEARCH = [
    sys.executable,
    "-m",
    "sivdnas_tf",
    "search",
    "--config=configs/quickstart.py",
    "--config.search.epochs=4",
    "--config.search.warmup_epochs=1",
    "--config.search.batch_size=128",
    "--config.deterministic=True",
]


def _start(root, workdir):
    return subprocess.Popen([*_SEARCH, f"--workdir={workdir}"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    """An uninterrupted search, and one killed after its second epoch and started again; the second process's output."""
    root, base = request.config.rootpath, tmp_path_factory.mktemp("kill")
    whole, killed = base / "whole", base / "killed"
    assert _start(root, whole).communicate(timeout=600) and (whole / "search/posterior.npz").exists()
    process = _start(root, killed)
    for line in process.stdout:
        if line.startswith("search 2/4"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "search/posterior.npz").exists()
    again = _start(root, killed)
    output, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    return whole, killed, output


@pytest.mark.slow
def test_a_killed_search_resumes_and_ends_with_a_genotype(runs, request):
    _, killed, output = runs
    assert "search: resuming at step" in output
    assert "search 1/4" not in output
    derive = subprocess.run(
        [sys.executable, "-m", "sivdnas_tf", "derive", f"--workdir={killed}"], cwd=request.config.rootpath, capture_output=True, check=False
    )
    assert derive.returncode in (0, 3)  # three epochs may prune too little for the budget
    mode = subprocess.run(
        [sys.executable, "-m", "sivdnas_tf", "derive", f"--workdir={killed}", "--budget_macs=1e12", "--overwrite"],
        cwd=request.config.rootpath,
        capture_output=True,
        check=False,
    )
    assert mode.returncode == 0, mode.stderr
    assert json.loads((killed / "genotype.json").read_text())["schema_version"] == 1


@pytest.mark.slow
def test_a_killed_search_ends_bit_for_bit_as_an_uninterrupted_one(runs):
    whole, killed, _ = runs
    with np.load(whole / "search/posterior.npz") as expected, np.load(killed / "search/posterior.npz") as actual:
        assert sorted(expected.files) == sorted(actual.files)
        for key in expected.files:
            np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)
    timing = {"seconds", "images_per_second"}
    lines = [[json.loads(line) for line in (run / "search/metrics.jsonl").read_text().splitlines()] for run in (whole, killed)]
    whole_records, killed_records = [[{k: v for k, v in record.items() if k not in timing} for record in records] for records in lines]
    assert killed_records == whole_records
