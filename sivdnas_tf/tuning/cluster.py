"""Whether this process draws trials, runs them, or both: Keras Tuner's chief and workers. Imports no TensorFlow."""

import os
import time

from sivdnas_tf.errors import ConfigError, WorkerLostError

_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
_ALONE = "tuner0"  # Keras Tuner's own name for the only process
_PATIENCE_SECONDS = 3600.0  # what a worker of Keras Tuner waits for its chief's answer


def tuner_role():
    """Returns "alone", "chief" or "worker", by Keras Tuner's environment variables.

    Raises:
      ConfigError: where some of the variables are set and others are not, for a port that is none, or a worker of the name that a process
        has that runs alone.
    """
    values = {name: os.environ.get(name, "") for name in _VARIABLES}
    shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
    name, address, port = values.values()
    if not address and not port and not name:
        return "alone"
    if not (name and address and port.isdecimal() and 0 < int(port) < 2**16) or name == _ALONE:
        raise ConfigError(
            f"{', '.join(_VARIABLES)} must all be set, or none of them: a name of each process' own, 'chief' for the one that draws the "
            f"trials, and the chief's address and port. Received: {shown}"
        )
    return "chief" if "chief" in name else "worker"  # as Keras Tuner tells them apart


def chief_address():
    """Address and port of the chief, for messages."""
    return ":".join(os.environ.get(name, "") for name in _VARIABLES[1:])


def wait_for_chief(run_dir, say=print):
    """Returns when the chief has put the run on record: a worker leaves the directory alone until then.

    Raises:
      WorkerLostError: where it has not within an hour.
    """
    record, begin = run_dir.file("stages/tune.json"), time.monotonic()
    if not record.exists():
        say(f"tune: waiting for the chief at {chief_address()} to begin in {run_dir.path}")
    while not record.exists():
        if time.monotonic() - begin > _PATIENCE_SECONDS:
            raise WorkerLostError(f"tune: no chief has begun in {run_dir.path} within {_PATIENCE_SECONDS:.0f} seconds ({chief_address()})")
        time.sleep(0.5)
