"""The hyperparameter space of `tune`: which fields of a configuration are drawn, from what. Imports no TensorFlow.

`config.tune.space` holds a row a hyperparameter: the path of its field, its kind, and its values.

    ("search.mixing", "choice", "identity", "average")              one of the values
    ("train.channels,budget.channels", "int", 8, 24, 4)             low, high, and a step (1 without it); both ends belong to it
    ("train.drop_path_rate", "float", 0.0, 0.3)                     low, high, and a step if any
    ("search.kl_weight", "log_float", 1e-3, 1.0)                    the same, even in the logarithm; a step is a factor

Several paths with commas between them share one value: the network that is trained and the one that the budget is of, say.
"""

import dataclasses
import itertools
import math

import numpy as np

from sivdnas_tf.config import Config, checked_field, replace
from sivdnas_tf.errors import ConfigError, nearest

KINDS = ("choice", "int", "float", "log_float")
# Of the data only what is done to images that were read already; of the budget only what follows the network.
_SECTIONS = {
    "data": (
        *("crop_padding", "flip", "class_weights", "random_resized_crop"),
        *("brightness_jitter", "contrast_jitter", "saturation_jitter", "hue_jitter"),
    ),
    "search": tuple(Config().to_dict()["search"]),
    "derive": tuple(Config().to_dict()["derive"]),
    "budget": ("network", "channels", "cells"),
    "train": tuple(Config().to_dict()["train"]),
}
TUNABLE = tuple(f"{section}.{name}" for section, names in _SECTIONS.items() for name in names)
_MOST_CORNERS = 1024  # combinations of extreme values that are checked before the first trial


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """One row of the space, checked.

    Attributes:
      name: its paths as the configuration gives them, separated by commas.
      paths: of the fields that get its value, such as "search.kl_weight".
      kind: one of `KINDS`.
      values: of a choice all of them, otherwise (low, high), as the fields hold them.
      step: what neighbouring values differ by, of "log_float" their ratio; None for a choice or a range without one.
    """

    name: str
    paths: tuple
    kind: str
    values: tuple
    step: float | int | None = None

    def value_of(self, drawn):
        """A drawn value as the fields hold it: Keras Tuner turns booleans into 0 and 1, and rounds the ends of a range."""
        if self.kind == "choice":
            return next(value for value in self.values if value == drawn)
        low, high = self.values
        return min(max(type(low)(drawn), low), high)


def parse_space(config):
    """The `Hyperparameter`s of `config.tune.space`.

    Args:
      config: a `Config`.

    Raises:
      ConfigError: for an empty space, a row of another form, an unknown field, one that cannot be tuned or is named twice, a value that
        a field does not take, an empty range, a log range through 0, or values that no configuration can hold together.
    """
    tune = config.tune
    if not tune.space:
        raise ConfigError("config.tune.space must name at least one field to tune. Received: ()")
    space = tuple(_parse_row(row, tune.tuner) for row in tune.space)
    paths = [path for hyperparameter in space for path in hyperparameter.paths]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"config.tune.space must name a field once. Received: {path} {paths.count(path)} times")
        _check_driven(path, tune)
    for values in _corners(space):
        configured(config, space, values)
    return space


def configured(config, space, values):
    """`config` with a trial's values in it, checked as a whole.

    Args:
      config: a `Config`.
      space: its `Hyperparameter`s.
      values: dict of their names to drawn values.

    Raises:
      ConfigError: where the values do not go together.
    """
    sections = {}
    for hyperparameter in space:
        for path in hyperparameter.paths:
            section, name = path.split(".")
            sections.setdefault(section, {})[name] = hyperparameter.value_of(values[hyperparameter.name])
    try:
        return replace(config, **sections)
    except ConfigError as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise ConfigError(f"config.tune.space holds values that do not go together ({shown}): {error}") from None


def _parse_row(row, tuner):
    if not isinstance(row, tuple) or len(row) < 3 or not isinstance(row[0], str) or row[1] not in KINDS:
        near = nearest(row[1], KINDS) if isinstance(row, tuple) and len(row) > 1 else ""
        raise ConfigError(
            f"a row of config.tune.space must be (path of a field, kind, values…), the kind one of {', '.join(KINDS)}.{near} "
            f"Received: {row!r}"
        )
    name, kind, *given = row
    paths = tuple(path.strip() for path in name.split(","))
    for path in paths:
        _check_path(path)
    if kind == "choice":
        return Hyperparameter(name, paths, kind, _choice_values(row, paths, given))
    return _parse_range(row, paths, tuner)


def _check_path(path):
    if path in TUNABLE:
        return
    section, _, name = path.partition(".")
    fields = Config().to_dict().get(section)
    if fields is not None and (name in fields if isinstance(fields, dict) else not name):
        raise ConfigError(
            f"config.tune.space: {path} cannot be tuned. Expected a field of search, derive or train, budget.network, .channels or .cells, "
            f"or data.{', '.join(_SECTIONS['data'])}. Received: {path!r}"
        )
    raise ConfigError(
        f"config.tune.space: unknown field {path}.{nearest(path, TUNABLE)} Expected a path such as search.kl_weight. Received: {path!r}"
    )


def _check_driven(path, tune):
    """What the objective or the tuner sets cannot be drawn too."""
    driver = {"hyperband": "tune.tuner hyperband", "short_accuracy": "tune.objective short_accuracy"}
    driven_by = [driver[value] for value in (tune.tuner, tune.objective) if value in driver]
    if path == "train.epochs" and driven_by:
        raise ConfigError(f"config.tune.space: train.epochs is set by {driven_by[0]}. Expected another field. Received: {path!r}")
    if tune.genotype and path.split(".")[0] in ("search", "derive"):
        raise ConfigError(f"config.tune.space: with tune.genotype nothing is searched. Expected fields of train. Received: {path!r}")


def _checked_values(row, paths, values):
    """The values as every field of the row holds them."""
    checked = []
    for value in values:
        try:
            held = [checked_field(path, value) for path in paths]
        except ConfigError as error:
            raise ConfigError(f"config.tune.space: {error}") from None
        if any(type(one) is not type(held[0]) or isinstance(one, tuple) for one in held):
            raise ConfigError(f"config.tune.space: fields that share a value must be of one type. Received: {row!r}")
        checked.append(held[0])
    return tuple(checked)


def _choice_values(row, paths, given):
    values = _checked_values(row, paths, given)
    if len(set(values)) < len(values) or len(values) < 2:
        raise ConfigError(f"config.tune.space: a choice needs at least two values, each once. Received: {row!r}")
    return values


def _parse_range(row, paths, tuner):
    name, kind, *given = row
    numbers = all(isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number) for number in given)
    if len(given) not in (2, 3) or not numbers:
        raise ConfigError(f"config.tune.space: a range must be low, high and, if any, a step, finite numbers. Received: {row!r}")
    low, high = given[:2]
    if low >= high:
        raise ConfigError(f"config.tune.space: the range of {name} is empty. Expected low below high. Received: {row!r}")
    if kind == "log_float" and low <= 0:
        raise ConfigError(
            f"config.tune.space: a log range cannot hold 0 or less, as that of {name}. Expected low above 0. Received: {row!r}"
        )
    low, high = _checked_values(row, paths, (low, high))
    if (kind == "int") is not isinstance(low, int):
        raise ConfigError(f"config.tune.space: {name} is of type {type(low).__name__}. Expected a kind of that type. Received: {row!r}")
    step = given[2] if len(given) == 3 else (1 if kind == "int" else None)
    if step is not None:
        largest = high / low if kind == "log_float" else high - low
        smallest = 1 if kind == "log_float" else 0
        if not smallest < step <= largest or (kind == "int" and not isinstance(step, int)):
            raise ConfigError(
                f"config.tune.space: the step of {name} must be above {smallest} and at most {largest:g}"
                f"{', an integer' if kind == 'int' else ''}. Received: {row!r}"
            )
    elif tuner == "grid":
        raise ConfigError(f"config.tune.space: tune.tuner grid needs a step for {name}, or a choice. Received: {row!r}")
    return Hyperparameter(name, paths, kind, (low, high), step)


def _corners(space):
    """Values of the hyperparameters at their extremes: all combinations, or as many at random as are quick to check."""
    names = [hyperparameter.name for hyperparameter in space]
    extremes = [hyperparameter.values for hyperparameter in space]
    if math.prod(len(values) for values in extremes) <= _MOST_CORNERS:
        yield from (dict(zip(names, values, strict=True)) for values in itertools.product(*extremes))
        return
    generator = np.random.default_rng(0)
    for _ in range(_MOST_CORNERS):
        yield {name: values[generator.integers(len(values))] for name, values in zip(names, extremes, strict=True)}
