"""One device, two logical devices and two processes: the same search, and what happens when one of the processes is killed."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

STEPS = pathlib.Path(__file__).with_name("bilevel_steps.py")
TIMES = ("seconds", "images_per_second")


def free_addresses(count):
    """Addresses on this machine that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def start(root, arguments, cluster=None, index=0):
    """A Python process, worker `index` of the cluster of addresses where there is one."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    if cluster:
        environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": cluster}, "task": {"type": "worker", "index": index}})
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*processes):
    """Standard output and standard error of each; all must succeed."""
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), [errors[-2000:] for _, errors in results]
    return results


@pytest.fixture(name="steps", scope="module")
def fixture_steps(tmp_path_factory, request):
    """A function of strategy, logical devices, repeats and number of processes to the arrays after twenty steps."""
    root, base = request.config.rootpath, tmp_path_factory.mktemp("steps")

    def steps(strategy, devices=1, repeats=1, workers=1):
        output = base / f"{strategy}{devices}{repeats}{workers}.npz"
        if not output.exists():
            cluster = free_addresses(workers) if workers > 1 else None
            finish(*(start(root, [STEPS, output, strategy, devices, repeats], cluster, index) for index in range(workers)))
        with np.load(output) as arrays:
            return dict(arrays)

    return steps


@pytest.mark.slow
def test_two_logical_devices_and_two_processes_agree_bit_for_bit(steps):
    devices, processes = steps("mirrored", devices=2), steps("multi_worker", workers=2)
    assert devices.keys() == processes.keys() and len(devices) > 60
    for name, value in devices.items():
        np.testing.assert_array_equal(processes[name], value, err_msg=name)


@pytest.mark.slow
def test_one_device_and_two_that_are_given_its_images_agree(steps):
    one, two = steps("none"), steps("mirrored", devices=2, repeats=2)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max(), err_msg=name)
    other = steps("mirrored", devices=2)  # each replica its own half of the images: another search
    assert any(np.abs(other[name] - value).max() > 1e-3 * np.abs(value).max() for name, value in one.items())


def records(workdir):
    lines = (workdir / "train/metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 0], ids=["worker", "chief"])
def test_a_worker_that_is_killed_ends_the_others_in_a_clear_line_and_the_same_command_continues(lost, tiny_config, tmp_path, request):
    root, workdir = request.config.rootpath, tmp_path / "run"
    arguments = ["-m", "sivdnas_tf", "train", f"--config={tiny_config}", f"--workdir={workdir}", "--genotype=FairDARTS_b"]
    arguments += ["--config.budget.macs=1e9", "--config.train.epochs=40", "--config.deterministic=True"]

    def both():
        cluster = free_addresses(2)
        return [start(root, arguments, cluster, index) for index in (0, 1)]

    processes = both()
    for line in processes[0].stdout:
        if line.startswith("train 2/40"):
            break
    killed, left = processes[lost], processes[1 - lost]
    killed.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    _, errors = left.communicate(timeout=120)
    assert time.monotonic() - begin < 60
    assert left.returncode == 1
    line = errors.splitlines()[-1]
    assert re.search(
        r"sivdnas_tf: train: another worker is gone at step \d+; the last good checkpoint stays, .*ckpt-\d+ \(.*\)\. Start ", line
    )
    assert "Traceback" not in errors
    killed.communicate()
    # Shorter, so that the test ends: what was recorded of the stage is changed with it.
    record = workdir / "stages/train.json"
    settings = json.loads(record.read_text())
    done = len(records(workdir))
    settings["train"]["epochs"] = done + 1
    record.write_text(json.dumps(settings))
    arguments += [f"--config.train.epochs={done + 1}"]
    (output, _), (silence, _) = finish(*both())
    # An epoch's line comes before its metrics and its checkpoint: the kill fell between any two of them, or later.
    resumed = re.search(r"^train: resuming at step (\d+), epoch ", output, re.MULTILINE)
    assert resumed and int(resumed[1]) in (10 * (done - 1), 10 * done) and not silence
    assert len(records(workdir)) == done + 1 and (workdir / "train/weights.weights.h5").exists()
    assert not list(workdir.glob("**/*worker*"))
