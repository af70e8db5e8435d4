"""What looks wrong with a search, from the records of its epochs: names, figures, and which settings to change. Imports no TensorFlow.

A pure function of metrics.jsonl and the configuration, so that a search that continues after a kill finds what it would have found. The
warm-up, in which the architecture stands still, is not looked at.
"""

import dataclasses
import functools
import statistics

from sivdnas_tf.derive import mode_genotype
from sivdnas_tf.methods.registry import get_method
from sivdnas_tf.posterior import keep_probability
from sivdnas_tf.search_space import SKIP, WITHOUT_WEIGHTS
from sivdnas_tf.uncertainty import gate_entropy, largest_entropy

# Of a normal cell's operations. Published cells of the zoo have at most a half, but for SNAS_aggressive; DARTS+ stops a search at 2 of 8.
SKIP_LIMIT = 0.5
# The most that a normal cell of the zoo has (BayesNAS_0.01, 8 of 10). Reduction cells of pools and skips alone train well (DARTS_V2).
WEIGHTLESS_LIMIT = 0.8
# Share of the epochs after the warm-up before which ranks still change from epoch to epoch, so that a share says nothing yet.
SETTLED = 0.25
# An operation that is kept with 0.95 on an edge kept with 0.95: nothing near one half, nothing for a threshold to drop.
DENSE_SHARE = 0.9
LATE = 0.75  # share of the epochs after the warm-up by which a search that prunes has begun to
LAST = 0.9  # share of them after which what is expected is about what is derived
AT_BUDGET = 0.02  # how far above it the expected macs may lie where the divergence stops at the budget
# Of the largest entropy: every gate closer to 0 or 1 than 0.006 (the start, log delta = -5, is 0.0067).
DECIDED_ENTROPY = 0.05
HALFWAY = 0.5  # of the epochs after the warm-up: before it a decision is early, after it a standstill is late
MOVED_SHARE = 0.05  # of the operations: a change of the expected number that shows that the gates have moved
UNMOVED_ENTROPY = 0.005  # of the largest entropy: log dropout rates 0.1 away from -5, or weights with a spread of 0.14
UNMOVED_SHARE = 0.01  # of the operations
# Means over an epoch, against the median of the epochs before: a healthy search's stay within a factor of ten or so.
VANISHED, EXPLODED = 1e-3, 100.0
MIN_EPOCHS_BEFORE = 3  # that make a median
# Sampled networks lose some accuracy as operations are dropped; a search that prunes as its weights learn gains all the same.
ACCURACY_SHARE = 0.7

_GRADIENTS = {"mixing_gradient_norm": "w and phi", "dropout_rate_gradient_norm": "the log dropout rates"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that looks wrong.

    Attributes:
      name: what metrics.jsonl lists.
      seen: what was seen, with figures.
      advice: what to change, by the names of the configuration's fields.
    """

    name: str
    seen: str
    advice: str

    @property
    def line(self):
        """One line for the user."""
        return f"{self.name}: {self.seen}; {self.advice}"


def watched(posterior, rank_by="method"):
    """What an epoch's record says of the architecture that would be derived now, without a budget (`derive.mode_genotype`).

    Args:
      posterior: `posterior.Posterior`.
      rank_by: as of `derive.derive`.

    Returns:
      A dict: mode_operations, of all cell types; skip_share and weightless_share, the shares of skip connections and of operations without
      weights among the operations of the normal cell.
    """
    genotype = mode_genotype(posterior, rank_by=rank_by)
    operations = [[edge.operation for edge in genotype.cell(kind).edges if edge.operation != "none"] for kind in genotype.cell_types]
    names = operations[0]
    return {
        "mode_operations": sum(map(len, operations)),
        "skip_share": names.count(SKIP) / len(names),
        "weightless_share": sum(name in WITHOUT_WEIGHTS for name in names) / len(names),
    }


def diagnose(records, space, search, budget):
    """What looks wrong after the last of some epochs.

    Args:
      records: list of the epochs' records in order, as in search/metrics.jsonl; what one lacks is not looked at.
      space: the `SearchSpace`.
      search: `config.SearchConfig`.
      budget: `config.BudgetConfig` of the deployed network.

    Returns:
      A list of `Finding`s, at most one a name.
    """
    if not records or records[-1].get("frozen"):
        return []
    view = _View(records, space, search, budget)
    return [finding for check in _CHECKS for finding in check(view)]


@dataclasses.dataclass(frozen=True)
class _View:
    """The records with what the checks ask of them and of the settings."""

    records: list
    space: object
    search: object
    budget: object

    @functools.cached_property
    def method(self):
        return get_method(self.search.method)

    @property
    def has_rates(self):
        return self.method.has_rates

    @functools.cached_property
    def moving(self):
        return [record for record in self.records if not record.get("frozen")]

    @property
    def progress(self):
        """Share of the epochs after the warm-up that are done."""
        return len(self.moving) / max(1, self.search.epochs - self.search.warmup_epochs)

    def last(self, key):
        """The number after the last epoch; None where the record has none."""
        return self.moving[-1].get(key)

    def earlier(self, key):
        """The numbers of the epochs before the last, after the warm-up."""
        return [record[key] for record in self.moving[:-1] if record.get(key) is not None]

    @property
    def n_operations(self):
        return len(self.space.cell_types) * len(self.space.edges) * len(self.space.primitives)

    @property
    def largest_entropy(self):
        return largest_entropy(self.space, self.method)

    @functools.cached_property
    def start(self):
        """Mean entropy and expected operations before the first step."""
        if not self.has_rates:
            return self.largest_entropy, float(self.n_operations)
        rate, edges_have_rates = self.search.initial_log_dropout_rate, self.method.edges != "none"
        keep = float(keep_probability(rate))
        entropy = float(gate_entropy(rate)) * (len(self.space.primitives) + edges_have_rates)
        return entropy, self.n_operations * keep * (keep if edges_have_rates else 1.0)

    def has_moved(self, entropy_share, operations_share):
        """Whether entropy or expected operations are further from the start than these shares of their largest."""
        entropy, operations = self.start
        further = abs(self.last("mean_entropy") - entropy) > entropy_share * self.largest_entropy
        return further or abs(self.last("expected_operations") - operations) > operations_share * self.n_operations

    @property
    def reach(self):
        """How far Adam can move an architecture parameter: learning rate x steps of the whole search (METHOD.md section 2)."""
        steps = self.moving[-1]["step"] / self.moving[-1]["epoch"] * (self.search.epochs - self.search.warmup_epochs)
        return self.search.architecture_learning_rate * steps

    @property
    def slower(self):
        """What keeps the architecture from deciding before the weights have learnt (METHOD.md section 2)."""
        smaller = ["search.architecture_learning_rate"]
        smaller += ["search.kl_weight"] if self.has_rates else []
        smaller += ["search.cost_scale"] if self.search.cost_scale else []
        mixing = ", search.mixing=identity" if self.has_rates and self.search.mixing == "softmax" else ""
        return f"try a smaller {' or '.join(smaller)}{mixing}, or more search.warmup_epochs"


def _share_of_normal_cell(view, key, limit, name, what):
    shares = [*view.earlier(key)[-1:], view.last(key)]
    if view.progress < SETTLED or None in shares or min(shares) <= limit:
        return
    seen = f"{shares[-1]:.0%} of the operations of the normal cell that would be derived now {what} (limit {limit:.0%})"
    yield Finding(name, seen, view.slower)


def _skip_connections(view):
    return _share_of_normal_cell(view, "skip_share", SKIP_LIMIT, "skip_connections", "are skip connections")


def _without_weights(view):
    what = "are pools or skip connections, without weights"
    return _share_of_normal_cell(view, "weightless_share", WEIGHTLESS_LIMIT, "without_weights", what)


def _few_operations(view):
    expected, nodes = view.last("expected_operations"), len(view.space.cell_types) * view.space.n_nodes
    if not view.has_rates or expected is None or expected >= nodes:
        return
    seen = f"{expected:.2g} operations are expected to be kept, fewer than the {nodes} nodes, each of which gets one back whatever it is"
    yield Finding("few_operations", seen, view.slower)


def _dense(view):
    expected = view.last("expected_operations")
    if not view.method.prunes or view.progress < LATE or expected is None or expected < DENSE_SHARE * view.n_operations:
        return
    start, advice = view.search.initial_log_dropout_rate, "try a larger search.kl_weight or search.cost_scale"
    if view.reach + start < 0:
        advice = (
            f"search.architecture_learning_rate x steps is {view.reach:.2g}, which cannot raise a log dropout rate from {start:g} to 0, "
            "where dropping begins: try a larger search.architecture_learning_rate or more search.epochs"
        )
    yield Finding("dense", f"{expected:.1f} of {view.n_operations} operations are expected to be kept: almost nothing is dropped", advice)


def _decided_early(view):
    entropy = view.last("mean_entropy")
    if view.progress > HALFWAY or entropy is None or entropy > DECIDED_ENTROPY * view.largest_entropy:
        return
    if view.has_moved(HALFWAY, MOVED_SHARE):
        done = f"after {view.progress:.0%} of the epochs with a moving architecture"
        seen = f"entropy is {entropy:.2g} of {view.largest_entropy:.2g} nats an edge {done}: everything is decided"
        yield Finding("decided_early", seen, view.slower)


def _unmoved(view):
    if view.progress < HALFWAY or view.last("mean_entropy") is None:
        return
    if not view.has_moved(UNMOVED_ENTROPY, UNMOVED_SHARE):
        seen = f"entropy is {view.last('mean_entropy'):.3g} nats an edge, as at the start ({view.start[0]:.3g}): the search decides nothing"
        reach = f"a parameter moves by at most search.architecture_learning_rate x steps, {view.reach:.2g} in the whole search"
        yield Finding("unmoved", seen, f"{reach}: try a larger search.architecture_learning_rate or more search.epochs")


def _gradients(view):
    for name, is_wrong, advice in (
        ("vanishing_gradient", lambda value, usual: value <= VANISHED * usual, view.slower),
        (
            "exploding_gradient",
            lambda value, usual: value > EXPLODED * usual,
            "try a smaller search.architecture_learning_rate or a smaller search.learning_rate",
        ),
    ):
        seen = []
        for key, parameters in _GRADIENTS.items():
            value, before = view.last(key), view.earlier(key)
            if value is not None and len(before) >= MIN_EPOCHS_BEFORE and is_wrong(value, statistics.median(before)):
                seen.append(f"the gradient to {parameters} has a norm of {value:.2g}, {statistics.median(before):.2g} in the median before")
        if seen:
            yield Finding(name, " and ".join(seen), advice)


def _accuracy_fell(view):
    pairs = [(record.get("architecture_accuracy"), record.get("expected_operations")) for record in view.moving]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        return
    (best, before), (accuracy, now) = max(pairs, key=lambda pair: pair[0]), pairs[-1]
    if accuracy < ACCURACY_SHARE * best and now < before:
        seen = (
            f"accuracy on the architecture half fell from {best:.3f} to {accuracy:.3f} as the expected operations fell from {before:.1f} "
            f"to {now:.1f}: dropout rates rise faster than the weights learn"
        )
        yield Finding("accuracy_fell", seen, view.slower)


def _over_budget(view):
    # Gates' sum is far from the one operation an edge that a space may derive: there, what 95 % of draws are above.
    one = view.space.one_operation_an_edge
    expected, limit = view.last("macs_low" if one else "expected_macs"), view.budget.macs
    # Where the divergence stops there, expected macs lie at the budget, a little above or below.
    allowed = limit * (1.0 + AT_BUDGET) if view.method.kl_until_budget_in(view.search) else limit
    if view.method.prunes and view.progress >= LAST and expected is not None and expected > allowed:
        seen = "are below 95% of draws" if one else "are expected"
        excess = f"{expected:,.0f} {view.budget.convention} {seen}, over the budget of {limit:,.15g}"
        advice = "try a larger search.kl_weight or search.cost_scale, more search.epochs or a larger budget.macs"
        yield Finding("over_budget", f"{excess}: derive must drop what the search kept", advice)


_CHECKS = (_skip_connections, _without_weights, _few_operations, _dense, _decided_early, _unmoved, _gradients, _accuracy_fell, _over_budget)
