"""What a report is made from: the files of a run directory, read and checked once. A file that is not there yet is None or empty."""

import dataclasses

import numpy as np

from sivdnas_tf.errors import RunDirError
from sivdnas_tf.report.markup import finite
from sivdnas_tf.run_dir import read_json
from sivdnas_tf.search_space import CELL_TYPES

STAGES = ("search", "derive", "train", "evaluate", "export")


@dataclasses.dataclass(frozen=True)
class History:
    """Keep probabilities over the epochs (search/posterior_history.npz); T epochs, E edges, P primitives, as nested lists.

    Attributes:
      epochs: [T], counted from 1.
      edges: [E] names.
      primitives: [P] names.
      operations: cell type -> [T, E, P]: keep probabilities, or the mixing weights of a method that has none.
      edge_probabilities: cell type -> [T, E].
      are_weights: whether `operations` are mixing weights.
    """

    epochs: list
    edges: list
    primitives: list
    operations: dict
    edge_probabilities: dict
    are_weights: bool = False


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The content of a run directory.

    Attributes:
      name: of the directory.
      config: dict, config.json.
      genotype: `Genotype`, or None.
      derivation: dict, derive.json, or None.
      search, train: lists of one dict an epoch, empty where the stage has not finished an epoch.
      history: `History`, or None.
      diagnosis: dict, search/diagnosis.json, or None.
      evaluation: dict, evaluation.json, or None.
      manifest: dict, export/manifest.json, or None.
      begun, done: sets of stages.
    """

    name: str
    config: dict
    genotype: object
    derivation: dict | None
    search: list
    train: list
    history: History | None
    diagnosis: dict | None
    evaluation: dict | None
    manifest: dict | None
    begun: frozenset
    done: frozenset

    @property
    def is_empty(self):
        """Whether no stage has left anything to show."""
        return not any((self.genotype, self.derivation, self.search, self.train, self.history, self.evaluation, self.manifest))

    def missing(self, stage):
        """The line that stands in place of what `stage` has not written."""
        return f"{stage} has not written this yet" if stage in self.begun else f"not run: {stage}"


def as_dict(value):
    """`value` where it is a dict, an empty one otherwise: files of other versions may lack a field."""
    return value if isinstance(value, dict) else {}


def as_list(value):
    """`value` where it is a list, an empty one otherwise."""
    return value if isinstance(value, list) else []


def warmup_span(run):
    """The span of the warm-up for a chart over the epochs, None where there was none."""
    frozen = [finite(record.get("epoch")) for record in run.search if record.get("frozen") is True]
    last = max((epoch for epoch in frozen if epoch is not None), default=None)
    if last is None:
        return None
    return 0.0, last, "warm-up ends" if len(frozen) < len(run.search) else "still in warm-up"


def read_run_files(run_dir):
    """Reads what is there.

    Args:
      run_dir: `run_dir.RunDir`.

    Returns:
      A `RunFiles`.

    Raises:
      RunDirError: where there is no config.json, or a file is damaged.
      GenotypeError: where genotype.json is refused.
    """
    if not run_dir.file("config.json").exists():
        raise RunDirError(
            "there is nothing to report. Expected a run directory, in which a stage has written config.json. "
            f"Received: {run_dir.path}, which has none"
        )
    return RunFiles(
        name=run_dir.path.resolve().name,
        config=_read_object(run_dir, "config.json"),
        genotype=run_dir.read_genotype() if run_dir.file("genotype.json").exists() else None,
        derivation=_read_object(run_dir, "derive.json"),
        search=_read_metrics(run_dir, "search"),
        train=_read_metrics(run_dir, "train"),
        history=_read_history(run_dir),
        diagnosis=_read_object(run_dir, "search/diagnosis.json"),
        evaluation=_read_object(run_dir, "evaluation.json"),
        manifest=_read_manifest(run_dir),
        begun=frozenset(stage for stage in STAGES if run_dir.file(f"stages/{stage}.json").exists()),
        done=frozenset(stage for stage in STAGES if run_dir.is_done(stage)),
    )


def _read_object(run_dir, name):
    """A dict, or None where there is no such file."""
    path = run_dir.file(name)
    if not path.exists():
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunDirError(f"{path} must hold one JSON object. Received: {_shown(value)}")
    return value


def _read_metrics(run_dir, stage):
    records = run_dir.read_metrics(stage)
    for record in records:
        if not isinstance(record, dict):
            raise RunDirError(f"{run_dir.file(stage)}/metrics.jsonl must hold one JSON object an epoch. Received: {_shown(record)}")
    return records


def _read_manifest(run_dir):
    name = "export/manifest.json"
    manifest = _read_object(run_dir, name)
    if manifest is None:
        return None
    artifacts = manifest.get("artifacts")
    if not isinstance(artifacts, list) or not all(isinstance(artifact, dict) for artifact in artifacts):
        raise RunDirError(f"{run_dir.file(name)} must hold a list of objects, artifacts. Received: {_shown(artifacts)}")
    return manifest


def _read_history(run_dir):
    """The history with its axes checked; None where there is none, or no epoch in it."""
    name = "search/posterior_history.npz"
    if not run_dir.file(name).exists():
        return None
    arrays = run_dir.read_npz(name)
    _check_shapes(arrays, run_dir.file(name))
    if not len(arrays["epoch"]):
        return None
    cell_types = _cell_types(arrays)
    are_weights = all(f"{cell_type}_operation_weight" in arrays for cell_type in cell_types)
    kind = "weight" if are_weights else "keep_probability"
    return History(
        epochs=arrays["epoch"].tolist(),
        edges=[str(edge) for edge in arrays["edges"]],
        primitives=[str(primitive) for primitive in arrays["primitives"]],
        operations={cell_type: _numbers(arrays[f"{cell_type}_operation_{kind}"]) for cell_type in cell_types},
        edge_probabilities={cell_type: _numbers(arrays[f"{cell_type}_edge_keep_probability"]) for cell_type in cell_types},
        are_weights=are_weights,
    )


def _numbers(array):
    return np.asarray(array, np.float64).tolist()


def _cell_types(arrays):
    """Types of cells that the history has arrays of: both, or "normal" alone."""
    return [kind for kind in CELL_TYPES if kind == "normal" or any(name.startswith(f"{kind}_") for name in arrays)]


def _check_shapes(arrays, path):
    """Raises `RunDirError` where an array is missing, is no array of numbers, or has axes of other lengths than its names."""
    axes = {"epoch": ("epoch",), "edges": ("edges",), "primitives": ("primitives",)}
    for cell_type in _cell_types(arrays):
        axes[f"{cell_type}_operation_keep_probability"] = ("epoch", "edges", "primitives")
        axes[f"{cell_type}_edge_keep_probability"] = ("epoch", "edges")
        if f"{cell_type}_operation_weight" in arrays:
            axes[f"{cell_type}_operation_weight"] = ("epoch", "edges", "primitives")
    for key in axes:
        if key not in arrays:
            raise RunDirError(f"{path} lacks {key!r}. Received: {', '.join(sorted(arrays)) or 'no array'}")
    for key, names in axes.items():
        expected = tuple(arrays[name].size for name in names)
        is_name = key in ("edges", "primitives")
        if arrays[key].shape != expected or arrays[key].dtype.kind not in ("U" if is_name else "iuf") or (is_name and not arrays[key].size):
            raise RunDirError(
                f"{path}: {key} must be of shape {expected} and hold {'names' if is_name else 'numbers'}. "
                f"Received: shape={arrays[key].shape}, dtype={arrays[key].dtype}"
            )


def _shown(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
