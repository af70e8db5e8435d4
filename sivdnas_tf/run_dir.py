"""The files of a run: names, atomic writes, checked reads. Imports no TensorFlow.

Every file is written whole or not at all: to a temporary name in the same directory, fsync, rename. A stage is done when its last
file is there; `begin` tells a finished stage from one to continue, and refuses a stage that was made with other settings.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import tokenize
import zipfile
import zlib

import numpy as np

from sivdnas_tf.config import Config
from sivdnas_tf.errors import RunDirError, UserError
from sivdnas_tf.genotype import Genotype
from sivdnas_tf.posterior import Posterior

# The file whose presence says that a stage is done, and what --overwrite removes.
_DONE = {
    "search": "search/posterior.npz",
    "derive": "genotype.json",
    "train": "train/weights.weights.h5",
    "evaluate": "evaluation.json",
    "export": "export/manifest.json",
    "tune": "tune/best_config.py",
}
_OWNED = {
    "search": ("search",),
    "derive": ("genotype.json", "derive.json"),
    "train": ("train",),
    "evaluate": ("evaluation.json",),
    "export": ("export",),
    "tune": ("tune",),
}

# What zipfile, zlib and NumPy's header parser raise on an archive with wrong bytes in it.
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)


@contextlib.contextmanager
def atomic_path(path):
    """Yields a temporary path beside `path`; on leaving without an error it is synced to disk and renamed to `path`."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name.split('.')[0]}-", suffix="".join(path.suffixes))
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes files private to their owner; an artifact has the permissions of an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path, data):
    """Writes `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path, value):
    """Writes JSON types to `path`, whole or not at all. NaN is refused: JSON has none."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path):
    """Reads JSON types; raises `RunDirError` where `path` is missing or not JSON."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirError(f"cannot read {path}: {error}. Expected a JSON file. Received: {path}") from None


@contextlib.contextmanager
def new_run_dir(path):
    """Yields the `RunDir` of a command that may start a run; a refusal (`UserError`) takes the directories with it that this made."""
    run_dir = RunDir(path)
    try:
        yield run_dir
    except UserError:
        run_dir.remove_if_unused()
        raise


@dataclasses.dataclass(frozen=True)
class StageState:
    """What `RunDir.begin` found: whether the stage is `done` already, or `started` and to be continued."""

    done: bool
    started: bool


class RunDir:
    """One run's directory.

    Args:
      path: directory, made where it is missing.
      create: whether a missing directory is made (a stage that starts a run) or refused (a stage that needs an earlier one).

    Raises:
      RunDirError: where `path` is a file, cannot be written, or is missing and `create` is false.
    """

    def __init__(self, path, create=True):
        self.path, self._made = pathlib.Path(path), []
        try:
            if self.path.exists() and not self.path.is_dir():
                raise RunDirError(f"the work directory must be a directory. Received: {self.path}, which is a file")
            if not create and not self.path.is_dir():
                raise RunDirError(f"the work directory must be that of a run. Received: {self.path}, which does not exist")
            self._made = [directory for directory in (self.path, *self.path.parents) if not directory.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            self.remove_if_unused()
            raise RunDirError(f"the work directory must be writable. Received: {self.path} ({error.strerror})") from None

    def remove_if_unused(self):
        """Removes the directories that this object made, as far as nothing was written in them."""
        for directory in self._made:
            with contextlib.suppress(OSError):  # never made, or not empty
                directory.rmdir()

    def file(self, name):
        """Path of the file or directory `name`, as INTERFACE names it: "config.json", "search/metrics.jsonl", …"""
        return self.path / name

    def begin(self, stage, settings, overwrite=False):
        """Starts, continues or recognises a stage.

        Args:
          stage: "search", "derive", "train", "evaluate", "export" or "tune".
          settings: nested dict of JSON types: everything that the stage's result depends on, its inputs' hashes included.
          overwrite: whether what the stage made before is removed first.

        Returns:
          A `StageState`.

        Raises:
          RunDirError: where the stage was made, or begun, with other settings, naming the fields that differ.
        """
        record = self.file(f"stages/{stage}.json")
        if overwrite:
            self._remove(stage)
        settings = json.loads(json.dumps(settings))
        if record.exists():
            self._refuse_differences(stage, _read_record(record, settings), settings)
        else:
            self._refuse_unrecorded(stage)
            write_json(record, settings)
            return StageState(done=False, started=False)
        return StageState(done=self.file(_DONE[stage]).exists(), started=True)

    def check_consistent(self, stage, settings):
        """Raises `RunDirError`, naming the fields that differ, where `stage` was begun with other values of the fields in `settings`."""
        record = self.file(f"stages/{stage}.json")
        if record.exists():
            recorded = _read_record(record, settings)
            self._refuse_differences(stage, {key: recorded.get(key) for key in settings}, json.loads(json.dumps(settings)))

    def is_done(self, stage):
        """Whether the stage's last file is there."""
        return self.file(_DONE[stage]).exists()

    def is_done_with(self, stage, settings):
        """Whether the stage's last file is there and it was made with exactly these settings (as of `begin`)."""
        record = self.file(f"stages/{stage}.json")
        settings = json.loads(json.dumps(settings))
        return self.is_done(stage) and record.exists() and not _differences(_read_record(record, settings), settings)

    def require(self, stage):
        """Raises `RunDirError`, naming the command that is missing, unless `stage` is done."""
        if not self.is_done(stage):
            raise RunDirError(
                f"{self.path} has no {_DONE[stage]}: `{stage}` has not finished there. Expected a run in which it has. "
                f"Received: {self.path}"
            )

    def _refuse_differences(self, stage, recorded, settings):
        difference = _differences(recorded, settings)
        if difference:
            shown = "; ".join(f"{field}={old!r}, now {new!r}" for field, old, new in difference[:4])
            more = f"; and {len(difference) - 4} more" if len(difference) > 4 else ""
            received = ", ".join(f"{field}={new!r}" for field, _, new in difference[:4])
            raise RunDirError(
                f"{stage} in {self.path} was made with other settings: {shown}{more}. Expected the same ones, --overwrite to redo it, "
                f"or another --workdir. Received: {received}"
            )

    def _refuse_unrecorded(self, stage):
        """Files that this program did not put there are the user's: they are not removed unasked."""
        for name in _OWNED[stage]:
            if self.file(name).exists():
                raise RunDirError(
                    f"{name} was not made by {stage} in this run. Expected another --workdir, or --overwrite to remove it. "
                    f"Received: {self.file(name)}"
                )

    def sha256(self, name):
        """Hex digest of the file `name`: how a stage recognises its input."""
        return hashlib.sha256(self.file(name).read_bytes()).hexdigest()

    def _remove(self, stage):
        self.file(f"stages/{stage}.json").unlink(missing_ok=True)
        for name in _OWNED[stage]:
            path = self.file(name)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def write_posterior(self, posterior):
        """Writes search/posterior.npz: the search is done."""
        self.write_npz("search/posterior.npz", posterior.to_arrays())

    def read_posterior(self):
        """Reads search/posterior.npz; raises `RunDirError` where there is none or it is damaged."""
        return Posterior.from_arrays(self.read_npz("search/posterior.npz"))

    def write_npz(self, name, arrays):
        """Writes a dict of arrays, compressed. Holds no pickles."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(self.file(name), buffer.getvalue())

    def read_npz(self, name):
        """Reads a dict of arrays; raises `RunDirError` where the file is missing or damaged."""
        path = self.file(name)
        try:
            # Opened as an archive first: NumPy takes any other file for an array or a pickle.
            with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except _DAMAGED as error:
            raise RunDirError(f"cannot read {path}: {error}") from None

    def write_genotype(self, genotype):
        """Writes genotype.json."""
        write_bytes(self.file("genotype.json"), genotype.to_json().encode())

    def read_genotype(self):
        """Reads genotype.json; raises `GenotypeError` where it is missing or refused."""
        return Genotype.load(self.file("genotype.json"))

    def write_metrics(self, stage, records):
        """Writes {stage}/metrics.jsonl anew: one JSON object an epoch."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_bytes(self.file(f"{stage}/metrics.jsonl"), lines.encode())

    def read_metrics(self, stage):
        """The records of {stage}/metrics.jsonl, or none."""
        path = self.file(f"{stage}/metrics.jsonl")
        if not path.exists():
            return []
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise RunDirError(f"cannot read {path}: {error}") from None


def as_run_dir(directory):
    """A `RunDir` as it is, a path as the `RunDir` there."""
    return directory if isinstance(directory, RunDir) else RunDir(directory)


def _read_record(path, settings):
    """A stage's record; a field of `settings` that the configuration did not have when it was written is at its default there."""
    recorded, defaults = read_json(path), json.loads(json.dumps(Config().to_dict()))
    for section, values in recorded.items() if isinstance(recorded, dict) else ():
        new = settings.get(section)
        if isinstance(values, dict) and isinstance(new, dict) and isinstance(defaults.get(section), dict):
            known = {name: value for name, value in defaults[section].items() if name in new}
            recorded[section] = {**known, **values}
    return recorded


def _differences(old, new, path=""):
    """`[('search.epochs', 2, 3), …]`: the fields in which two nested dicts differ, with their values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [each for key in keys for each in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    return [] if old == new else [(path, old, new)]
