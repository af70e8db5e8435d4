"""What searches with several seeds have in common: a JSON line a run, then one for each cell type.

    python benchmarks/compare_searches.py RUN_DIRECTORY …

A run: minutes of its epochs, accuracy on the architecture half and expected operations at its first, middle and last epoch with a moving
architecture, operations that rule "mode" keeps, mean keep probability of each primitive and the quartiles of all. A cell type: the
correlation of keep probabilities between each two runs, and how many operations are kept by all and by none.
"""

import argparse
import itertools
import json

import numpy as np

from sivdnas_tf.derive import MODE_THRESHOLD
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.search_space import get_search_space


def describe(run_dir):
    """The line of a run."""
    records, posterior = run_dir.read_metrics("search"), run_dir.read_posterior()
    moving = [record for record in records if not record["frozen"]]
    line = {
        "run": str(run_dir.path),
        "minutes": round(sum(record["seconds"] for record in records) / 60, 1),
        "epochs": [record["epoch"] for record in _three(moving)],
        "architecture_accuracy": [round(record["architecture_accuracy"], 3) for record in _three(moving)],
        "expected_operations": [round(record["expected_operations"], 1) for record in _three(moving)],
    }
    for cell_type in posterior.cell_types:
        keep = posterior.cell(cell_type).operation_keep_probability
        primitives = get_search_space(posterior.search_space).primitives
        line[cell_type] = {
            "mode_keeps": int((keep >= MODE_THRESHOLD).sum()),
            "mean": {name: round(float(value), 2) for name, value in zip(primitives, keep.mean(axis=0), strict=True)},
            "quartiles": np.quantile(keep, [0.0, 0.25, 0.5, 0.75, 1.0]).round(2).tolist(),
        }
    return line


def _three(records):
    return [records[0], records[len(records) // 2], records[-1]]


def main():
    """Prints all lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_DIRECTORY")
    run_dirs = [RunDir(path, create=False) for path in parser.parse_args().runs]
    for run_dir in run_dirs:
        print(json.dumps(describe(run_dir)))
    for cell_type in run_dirs[0].read_posterior().cell_types:
        keeps = [run_dir.read_posterior().cell(cell_type).operation_keep_probability.ravel() for run_dir in run_dirs]
        kept = np.stack(keeps) >= MODE_THRESHOLD
        correlations = [round(float(np.corrcoef(*pair)[0, 1]), 2) for pair in itertools.combinations(keeps, 2)]
        counts = {"kept_by_all": int(kept.all(axis=0).sum()), "kept_by_none": int((~kept.any(axis=0)).sum())}
        print(json.dumps({"cell_type": cell_type, "correlations": correlations, **counts}))


if __name__ == "__main__":
    main()
