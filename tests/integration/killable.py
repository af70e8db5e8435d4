"""The command line, stopping at every phase of a run until its standard input says go on: what kill_test kills.

    python killable.py DEVICES COMMAND …

Prints `at PHASE STEP` before each of: "update", when a step is computed but not counted; "metrics", before the file of an epoch's metrics;
"record", when a checkpoint's files are written but not yet named as the newest; "sweep", before older checkpoints are removed; "result",
before the file that says that the stage is done.
"""

import os
import sys

import tensorflow as tf


def stop(phase, step):
    """Says where the run is and waits for a line."""
    print(f"at {phase} {step}", flush=True)
    sys.stdin.readline()


def before(cls, name, phase, step):
    """Makes the method `name` of `cls` stop first; `step` is a function of the object."""
    original = getattr(cls, name)

    def stopping(self, *arguments, **options):
        stop(phase, step(self))
        return original(self, *arguments, **options)

    setattr(cls, name, stopping)


def main():
    """Runs the command that the arguments name, on so many logical CPUs."""
    devices, *arguments = sys.argv[1:]
    # Before anything uses TensorFlow, as the package does on import to keep its start-up lines quiet.
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices))
    from sivdnas_tf.__main__ import main as command_line
    from sivdnas_tf.run_dir import RunDir
    from sivdnas_tf.training import loop, train

    running = []
    run, manager, save_weights = loop.Loop.run, tf.train.CheckpointManager, train._save_weights

    def remembered(self, *arguments):
        running.append(self)
        return run(self, *arguments)

    def step_of(_):
        return int(running[-1]._step.numpy())

    def weights_saved(model, path):
        if os.path.basename(path) == "weights.weights.h5":
            stop("result", step_of(None))
        save_weights(model, path)

    loop.Loop.run, train._save_weights = remembered, weights_saved
    counted = loop.Loop._check_finite

    def computed(self, seen, step):
        if step == step_of(None):  # not where the values of an epoch are checked
            stop("update", step)
        counted(self, seen, step)

    loop.Loop._check_finite = computed
    before(RunDir, "write_metrics", "metrics", step_of)
    before(RunDir, "write_posterior", "result", step_of)
    before(manager, "_record_state", "record", step_of)
    before(manager, "_sweep", "sweep", step_of)
    sys.exit(command_line(["sivdnas_tf", *arguments]))


if __name__ == "__main__":
    main()
