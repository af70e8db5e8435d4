"""Whether this process draws trials, runs them, or both: Keras Tuner's chief and workers. Imports no TensorFlow."""

import os

from sivdnas_tf.errors import ConfigError

_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
_ALONE = "tuner0"  # Keras Tuner's own name for the only process


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
