"""A posterior becomes a genotype: the rules of METHOD.md section 4, and the budget. Imports no TensorFlow.

The paper says only "the final structure is determined by the samples of q(psi)" (its rule is `sample` here). Variable operations an
edge and variable edges a node are its point: no rule but `darts`, for the methods that the paper compares with, keeps a fixed number.
Where the search space has one operation an edge, every rule leaves each edge the best of what it keeps there (`darts_rule.ranking`).
"""

import dataclasses
import itertools
import math

import numpy as np

from sivdnas_tf.config import DERIVATION_RULES, RANKINGS
from sivdnas_tf.darts_rule import darts_gates, ranking
from sivdnas_tf.errors import ConfigError, nearest
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.methods.registry import get_method
from sivdnas_tf.posterior import Posterior
from sivdnas_tf.profiling.costs import (
    budget_text,
    check_budget,
    check_latency,
    cost_in,
    cost_text,
    deployed_cost,
    fits_budget,
    operation_cost,
)
from sivdnas_tf.search_space import SearchSpace, get_search_space

MODE_THRESHOLD = 0.5
MAX_DRAWS = 1000
# Why rule "darts" or a draw closes what it closes; the other rules hold keep probabilities against a threshold.
_CLOSED = {"darts": "outranked", "sample": "gate 0", "redraw": "gate 0", "best_of": "gate 0"}
# What is over the budget where a rule has looked for something within it.
_CHEAPEST = {
    "budget": "the cheapest network that rule budget can derive",
    "redraw": f"the cheapest network of the {MAX_DRAWS} draws of rule redraw",
    "best_of": "the cheapest network that rule best_of drew",
}


@dataclasses.dataclass(frozen=True)
class Derivation:
    """What `derive` found.

    Attributes:
      genotype: the `Genotype`; every intermediate node is fed and concatenated.
      details: JSON types, the content of derive.json: the search's method, the rule and why it was that, seed, threshold (None without),
        whether it was raised and a warning if so, the search's epoch, the budget, the deployed network's cost and that of `mode` (None
        where that does not fit the method), its latency where that is limited (None elsewhere): of which genotype, and every
        measurement; with "best_of", every candidate: where it is from, its score (None over the budget), macs, log-probability and
        genotype; and for each cell type the keep probabilities, what ranked where something was, what was kept, restored and dropped, and
        why.
    """

    genotype: Genotype
    details: dict


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """A posterior, its search space, what operations are ranked by, and the ranks: cell type -> [E, P]."""

    posterior: Posterior
    space: SearchSpace
    rank_by: str
    ranks: dict

    @classmethod
    def of(cls, posterior, rank_by):
        space = get_search_space(posterior.search_space)
        return cls(posterior, space, rank_by, {cell_type: ranking(posterior, cell_type, rank_by) for cell_type in space.cell_types})

    def best(self, cell_type, edge, candidates):
        """The best-ranked of an edge's candidates, bool [P]; ties break by index."""
        return int(np.argmax(np.where(candidates, self.ranks[cell_type][edge], -1.0)))

    def share(self, cell_type, edge, candidates):
        """Of each of an edge's candidates, float64 [P]: its rank by their sum, the probability that a draw keeps it."""
        ranks = np.where(candidates, self.ranks[cell_type][edge], 0.0)
        return ranks / ranks.sum() if ranks.sum() > 0 else candidates / candidates.sum()


@dataclasses.dataclass(frozen=True)
class _DerivedCell:
    """Gates of one cell type (edges [E], operations [E, P]) and what they leave: kept [E, P], restored as (edge, primitive) pairs."""

    edge_gate: np.ndarray
    operation_gate: np.ndarray
    kept: np.ndarray
    restored: tuple


def derive(posterior, *, rule=None, seed, budget, name="searched", rank_by="method", measure_latency=None, samples=16, score=None):
    """Derives a genotype, deterministically for a given posterior, rule and seed, unless the budget limits a latency.

    An edge without operations counts as dropped; a node without edges gets back its most probable edge with that edge's most probable
    operation (in a space of one operation an edge, with the one that the rule takes there); ties break by index. Probabilities are those of
    the float32 parameters that posterior.npz holds.

    Args:
      posterior: `posterior.Posterior`.
      rule: "mode": keep what has keep_probability >= 0.5. "budget": the same where the deployed network fits, otherwise the
        threshold is raised to the next larger keep_probability of the posterior until it does. "sample": one draw of the gates.
        "redraw": the first of up to `MAX_DRAWS` draws whose deployed network fits. "best_of": the one of the largest `score` among
        `samples` draws and what "mode" keeps, without those whose deployed network does not fit. "darts": two edges a node, one operation
        an edge (`darts_rule`). None is the rule of the posterior's method.
        Where the network that this gives takes longer than `budget.latency_ms`, "budget" raises the threshold further, by bisection
        over what fits the multiply-adds, as if a higher threshold never took longer; the others refuse.
      seed: of the draw of "sample", at least 0.
      budget: `config.BudgetConfig` of the deployed network.
      name: of the genotype.
      rank_by: what rule "darts", and in a space of one operation an edge every rule, ranks operations by: see `darts_rule.ranking`. A draw
        keeps one of an edge's open operations with a probability proportional to it.
      measure_latency: function of a `Genotype` to the milliseconds that its deployed network takes an image; needed, and called, only
        where `budget.latency_ms` limits them.
      samples: number of draws of "best_of".
      score: function of a `Genotype` to a number, larger is better; needed, and called, by "best_of" only.

    Returns:
      A `Derivation`.

    Raises:
      BudgetError: where the deployed network costs more than the budget allows; with "budget", the cheapest one it could derive.
      ConfigError: for an unknown rule or ranking, a rule that does not fit the posterior's method, a negative seed, a deployed network
        that does not exist, or a limit that nothing measures.
      RunDirError: where a parameter of the posterior is not finite or of another shape than its space's.
    """
    method = get_method(posterior.method)
    reason = f"the rule of method {method.name}" if rule is None else "asked for"
    rule = rule or method.rule
    _check_arguments(rule, rank_by, seed, budget, measure_latency, score)
    method.check_rule(rule)
    ranked = _Ranked.of(Posterior.from_arrays(posterior.to_arrays()), rank_by)
    mode = _threshold_cells(ranked, MODE_THRESHOLD)
    threshold, cells, candidates = _cells_by(rule, ranked, mode, seed, budget, samples, score)
    genotype = _to_genotype(cells, ranked.space, name)
    subject = f"the network that rule {rule} derives"
    check_budget(genotype, budget, _CHEAPEST.get(rule, subject))
    latency = None
    if budget.latency_ms:
        networks = [(threshold, cells, genotype)]
        if rule == "budget":
            networks, subject = _candidates(ranked, budget, threshold, name), "the sparsest network that rule budget can derive"
        (threshold, cells, genotype), latency = _fast_enough(networks, measure_latency, budget, subject)
    mode_cost = deployed_cost(_to_genotype(mode, ranked.space, name), budget)
    details = {
        "method": method.name,
        "rule": rule,
        "rule_reason": reason,
        "rank_by": rank_by,
        "seed": seed,
        "threshold": threshold,
        **_raised(threshold, mode_cost, budget, latency),
        "search_space": ranked.space.name,
        **({"architecture_string": genotype.architecture_string} if genotype.architecture_string else {}),
        "epoch": posterior.epoch,
        "budget": dataclasses.asdict(budget),
        "cost": dataclasses.asdict(deployed_cost(genotype, budget)),
        "mode_cost": dataclasses.asdict(mode_cost) if "mode" in method.rules else None,
        "latency": latency,
        **({} if candidates is None else {"candidates": candidates}),
        "edges": list(ranked.space.edge_names),
        "primitives": list(ranked.space.primitives),
        "cells": {cell_type: _describe(cells[cell_type], ranked, cell_type, rule) for cell_type in ranked.space.cell_types},
    }
    return Derivation(genotype, details)


def _cells_by(rule, ranked, mode, seed, budget, samples, score):
    """`(threshold or None, cells, candidates or None)` of a rule."""
    generator = np.random.default_rng(seed)
    if rule == "sample":
        return None, _sample_cells(ranked, generator), None
    if rule == "redraw":
        return None, _redraw(ranked, generator, budget), None
    if rule == "best_of":
        return None, *_best_of(ranked, mode, generator, samples, budget, score)
    if rule == "darts":
        return None, _derived_cells(ranked, darts_gates(ranked.posterior, ranked.rank_by), ranked.best), None
    if rule == "budget":
        return *_raise_threshold(ranked, budget), None
    return MODE_THRESHOLD, mode, None


def _check_arguments(rule, rank_by, seed, budget, measure_latency, score):
    if rule not in DERIVATION_RULES:
        raise ConfigError(
            f"unknown rule of derivation.{nearest(rule, DERIVATION_RULES)} Expected one of {', '.join(DERIVATION_RULES)}. "
            f"Received: {rule!r}"
        )
    if rank_by not in RANKINGS:
        raise ConfigError(
            f"unknown ranking.{nearest(rank_by, RANKINGS)} Expected one of {', '.join(RANKINGS)}. Received: rank_by={rank_by!r}"
        )
    if seed < 0:
        raise ConfigError(f"the seed of a derivation must be at least 0. Received: seed={seed}")
    if budget.latency_ms and measure_latency is None:
        raise ConfigError(f"budget.latency_ms needs measure_latency, which measures it. Received: latency_ms={budget.latency_ms}, none")
    if rule == "best_of" and score is None:
        raise ConfigError(f"rule best_of needs score, which ranks what it draws. Received: {rule!r}, no score")


def full_genotype(space_name):
    """The dearest `Genotype` of a search space: every primitive on every edge, or the dearest one where an edge has one."""
    space = get_search_space(space_name)
    primitives = space.primitives
    if space.one_operation_an_edge:
        primitives = (max(primitives, key=lambda name: operation_cost(name, channels=16, resolution=32, stride=1).macs),)
    edges = tuple(Edge(node, predecessor, primitive) for predecessor, node in space.edges for primitive in primitives)
    cells = dict.fromkeys(space.cell_types, Cell(edges, space.outputs))
    return Genotype("every operation", **cells, search_space=space.name)


def mode_genotype(posterior, name="mode", rank_by="method"):
    """The `Genotype` that the method's own rule would keep without a budget: by rank for rule "darts", by threshold for the others."""
    by_rank = get_method(posterior.method).rule == "darts"
    ranked = _Ranked.of(posterior, rank_by)
    cells = _derived_cells(ranked, darts_gates(posterior, rank_by), ranked.best) if by_rank else _threshold_cells(ranked, MODE_THRESHOLD)
    return _to_genotype(cells, ranked.space, name)


def drawn_costs(posterior, budget, *, draws, seed, rank_by="method"):
    """What networks derived from draws of the gates cost when deployed, each node with the edge that is guaranteed to it.

    Args:
      posterior: `posterior.Posterior`.
      budget: `config.BudgetConfig` of the deployed network.
      draws: how many.
      seed: of the draws; the first is that of rule "sample".
      rank_by: as of `derive`.

    Returns:
      float64 [draws], multiply-adds in the budget's convention.
    """
    ranked, generator = _Ranked.of(posterior, rank_by), np.random.default_rng(seed)
    genotypes = [_to_genotype(_sample_cells(ranked, generator), ranked.space, "") for _ in range(draws)]
    return np.array([cost_in(deployed_cost(genotype, budget), budget.convention) for genotype in genotypes], np.float64)


def _threshold_cells(ranked, threshold):
    """`_DerivedCell`s of all cell types that keep what has keep_probability >= threshold."""
    gates = {}
    for cell_type in ranked.space.cell_types:
        cell = ranked.posterior.cell(cell_type)
        gates[cell_type] = (cell.edge_keep_probability >= threshold, cell.operation_keep_probability >= threshold)
    return _derived_cells(ranked, gates, ranked.best)


def _sample_cells(ranked, generator):
    """`_DerivedCell`s of all cell types from one Bernoulli draw of every gate by a NumPy generator."""
    gates = {}
    for cell_type in ranked.space.cell_types:
        cell = ranked.posterior.cell(cell_type)
        probabilities = (cell.edge_keep_probability, cell.operation_keep_probability)
        gates[cell_type] = tuple(generator.random(probability.shape) < probability for probability in probabilities)

    def choose(cell_type, edge, candidates):
        return int(generator.choice(len(candidates), p=ranked.share(cell_type, edge, candidates)))

    return _derived_cells(ranked, gates, choose)


def _redraw(ranked, generator, budget):
    """The first draw that fits the budget; the cheapest of them all where none does. The first is that of rule "sample"."""
    cheapest = None
    for _ in range(MAX_DRAWS):
        cells = _sample_cells(ranked, generator)
        cost = deployed_cost(_to_genotype(cells, ranked.space, ""), budget)
        if fits_budget(cost, budget):
            return cells
        multiply_adds = cost_in(cost, budget.convention)
        if cheapest is None or multiply_adds < cheapest[0]:
            cheapest = (multiply_adds, cells)
    return cheapest[1]


def _best_of(ranked, mode, generator, samples, budget, score):
    """The candidate of the best score, with what derive.json says of all: `mode`, and draws. The first of equals wins.

    Without one that fits the budget, the cheapest, which the caller refuses.
    """
    drawn = [("mode", mode), *(("draw", _sample_cells(ranked, generator)) for _ in range(samples))]
    entries, scores, costs = [], {}, []
    for source, cells in drawn:
        genotype = _to_genotype(cells, ranked.space, "")
        cost = deployed_cost(genotype, budget)
        fits, key = fits_budget(cost, budget), genotype.sha256
        if fits and key not in scores:
            scores[key] = float(score(genotype))
        costs.append(cost_in(cost, budget.convention))
        entries.append(
            {
                "from": source,
                "score": scores[key] if fits else None,
                "macs": cost.macs,
                "log_probability": _log_probability(ranked, cells),
                "genotype_sha256": key,
            }
        )
    fitting = [index for index, entry in enumerate(entries) if entry["score"] is not None]
    chosen = max(fitting, key=lambda index: entries[index]["score"]) if fitting else int(np.argmin(costs))
    return drawn[chosen][1], entries


def _log_probability(ranked, cells):
    """Of the gates of all cell types, in nats, and where an edge has one operation, of the choices among open ones.

    What the guarantee restored is no draw.
    """
    total = 0.0
    for cell_type in ranked.space.cell_types:
        cell, derived = ranked.posterior.cell(cell_type), cells[cell_type]
        if ranked.space.one_operation_an_edge:
            restored = {edge for edge, _ in derived.restored}
            for edge, primitive in np.argwhere(derived.kept).tolist():
                if edge not in restored:
                    total += math.log(ranked.share(cell_type, edge, derived.operation_gate[edge])[primitive])
        for gate, rate in (
            (derived.edge_gate, cell.log_edge_dropout_rate),
            (derived.operation_gate, cell.log_operation_dropout_rate),
        ):
            # log(1 / (1 + delta)) of an open gate, log(delta / (1 + delta)) of a closed one.
            signed = np.where(gate, rate, -np.asarray(rate, np.float64)).astype(np.float64)
            total -= float(np.logaddexp(0.0, signed).sum())
    return total


def _raise_threshold(ranked, budget):
    """The lowest threshold from 0.5 up at which the deployed network fits, with its cells; the cheapest ones where none does.

    Walks every threshold, since the cost need not fall with it: a node whose cheap edge falls away gets back its most probable one.
    """
    cheapest = None
    for threshold in _thresholds(ranked):
        cells = _threshold_cells(ranked, threshold)
        cost = deployed_cost(_to_genotype(cells, ranked.space, ""), budget)
        if fits_budget(cost, budget):
            return threshold, cells
        multiply_adds = cost_in(cost, budget.convention)
        if cheapest is None or multiply_adds < cheapest[0]:
            cheapest = (multiply_adds, threshold, cells)
    return cheapest[1:]


def _candidates(ranked, budget, lowest, name):
    """`(threshold, cells, genotype)` from a threshold up, of what fits the multiply-adds, each genotype once."""
    found = {}
    for threshold in _thresholds(ranked):
        cells = _threshold_cells(ranked, threshold)
        genotype = _to_genotype(cells, ranked.space, name)
        if threshold >= lowest and fits_budget(deployed_cost(genotype, budget), budget):
            found.setdefault(genotype.sha256, (threshold, cells, genotype))
    return list(found.values())


def _fast_enough(candidates, measure_latency, budget, subject):
    """The first candidate that is fast enough if each is faster than the one before, and what derive.json says of it.

    A candidate that is returned was itself measured within the limit. Each measurement builds a network, so they are few: the first
    candidate, the last, and a bisection between them. Raises `BudgetError` where the last one is too slow.
    """
    measured = {}

    def fits(index):
        measured[index] = float(measure_latency(candidates[index][2]))
        return measured[index] <= budget.latency_ms

    low, high = 0, len(candidates) - 1
    if fits(0):
        high = 0
    elif high == 0 or not fits(high):
        check_latency(measured[high], budget, subject)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return candidates[high], {
        "ms": measured[high],
        "genotype_sha256": candidates[high][2].sha256,
        "measurements": [{"threshold": candidates[index][0], "ms": milliseconds} for index, milliseconds in measured.items()],
    }


def _thresholds(ranked):
    """0.5, every larger keep_probability in increasing order, and one above them all: at it, only the guarantee keeps anything."""
    cells = [ranked.posterior.cell(cell_type) for cell_type in ranked.space.cell_types]
    probabilities = np.concatenate(
        [p.ravel() for cell in cells for p in (cell.edge_keep_probability, cell.operation_keep_probability)],
    )
    larger = np.unique(probabilities[probabilities > MODE_THRESHOLD])
    above = np.nextafter(larger[-1], 2.0) if larger.size else np.nextafter(MODE_THRESHOLD, 2.0)
    return [MODE_THRESHOLD, *larger.tolist(), float(above)]


def _derived_cells(ranked, gates, choose):
    """`_DerivedCell`s of all cell types; `choose(cell_type, edge, candidates)` picks the one operation that an edge may have."""
    return {cell_type: _with_guarantee(ranked, cell_type, *gates[cell_type], choose) for cell_type in ranked.space.cell_types}


def _with_guarantee(ranked, cell_type, edge_gate, operation_gate, choose):
    """What the gates leave of one cell type, and for each node that they leave nothing, its most probable edge with an operation."""
    cell, space = ranked.posterior.cell(cell_type), ranked.space
    kept, restored = edge_gate[:, None] & operation_gate, []
    if space.one_operation_an_edge:
        for edge in np.flatnonzero(kept.any(axis=1)).tolist():
            only = choose(cell_type, edge, kept[edge])
            kept[edge] = np.arange(kept.shape[1]) == only
    for node in space.nodes:
        edges = np.array(space.edges_into(node))
        if not kept[edges].any():
            edge = int(edges[np.argmax(cell.edge_keep_probability[edges])])
            if space.one_operation_an_edge:
                restored.append((edge, choose(cell_type, edge, np.ones(kept.shape[1], bool))))
            else:
                restored.append((edge, int(np.argmax(cell.operation_keep_probability[edge]))))
    for edge, primitive in restored:
        kept[edge, primitive] = True
    return _DerivedCell(edge_gate, operation_gate, kept, tuple(restored))


def _to_genotype(cells, space, name):
    return Genotype(name, **{cell_type: _to_cell(cell.kept, space) for cell_type, cell in cells.items()}, search_space=space.name)


def _to_cell(kept, space):
    edges = []
    for (predecessor, node), row in zip(space.edges, kept, strict=True):
        names = [space.primitives[index] for index in np.flatnonzero(row).tolist()]
        dropped = ["none"] if space.one_operation_an_edge and not names else []
        edges += [Edge(node, predecessor, name) for name in names + dropped]
    return Cell(tuple(edges), space.outputs)


def _raised(threshold, mode_cost, budget, latency):
    """Whether the threshold was raised, and the warning that a raised one deserves."""
    if threshold is None or threshold <= MODE_THRESHOLD:
        return {"raised": False, "warning": None}
    subject, over = f"keeping every keep_probability >= {MODE_THRESHOLD}", []
    if not fits_budget(mode_cost, budget):
        over.append(f"{subject} costs {cost_text(mode_cost, budget)}, over the budget of {budget_text(budget)}")
        subject = "what fits that"
    if latency and len(latency["measurements"]) > 1:
        milliseconds = latency["measurements"][0]["ms"]
        over.append(f"{subject} takes {milliseconds:,.15g} ms in {budget.latency_runtime}, over the limit of {budget.latency_ms:,.15g}")
    warning = (
        f"the search ended too dense: {'; '.join(over)}; the threshold had to be raised to {threshold:.4f}, so that the budget, not the "
        "prior, pruned the rest. A larger search.kl_weight or more architecture steps prune more."
    )
    return {"raised": True, "warning": warning}


def _describe(derived, ranked, cell_type, rule):
    """JSON types: keep probabilities of one cell type, and what became of each edge and operation."""
    cell, space = ranked.posterior.cell(cell_type), ranked.space
    named = [{"edge": space.edge_names[edge], "operation": space.primitives[index]} for edge, index in np.argwhere(derived.kept).tolist()]
    return {
        "edge_keep_probability": cell.edge_keep_probability.tolist(),
        "operation_keep_probability": cell.operation_keep_probability.tolist(),
        **({"ranking": ranked.ranks[cell_type].tolist()} if rule == "darts" or space.one_operation_an_edge else {}),
        "n_edges": int(derived.kept.any(axis=1).sum()),
        "n_operations": len(named),
        "kept": named,
        "restored": [{"edge": space.edge_names[edge], "operation": space.primitives[primitive]} for edge, primitive in derived.restored],
        "dropped": _dropped(derived, space, _CLOSED.get(rule, "below threshold")),
    }


def _dropped(derived, space, closed):
    """An entry with a reason for each dropped edge (operation None) and each dropped operation; `closed` is that of a gate of 0."""
    entries = []
    for edge, name in enumerate(space.edge_names):
        if not derived.kept[edge].any():
            reason = "no operation left" if derived.edge_gate[edge] else closed
            entries.append({"edge": name, "operation": None, "reason": reason})
    for edge, primitive in itertools.product(range(len(space.edges)), range(len(space.primitives))):
        if not derived.kept[edge, primitive]:
            reason = closed
            if derived.operation_gate[edge, primitive]:
                reason = "outranked" if space.one_operation_an_edge and derived.kept[edge].any() else "edge dropped"
            entries.append({"edge": space.edge_names[edge], "operation": space.primitives[primitive], "reason": reason})
    return entries
