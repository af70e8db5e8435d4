"""What a search leaves of every epoch beside its metrics: the posterior's history, and what looks wrong."""

import dataclasses

import numpy as np
import tensorflow as tf

from sivdnas_tf.darts_rule import ranking
from sivdnas_tf.diagnosis import diagnose, watched
from sivdnas_tf.posterior import named_method
from sivdnas_tf.run_dir import write_json
from sivdnas_tf.uncertainty import macs_interval, mean_entropy, moments

_HISTORY, _DIAGNOSIS = "search/posterior_history.npz", "search/diagnosis.json"


class PosteriorHistory:
    """search/posterior_history.npz: keep probabilities after each epoch, rewritten every epoch; resumes with the epochs before its own.

    A method that ranks by weight has `{cell type}_operation_weight` [T, E, P] as well, the softmax over an edge's operations.

    Args:
      run_dir: the `RunDir`.
      supernet: the `Supernet`.
      budget: `config.BudgetConfig` of the deployed network.
      fixed_cost, cost_terms: as of `costs.expected_cost_terms`.
      rank_by: as of `derive.derive`.
    """

    def __init__(self, run_dir, supernet, budget, fixed_cost, cost_terms, rank_by="method"):
        self._run_dir, self._supernet, self._budget, self._rank_by = run_dir, supernet, budget, rank_by
        self._cost = fixed_cost, cost_terms
        self._arrays = run_dir.read_npz(_HISTORY) if run_dir.file(_HISTORY).exists() else {}

    def append(self, epoch):
        """Adds the epoch, writes the file and TensorBoard's histograms; returns what the epoch's record says of the posterior."""
        posterior, space = self._supernet.posterior(epoch + 1), self._supernet.space
        new = {"epoch": np.array(epoch + 1)}
        for cell_type in space.cell_types:
            cell = posterior.cell(cell_type)
            operations, edges = cell.operation_keep_probability, cell.edge_keep_probability
            new[f"{cell_type}_operation_keep_probability"], new[f"{cell_type}_edge_keep_probability"] = operations, edges
            if self._supernet.method.ranked_by == "weight":
                new[f"{cell_type}_operation_weight"] = ranking(posterior, cell_type)
            tf.summary.histogram(f"search/{cell_type}_operation_keep_probability", operations, step=epoch + 1)
            tf.summary.histogram(f"search/{cell_type}_edge_keep_probability", edges, step=epoch + 1)
        stacked = {key: np.stack([*self._arrays.get(key, ())[:epoch], value]) for key, value in new.items()}
        self._arrays = {**stacked, "edges": np.array(space.edge_names), "primitives": np.array(space.primitives)}
        self._arrays |= named_method(self._supernet.method.name, np.array)
        self._run_dir.write_npz(_HISTORY, self._arrays)
        return self._figures(posterior)

    def _figures(self, posterior):
        expected = moments(posterior, *self._cost)
        low, high = macs_interval(posterior, self._budget, rank_by=self._rank_by) or (None, None)
        return {
            "expected_operations": expected.operations,
            "expected_edges": expected.edges,
            "expected_macs": expected.macs,
            "macs_std": expected.macs_std,
            "macs_low": low,
            "macs_high": high,
            "mean_entropy": mean_entropy(posterior),
            **watched(posterior, self._rank_by),
        }


class Watch:
    """Looks at a search after every epoch, and writes search/diagnosis.json; resumes with the records before its own epoch.

    Args:
      run_dir: the `RunDir`.
      space: the `SearchSpace`.
      config: the `Config`.
    """

    def __init__(self, run_dir, space, config):
        self._run_dir, self._space, self._config = run_dir, space, config
        self._records, self._found = [], []

    def see(self, record):
        """Takes in an epoch's record; returns the names of what looks wrong, for metrics.jsonl."""
        if not self._records:
            self._take(self._run_dir.read_metrics("search")[: record["epoch"] - 1])
        self._take([record])
        write_json(self._run_dir.file(_DIAGNOSIS), {"epochs": record["epoch"], "findings": self._by_name()})
        return [finding.name for finding in self._found[-1]]

    def remarks(self, record):
        """The lines for the user after an epoch: what is found for the first time, and at the end what still is."""
        earlier = {finding.name for found in self._found[:-1] for finding in found}
        at_end = record["epoch"] == self._config.search.epochs
        return [f"  ! {finding.line}" for finding in self._found[-1] if at_end or finding.name not in earlier]

    def _take(self, records):
        for record in records:
            self._records.append(record)
            self._found.append(diagnose(self._records, self._space, self._config.search, self._config.budget))

    def _by_name(self):
        """JSON types: each finding as it was last seen, and in which epochs, in the order of the first."""
        entries = {}
        for record, found in zip(self._records, self._found, strict=True):
            for finding in found:
                epochs = [*entries.get(finding.name, {"epochs": []})["epochs"], record["epoch"]]
                entries[finding.name] = {**dataclasses.asdict(finding), "epochs": epochs}
        return list(entries.values())
