"""`tune` in processes of its own: killed and started again, and as a chief with two workers."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from sivdnas_tf.config import Config, replace
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.tuning.settings import config_source

SCRIPT = pathlib.Path(__file__).with_name("killable.py")
TINY = {
    "data": {"crop_padding": 1, "flip": False},
    "train": {"channels": 4, "cells": 3, "epochs": 2, "batch_size": 128, "cutout_length": 0, "auxiliary_weight": 0.0},
    "budget": {"network": "cifar", "channels": 4, "cells": 3, "classes": 10, "resolution": 8, "image_channels": 1, "macs": 1e9},
}
SMALL = Genotype(
    "small",
    Cell((Edge(2, 0, "sep_conv_3x3"), Edge(2, 1, "skip_connect")), (2,)),
    Cell((Edge(2, 0, "max_pool_3x3"), Edge(2, 1, "skip_connect")), (2,)),
)


def write_config(path, **sections):
    path.write_text(config_source(replace(Config(), deterministic=True, **sections), ["Tiny."]), encoding="utf-8")
    return path


def start(root, arguments, **environment):
    """A Python process whose lines are text."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(root), **environment}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=root, env=environment, text=True, **pipes)


def trials_of(workdir):
    """The lines of trials.jsonl without what a kill may change."""
    lines = (workdir / "tune/trials.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def run_to(root, arguments, kill_at=None):
    """Runs killable.py to its end, or kills it at the first point of which `kill_at` is true."""
    process = start(root, [SCRIPT, 1, *arguments])
    for line in map(str.strip, process.stdout):
        if line.startswith("at "):
            if kill_at and kill_at(line):
                process.send_signal(signal.SIGKILL)
                process.communicate()
                return
            process.stdin.write("go on\n")
            process.stdin.flush()
    _, errors = process.communicate()
    assert process.returncode == 0 and kill_at is None, errors[-2000:]


@pytest.mark.slow
def test_a_tuning_that_is_killed_again_and_again_has_the_trials_of_one_that_is_not(tmp_path, request):
    root, whole, killed = request.config.rootpath, tmp_path / "whole", tmp_path / "killed"
    (tmp_path / "small.json").write_text(SMALL.to_json(), encoding="utf-8")
    tune = {"space": (("train.learning_rate", "log_float", 0.01, 0.1),), "max_trials": 2, "genotype": str(tmp_path / "small.json")}
    config = write_config(tmp_path / "tune.py", **TINY, tune=tune, checkpoint={"every_minutes": 1e-9})
    run_to(root, ["tune", f"--config={config}", f"--workdir={whole}"])
    arguments = ["tune", f"--config={config}", f"--workdir={killed}"]
    for trial in (0, 1):  # a step has a checkpoint each
        directory = killed / f"tune/trials/{trial}"
        run_to(root, arguments, lambda point, directory=directory: directory.exists() and point == "at update 7")
    run_to(root, arguments)
    assert trials_of(killed) == trials_of(whole) and len(trials_of(whole)) == 2
    logs = [(killed / f"tune/trials/{number}/log.txt").read_text() for number in (0, 1)]
    assert [re.findall(r"(\w+): resuming at step (\d+),", log) for log in logs] == [[("train", "7")], [("train", "7")]]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def wait_for(condition, seconds=240):
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds
        time.sleep(0.2)


@pytest.mark.slow
def test_a_chief_and_two_workers_one_of_each_killed_and_replaced(tmp_path, request):
    import keras_tuner

    from sivdnas_tf.tuning.oracles import declare, make_oracle
    from sivdnas_tf.tuning.space import parse_space

    root, workdir, port = request.config.rootpath, tmp_path / "run", free_port()
    (tmp_path / "small.json").write_text(SMALL.to_json(), encoding="utf-8")
    tune = {"space": (("train.learning_rate", "log_float", 0.01, 0.1),), "max_trials": 6, "genotype": str(tmp_path / "small.json")}
    sections = {**TINY, "train": {**TINY["train"], "epochs": 40}}
    config = write_config(tmp_path / "tune.py", **sections, tune=tune)

    def process(name):
        variables = {"KERASTUNER_TUNER_ID": name, "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
        return start(root, ["-m", "sivdnas_tf", "tune", f"--config={config}", f"--workdir={workdir}"], **variables)

    def epochs_of(trial):
        path = workdir / f"tune/trials/{trial}/train/metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    chief, workers = process("chief"), [process("worker0"), process("worker1")]
    wait_for(lambda: min(epochs_of(0), epochs_of(1)) >= 2)
    ongoing = json.loads((workdir / "tune/oracle/oracle.json").read_text())["ongoing_trials"]
    assert set(ongoing) == {"worker0", "worker1"}
    workers[1].send_signal(signal.SIGKILL)
    workers[1].communicate()
    workers[1] = process("worker1")
    # The chief too, while both train: they end their trials at the one that takes its place.
    lost = int(ongoing["worker1"])
    wait_for(lambda: "resuming at step" in (workdir / f"tune/trials/{lost}/log.txt").read_text())
    chief.send_signal(signal.SIGKILL)
    chief.communicate()
    chief = process("chief")
    results = [each.communicate() for each in (chief, *workers)]
    assert [each.returncode for each in (chief, *workers)] == [0, 0, 0], [errors[-2000:] for _, errors in results]
    trials = trials_of(workdir)
    assert [(one["trial"], one["status"], one["epochs"]) for one in trials] == [(str(n), "completed", 40) for n in range(6)]
    assert all(len((workdir / f"tune/trials/{n}/train/metrics.jsonl").read_text().splitlines()) == 40 for n in range(6))
    # The trials are those of a process that runs alone.
    settings = replace(Config(), **sections, tune=tune)
    space = parse_space(settings)
    oracle = make_oracle(settings, declare(keras_tuner.HyperParameters(), space))
    oracle._set_project_dir(str(tmp_path), "alone")
    expected = [oracle.create_trial(f"worker{number}").hyperparameters.values for number in range(6)]
    assert [one["values"] for one in trials] == [pytest.approx(values) for values in expected]
    # Only the chief sums up.
    lines = [output.splitlines() for output, _ in results]
    assert any(line.startswith("tune: best trial ") for line in lines[0])
    assert lines[1][-1] == lines[2][-1] == "tune: no trial is left; the chief sums them up"
    assert (workdir / "tune/best_config.py").exists() and (workdir / "tune/pareto.svg").exists()
    # Alone, later: nothing is left to do.
    process = start(root, ["-m", "sivdnas_tf", "tune", f"--config={config}", f"--workdir={workdir}"])
    output, errors = process.communicate()
    assert process.returncode == 0 and "done already" in output, errors[-2000:]
