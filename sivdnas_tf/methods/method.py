"""What a search method is: a few statements that the supernet, the configuration and the derivation read. Imports no TensorFlow."""

import dataclasses

from sivdnas_tf.errors import ConfigError

# The kinds of architecture parameters of a level (layers/architecture_parameters.py), by whether a step draws gates and noise for them.
_GATED = ("semi_implicit",)
_NOISY = ("semi_implicit", "gaussian")

# The values of fields of the search that are also their defaults: no contradiction to a method that has none of it, or only its own.
_DEFAULT_MIXING, _DEFAULT_NOISE_SHAPE, _DEFAULT_NOISE_IN = "identity", "operation", "both"


@dataclasses.dataclass(frozen=True)
class Method:
    """A search method: how mixing weights are made of architecture parameters, what is added to the loss, how a genotype is derived.

    The kind of a level's parameters decides what a step draws for them, which variables there are, and the KL divergence that they add to
    the architecture's loss, times `search.kl_weight`:

      kind             variables    sample of a step              KL divergence
      "semi_implicit"  w, log rate  gate * w * (1 + noise)        gate * 1/2 log(1 + prior_gap / delta)  (Eq. 17, 18)
      "gaussian"       w, log rate  w * (1 + noise)               1/2 log(1 + prior_gap / delta)         (Eq. 11)
      "weights"        w            w                             none
      "none"           none         1                             none

    Attributes:
      name: that `search.method` takes, and that posterior.npz carries.
      operations: kind of w and its rates, one an operation of an edge.
      edges: kind of phi and its rates, one an edge.
      mixing: how the variables become mixing weights, as `search.mixing`, which it stands for; "" leaves it to `search.mixing`.
      annealed: whether prior_gap = (1 - lambda)^2 is annealed; otherwise lambda = 0, and it is 1.
      hypergradient_order: of the architecture's gradient, 1 or 2; 0 leaves it to `search.hypergradient_order`.
      trains_supernet: whether there is anything to train; without, `search` writes a posterior at once.
      rules: of derivation that fit the method, its own first.
      ranked_by: what rule "darts" ranks by: "keep_probability", or "weight", the softmax of w over an edge's operations.
    """

    name: str
    operations: str = "none"
    edges: str = "none"
    mixing: str = ""
    annealed: bool = False
    hypergradient_order: int = 0
    trains_supernet: bool = True
    rules: tuple = ("darts",)
    ranked_by: str = "keep_probability"

    @property
    def rule(self):
        """The method's own rule of derivation."""
        return self.rules[0]

    @property
    def draws(self):
        """Whether a genotype can be drawn: whether what the method leaves are gates with keep probabilities."""
        return "sample" in self.rules

    @property
    def prunes(self):
        """Whether the method's own rule holds keep probabilities against a threshold, so that a search decides how much is kept."""
        return self.rule == "budget"

    @property
    def has_rates(self):
        """Whether a level has dropout rates: noise, keep probabilities and a KL divergence."""
        return any(kind in _NOISY for kind in (self.operations, self.edges))

    def kl_until_budget_in(self, search):
        """Whether the divergence of a `config.SearchConfig`'s search by this method stops weighing at the budget."""
        return search.kl_until_budget and self.has_rates

    def mixing_in(self, search):
        """The mixing of a `config.SearchConfig`'s search by this method."""
        return self.mixing or search.mixing

    def hypergradient_order_in(self, search):
        """The order of the architecture's gradient of a `config.SearchConfig`'s search by this method."""
        return self.hypergradient_order or search.hypergradient_order

    def gate_gradient_in(self, search):
        """The gates' gradient of a `config.SearchConfig`'s search by this method: "none" where it draws no gates."""
        return search.gate_gradient if {self.operations, self.edges} & set(_GATED) else "none"

    def check_settings(self, search):
        """Raises `ConfigError` for a setting of a `config.SearchConfig` that asks for what the method does not have.

        The defaults contradict nothing, nor does what weighs or estimates a part that is not there (`kl_weight`, `gate_gradient`): one
        file serves all methods.
        """
        if not self.trains_supernet:
            return
        mixes = not self.mixing or search.mixing in (self.mixing, _DEFAULT_MIXING)
        self._check(mixes, search, "mixing", f"mixes by {self.mixing}", f"{self.mixing} or the default")
        self._check(self.has_rates or search.noise_shape == _DEFAULT_NOISE_SHAPE, search, "noise_shape", "draws no noise", "operation")
        self._check(self.has_rates or search.noise_in == _DEFAULT_NOISE_IN, search, "noise_in", "draws no noise", "both")
        first = self.hypergradient_order == 1 and search.hypergradient_order == 2
        self._check(not first, search, "hypergradient_order", "is of first order", "1, or the method darts_second")
        free = search.cost_scale == 0 or "budget" in self.rules
        self._check(free, search, "cost_scale", "does not derive by keep probabilities, which it steers", "0")

    def _check(self, holds, search, field, reason, expected):
        if not holds:
            raise ConfigError(
                f"search.method {self.name} {reason}. Expected search.{field} {expected}. "
                f"Received: search.{field}={getattr(search, field)!r}"
            )

    def check_rule(self, rule):
        """Raises `ConfigError` where a rule of derivation does not fit the method."""
        if rule not in self.rules:
            raise ConfigError(
                f"rule {rule} does not fit what the method {self.name} leaves. Expected {' or '.join(self.rules)}. "
                f"Received: rule={rule!r}, method={self.name!r}"
            )
