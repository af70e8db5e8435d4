import dataclasses
import json

import pytest

from sivdnas_tf.config import Config, replace
from sivdnas_tf.errors import ConfigError
from sivdnas_tf.tuning.space import TUNABLE, configured, parse_space

KL_WEIGHT = ("search.kl_weight", "log_float", 1e-3, 1.0)


def config_of(*rows, **tune):
    return replace(Config(), tune={"space": rows, **tune})


def refusal(*rows, **tune):
    with pytest.raises(ConfigError) as caught:
        parse_space(config_of(*rows, **tune))
    message = str(caught.value)
    assert "\n" not in message and "Received: " in message and message.startswith("config.tune.space")
    return message


def test_a_space_is_read_as_the_fields_hold_it():
    space = parse_space(
        config_of(
            KL_WEIGHT,
            ("train.channels,budget.channels", "int", 8, 24, 4),
            ("train.drop_path_rate", "float", 0, 0.3),
            ("search.mixing", "choice", "identity", "average"),
            ("data.flip", "choice", True, False),
        )
    )
    assert [(one.paths, one.kind, one.values, one.step) for one in space] == [
        (("search.kl_weight",), "log_float", (1e-3, 1.0), None),
        (("train.channels", "budget.channels"), "int", (8, 24), 4),
        (("train.drop_path_rate",), "float", (0.0, 0.3), None),
        (("search.mixing",), "choice", ("identity", "average"), None),
        (("data.flip",), "choice", (True, False), None),
    ]
    assert isinstance(space[2].values[0], float)


def test_a_space_survives_json():
    config = config_of(KL_WEIGHT, ("search.mixing", "choice", "identity", "average"))
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert parse_space(Config.from_dict(json.loads(json.dumps(config.to_dict())))) == parse_space(config)


def test_values_become_a_checked_configuration():
    config = config_of(("train.channels,budget.channels", "int", 8, 24, 4), ("data.flip", "choice", True, False), KL_WEIGHT)
    space = parse_space(config)
    # Keras Tuner hands booleans on as 0 and 1, and its logarithms round the ends of a range.
    values = {"train.channels,budget.channels": 12, "data.flip": 0, "search.kl_weight": 1.0000000000000002}
    drawn = configured(config, space, values)
    assert (drawn.train.channels, drawn.budget.channels, drawn.data.flip, drawn.search.kl_weight) == (12, 12, False, 1.0)
    same = replace(config, train={"channels": 12}, budget={"channels": 12}, data={"flip": False}, search={"kl_weight": 1.0})
    assert drawn == same


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("search.kl_wieght", "log_float", 1e-3, 1.0), "unknown field search.kl_wieght. Did you mean 'search.kl_weight'?"),
        (("kl_weight", "log_float", 1e-3, 1.0), "unknown field kl_weight. Did you mean 'search.kl_weight'?"),
        (("train.channels,train.celss", "int", 3, 8), "unknown field train.celss. Did you mean 'train.cells'?"),
        (("budget.macs", "float", 1e6, 2e6), "budget.macs cannot be tuned."),
        (("data.holdout_fraction", "float", 0.1, 0.2), "data.holdout_fraction cannot be tuned."),
        (("seed", "int", 0, 3), "seed cannot be tuned."),
        (("train.channels", "int", 8, 8), "the range of train.channels is empty. Expected low below high."),
        (("search.kl_weight", "float", 1.0, 0.1), "the range of search.kl_weight is empty."),
        (("search.kl_weight", "log_float", 0, 1.0), "a log range cannot hold 0 or less, as that of search.kl_weight."),
        (("search.initial_log_dropout_rate", "log_float", -5.0, 1.0), "a log range cannot hold 0 or less"),
        (("train.drop_path_rate", "float", 0.0, 1.5), "train.drop_path_rate must be at most 0.99. Received: 1.5"),
        (("train.channels", "int", 1, 8), "train.channels must be at least 2. Received: 1"),
        (("train.channels", "float", 8, 16), "train.channels is of type int."),
        (("train.learning_rate", "int", 1, 2), "train.learning_rate is of type float."),
        (("train.channels", "log_float", 8.0, 16.0), "train.channels must be of type int."),
        (("train.channels", "int", 8, 16, 0), "the step of train.channels must be above 0 and at most 8, an integer."),
        (("train.channels", "int", 8, 16, 9), "the step of train.channels must be above 0 and at most 8, an integer."),
        (("train.learning_rate", "log_float", 0.01, 0.1, 1.0), "the step of train.learning_rate must be above 1 and at most 10."),
        (("train.learning_rate", "float", 0.01, float("nan")), "a range must be low, high and, if any, a step, finite numbers."),
        (("train.learning_rate", "float", 0.01), "a range must be low, high and, if any, a step, finite numbers."),
        (("train.learning_rate", "float", 0.01, 0.1, 0.01, 3), "a range must be low, high"),
        (("search.mixing", "choice", "identity"), "a choice needs at least two values, each once."),
        (("search.mixing", "choice", "identity", "identity"), "a choice needs at least two values, each once."),
        (("search.mixing", "choice", "identity", "averge"), "search.mixing. Did you mean 'average'?"),
        (("search.mixing,train.schedule", "choice", "identity", "cosine"), "Expected one of"),
        (("train.channels,train.learning_rate", "choice", 8, 16), "fields that share a value must be of one type."),
        (("search.kl_weight", "log", 1e-3, 1.0), "the kind one of choice, int, float, log_float. Did you mean 'log_float'?"),
        (("search.kl_weight", "log_float"), "a row of config.tune.space must be (path of a field, kind, values…)"),
        ("search.kl_weight", "a row of config.tune.space must be"),
    ],
)
def test_a_wrong_row_is_refused_by_name(row, expected):
    with pytest.raises(ConfigError) as caught:
        parse_space(config_of(row))
    assert expected in str(caught.value) and "Received: " in str(caught.value)


def test_an_empty_space_and_a_field_twice_are_refused():
    assert "must name at least one field" in refusal()
    assert "must name a field once. Received: search.kl_weight 2 times" in refusal(KL_WEIGHT, ("search.kl_weight", "choice", 0.1, 0.2))


def test_what_the_tuner_or_the_objective_sets_cannot_be_drawn_too():
    row = ("train.epochs", "int", 2, 8)
    assert len(parse_space(config_of(row))) == 1
    assert "train.epochs is set by tune.tuner hyperband" in refusal(row, tuner="hyperband")
    assert "train.epochs is set by tune.objective short_accuracy" in refusal(row, objective="short_accuracy")
    assert "with tune.genotype nothing is searched" in refusal(KL_WEIGHT, genotype="PDARTS")


def test_a_grid_needs_steps():
    assert "tune.tuner grid needs a step for search.kl_weight, or a choice." in refusal(KL_WEIGHT, tuner="grid")
    (one,) = parse_space(config_of((*KL_WEIGHT, 10), tuner="grid"))
    assert one.step == 10


def test_values_that_do_not_go_together_are_refused_before_the_first_trial():
    row = ("search.warmup_epochs", "int", 0, 60)
    assert "search.warmup_epochs must be less than search.epochs" in refusal(row)
    assert "search.warmup_epochs=60" in refusal(row)
    many = [(f"search.{name}", "float", 0.1, 0.2) for name in ("learning_rate", "weight_decay", "momentum", "kl_weight", "cost_scale")]
    many += [(f"train.{name}", "float", 0.1, 0.2) for name in ("learning_rate", "weight_decay", "momentum", "drop_path_rate", "ema_decay")]
    assert len(parse_space(config_of(*many, ("train.epochs", "int", 5, 9)))) == 11  # 2,048 corners, of which some are checked
    assert "search.warmup_epochs must be less" in refusal(*many, row)


def test_every_tunable_field_is_one_of_the_configuration():
    for path in TUNABLE:
        section, name = path.split(".")
        assert name in {field.name for field in dataclasses.fields(type(getattr(Config(), section)))}
