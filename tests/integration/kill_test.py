"""A run that is killed goes on where it was: real processes and SIGKILL, at seeded steps and phases that the runs themselves report."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("killable.py")
TIMES = ("seconds", "images_per_second")


class Runs:
    """A stage in one configuration: runs it, whole or killed.

    Args:
      root: the repository.
      devices: number of logical CPUs; with two, the run is mirrored.
      arguments: of the command line, without the work directory.
    """

    def __init__(self, root, devices, arguments):
        strategy = "none" if devices == 1 else "mirrored"
        settings = ("--config.deterministic=True", "--config.checkpoint.every_minutes=1e-9", f"--config.distribution.strategy={strategy}")
        self._root, self._command = root, [sys.executable, str(SCRIPT), str(devices), *arguments, *settings]

    def run(self, workdir, kill_at=None):
        """Runs until the end, or kills at the point `kill_at`; returns the points reached and the other lines printed."""
        process = subprocess.Popen(
            [*self._command, f"--workdir={workdir}"],
            cwd=self._root,
            env={**os.environ, "PYTHONPATH": str(self._root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        points, lines = [], []
        for line in map(str.strip, process.stdout):
            if not line.startswith("at "):
                lines.append(line)
                continue
            points.append(line.removeprefix("at "))
            if points[-1] == kill_at:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                assert process.returncode == -signal.SIGKILL
                return points, lines
            process.stdin.write("go on\n")
            process.stdin.flush()
        _, errors = process.communicate()
        assert process.returncode == 0 and kill_at is None, (kill_at, points, errors)
        return points, lines

    def killed_at(self, workdir, points):
        """Kills the run at each of `points`, in their order, each time continuing it; then lets it end."""
        for number, point in enumerate([*points, None]):
            reached, lines = self.run(workdir, point)
            if number:
                resumed = [int(match[1]) for match in map(re.compile(r"\w+: resuming at step (\d+),").match, lines) if match]
                # With a checkpoint a step, no more than the step under way is lost, however often it is killed.
                assert resumed and resumed[0] >= int(points[number - 1].split()[1]) - 1, (points[number - 1], lines)
            assert point is None or reached[-1] == point


def chosen(points, count, seed, must):
    """`count` of the points in their order, at random, one of them of the phase `must`; none in the first step, which leaves nothing."""
    generator = np.random.default_rng(seed)
    while True:
        indices = np.sort(generator.choice(len(points), count, replace=False))
        picked = [points[index] for index in indices]
        if any(point.startswith(must) for point in picked) and int(picked[0].split()[1]) > 1:
            return picked


def records(workdir, stage):
    lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def assert_same_arrays(path, other):
    with np.load(path) as actual, np.load(other) as expected:
        assert sorted(actual.files) == sorted(expected.files)
        for name in expected.files:
            np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


def datasets_of(path):
    """Every array of an HDF5 file by its name."""
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "kills"), [(1, 6), (2, 4)])
def test_a_search_that_is_killed_again_and_again_ends_bit_for_bit_as_one_that_is_not(devices, kills, tiny_config, tmp_path, request):
    runs = Runs(request.config.rootpath, devices, ["search", f"--config={tiny_config}"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    points, _ = runs.run(whole)
    assert {point.split()[0] for point in points} == {"update", "metrics", "record", "sweep", "result"}
    picked = chosen(points, kills, seed=devices, must="record")
    runs.killed_at(killed, picked)
    for name in ("posterior", "posterior_history"):
        assert_same_arrays(killed / f"search/{name}.npz", whole / f"search/{name}.npz")
    assert records(killed, "search") == records(whole, "search")
    assert (killed / "search/diagnosis.json").read_bytes() == (whole / "search/diagnosis.json").read_bytes()


STREAMED = {"resolution": 8, "streaming": True, "random_resized_crop": True, "brightness_jitter": 0.4, "hue_jitter": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
def test_a_training_that_is_killed_again_and_again_ends_bit_for_bit_as_one_that_is_not(
    streamed, tiny_config, make_folder, tmp_path, request
):
    arguments = ["train", f"--config={tiny_config}", "--genotype=FairDARTS_b", "--config.budget.macs=1e9"]
    arguments += ["--config.train.ema_decay=0.9"]  # what is kept then is the average, which is part of the state
    if streamed:
        folder = make_folder(tmp_path / "images", {"cat": 40, "dog": 40, "кошка": 40})
        fields = {**STREAMED, "name": f"folder:{folder}"}
        arguments += [f"--config.data.{name}={value}" for name, value in fields.items()] + ["--config.train.batch_size=16"]
    runs = Runs(request.config.rootpath, 1, arguments)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    points, _ = runs.run(whole)
    runs.killed_at(killed, chosen(points, 4, seed=0, must="record"))
    expected, actual = (datasets_of(path / "train/weights.weights.h5") for path in (whole, killed))
    assert expected.keys() == actual.keys() and expected
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    assert records(killed, "train") == records(whole, "train")
