"""The configurations of `tune`: that of a trial, that of the best one, and what the run directory records. Imports no TensorFlow."""

from sivdnas_tf.config import Config, check_searchable, cluster_workers, replace
from sivdnas_tf.errors import ConfigError
from sivdnas_tf.methods.registry import get_method
from sivdnas_tf.tuning.space import configured, parse_space

_NO_LIMIT = {"macs": 1e18, "params": 0.0, "latency_ms": 0.0}
# Sections that a trial's accuracy depends on; of the others nothing is used, or it does not change what comes out.
_RECORDED = ("seed", "deterministic", "data", "search", "derive", "budget", "train", "tune")


def check_tune(config):
    """The `Hyperparameter`s of a configuration that `tune` can run.

    Raises:
      ConfigError: for a space that `parse_space` refuses, streamed images, several workers in one training, or a search that is steered to
        a budget that the objective takes away.
    """
    check_searchable(config)
    if config.distribution.strategy == "multi_worker" or cluster_workers():
        raise ConfigError(
            "a trial of tune runs on one host; several hosts take a trial each with KERASTUNER_TUNER_ID. Expected no TF_CONFIG and "
            f"distribution.strategy auto, none or mirrored. Received: distribution.strategy={config.distribution.strategy!r}, "
            f"workers={cluster_workers()}"
        )
    space = parse_space(config)
    drawn = {path for hyperparameter in space for path in hyperparameter.paths}
    steers = config.search.kl_until_budget and ("search.method" in drawn or get_method(config.search.method).has_rates)
    for field, is_set, off in (("cost_scale", config.search.cost_scale, 0), ("kl_until_budget", steers, False)):
        if config.tune.objective == "accuracy" and (is_set or f"search.{field}" in drawn):
            raise ConfigError(
                f"tune.objective accuracy takes the budget away, which search.{field} steers to. Expected accuracy_within_budget, or "
                f"search.{field}={off} and not in config.tune.space. Received: search.{field}={getattr(config.search, field)}"
            )
    _without_values(config)
    return space


def _without_values(config):
    """The configuration of a trial before its values."""
    sections = {}
    if config.tune.objective == "accuracy":
        sections["budget"] = _NO_LIMIT
    if config.tune.objective == "short_accuracy":
        sections["train"] = {"epochs": config.tune.short_epochs}
    return replace(config, **sections)


def trial_config(config, space, values):
    """The `Config` that a trial searches and trains with; raises `ConfigError` where its values do not go together."""
    return configured(_without_values(config), space, values)


def best_config(config, space, values):
    """The `Config` that `run` takes for a trial's values: trained for `train.epochs`, of "accuracy" without a budget as its trials were."""
    sections = {"budget": _NO_LIMIT} if config.tune.objective == "accuracy" else {}
    return replace(configured(replace(config, **sections), space, values), tune=Config().to_dict()["tune"])


def tune_settings(config, genotype=None):
    """What the trials depend on, for the run directory's record; `tune.max_trials` may grow.

    Args:
      config: a `Config`.
      genotype: the `Genotype` that `tune.genotype` names, or None.
    """
    values = config.to_dict()
    settings = {key: values[key] for key in _RECORDED}
    settings["tune"] = {name: value for name, value in settings["tune"].items() if name != "max_trials"}
    return settings | ({"genotype_sha256": genotype.sha256} if genotype else {})


def config_source(config, docstring):
    """A configuration file of a `Config`: Python with get_config(), every field that is not at its default.

    Args:
      config: a `Config`.
      docstring: lines of text.
    """
    default, assignments = Config().to_dict(), []
    for name, value in config.to_dict().items():
        if not isinstance(value, dict):
            assignments += [f"config.{name} = {value!r}"] if value != default[name] else []
            continue
        assignments += [f"config.{name}.{field} = {one!r}" for field, one in value.items() if one != default[name][field]]
    text = "\n".join(docstring).replace("\\", "\\\\").replace('"', '\\"')
    return "\n".join(
        [
            f'"""{text}\n"""\n\nimport ml_collections\n\nfrom sivdnas_tf.config import Config\n\n',
            "def get_config():",
            '    """The fields that are not at their defaults."""',
            "    config = ml_collections.ConfigDict(Config().to_dict())",
            *(f"    {assignment}" for assignment in assignments),
            "    return config\n",
        ]
    )
