"""Errors that end a command with one line and a documented exit code."""

import difflib


class UserError(Exception):
    """Wrong use, configuration or data: exit code 2. The message says what is wrong, what was expected, what was received."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A configuration field that is unknown, of the wrong type, or out of range."""


class GenotypeError(UserError, ValueError):
    """A genotype that is not schema 1, or that no network can be built from."""


class DataError(UserError):
    """Images that are missing, unreadable, or too few."""


class RunDirError(UserError):
    """A run directory that cannot be used: wrong kind of file, missing artifact, other configuration."""


class BudgetError(UserError):
    """A network that costs more than the budget allows: exit code 3."""

    exit_code = 3


class AgreementError(UserError):
    """An exported artifact whose outputs differ from the Keras model's: exit code 4."""

    exit_code = 4


class NonFiniteError(Exception):
    """A loss that became NaN or infinite: exit code 1, the last good checkpoint stays."""

    exit_code = 1


class StorageError(Exception):
    """A file of a run that could not be written, a full disk say: exit code 1, what was written before stays."""

    exit_code = 1


class WorkerLostError(Exception):
    """Another process of a training over several hosts is gone: exit code 1, the last good checkpoint stays."""

    exit_code = 1


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the state was saved: exit code 128 + signal.

    Args:
      signal_number: the signal, 2 or 15.
      message: the line for the user, with how to resume.
    """

    def __init__(self, signal_number, message):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(name, valid_names):
    """` Did you mean 'x'?`, or an empty string where nothing valid is near `name`."""
    matches = difflib.get_close_matches(str(name), [str(valid) for valid in valid_names], n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""
