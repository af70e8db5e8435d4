import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from sivdnas_tf import config as config_module
from sivdnas_tf.config import BudgetConfig, Config, SearchConfig, replace
from sivdnas_tf.errors import ConfigError

SECTIONS = {field.name: field.type for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)}
FIELDS = [
    *((section, field) for section, cls in SECTIONS.items() for field in dataclasses.fields(cls)),
    *((None, field) for field in dataclasses.fields(Config) if not dataclasses.is_dataclass(field.type)),
]
IDS = [f"{section}.{field.name}" for section, field in FIELDS]


def build(section, name, value):
    return Config.from_dict({section: {name: value}} if section else {name: value})


def refusal(values):
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(values)
    message = str(caught.value)
    assert "\n" not in message and "Received: " in message
    assert caught.value.exit_code == 2
    return message


def test_defaults_are_valid_and_survive_a_round_trip():
    assert Config.from_dict({}) == Config()
    assert Config.from_dict(json.loads(json.dumps(Config().to_dict()))) == Config()


def test_every_default_passes_its_own_checks():
    values = Config().to_dict()
    assert set(values) == {field.name for field in dataclasses.fields(Config)}
    for section in SECTIONS:
        assert Config.from_dict({section: values[section]}) == Config()


def test_changed_fields_survive_a_round_trip():
    values = {
        "seed": 3,
        "deterministic": True,
        "data": {"name": "cifar10", "flip": False, "holdout_fraction": 0.2},
        "search": {"epochs": 20, "warmup_epochs": 5, "mixing": "softmax", "kl_weight": 0},
        "budget": {"macs": 3e8, "convention": "macs_ptflops"},
        "export": {"formats": ["onnx"]},
    }
    config = Config.from_dict(values)
    assert config.export.formats == ("onnx",)
    assert config.search.kl_weight == 0.0 and isinstance(config.search.kl_weight, float)
    assert config.budget.macs == 3e8
    assert config.search.channels == SearchConfig().channels
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_dict_is_read():
    config = Config.from_dict(ConfigDict({"seed": 1, "search": {"epochs": 30}, "export": {"formats": ("tflite", "onnx")}}))
    assert (config.seed, config.search.epochs, config.export.formats) == (1, 30, ("tflite", "onnx"))


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


@pytest.mark.parametrize(
    "values, message",
    [
        ({"serach": {}}, "unknown field config.serach. Did you mean 'search'?"),
        ({"search": {"epoch": 3}}, "unknown field config.search.epoch. Did you mean 'epochs'? Expected one of search_space, channels"),
        ({"search": {"zzz": 3}}, "unknown field config.search.zzz. Expected one of"),
        ({"budget": {"mac": 1}}, "Did you mean 'macs'?"),
        ({1: 2}, "unknown field config.1."),
    ],
)
def test_an_unknown_field_names_the_nearest(values, message):
    assert message in refusal(values)


@pytest.mark.parametrize("values", [None, 3, [], "search"])
def test_values_that_are_no_mapping(values):
    assert "config must hold the fields seed" in refusal(values)
    assert "config.search must hold the fields search_space" in refusal({"search": values})


WRONG = {
    int: ["3", 3.0, True, None, [3]],
    float: ["0.1", True, None, float("nan"), float("inf"), 10**400, [0.1]],
    bool: [1, 0, "true", None],
    str: [3, None, True, ["digits"]],
    tuple: ["onnx", None, 3, {"onnx": 1}],
}


@pytest.mark.parametrize("section, field", FIELDS, ids=IDS)
def test_every_field_refuses_the_wrong_types(section, field):
    path = f"config.{section}.{field.name}" if section else f"config.{field.name}"
    for value in WRONG[field.type]:
        assert path in refusal({section: {field.name: value}} if section else {field.name: value})


@pytest.mark.parametrize("section, field", FIELDS, ids=IDS)
def test_every_bound_of_every_field_holds(section, field):
    rules = {key: rule for key, rule in field.metadata.items() if rule is not None}
    step = 1 if field.type is int else 1e-6
    wrong = []
    if "low" in rules:
        wrong.append((field.type(rules["low"] - step), f"must be at least {rules['low']}"))
    if "above" in rules:
        wrong.append((field.type(rules["above"]), f"must be above {rules['above']}"))
    if "high" in rules:
        wrong.append((field.type(rules["high"] + step), f"must be at most {rules['high']}"))
    if "choices" in rules:
        wrong.append((("fax",) if field.type is tuple else "fax", "Expected one of"))
    for value, message in wrong:
        assert message in refusal({section: {field.name: value}} if section else {field.name: value})
    if field.type in (int, float) and not (section == "search" and "epochs" in field.name):
        for rule in ("low", "high"):  # the bound itself is inside
            if rule in rules:
                assert build(section, field.name, field.type(rules[rule])) is not None
    assert field.type not in (int, float) or rules  # a number without a bound is an oversight


def test_numbers_are_bounded_from_below():
    for section, field in FIELDS:
        if field.type in (int, float):
            assert field.metadata["low"] is not None or field.metadata["above"] is not None, (section, field.name)


def test_choices_name_the_nearest():
    assert "config.budget.network. Did you mean 'imagenet'? Expected one of cifar, imagenet, nasbench201." in refusal(
        {"budget": {"network": "imagnet"}}
    )
    assert "Did you mean 'onnx'?" in refusal({"export": {"formats": ["saved_model", "onx"]}})
    for formats in ([], ["onnx", "onnx"], [3], [["onnx"]]):
        refusal({"export": {"formats": formats}})
    for network in ("cifar", "imagenet"):
        assert Config.from_dict({"budget": {"network": network}}).budget.network == network


def test_networks_are_built_of_cells_of_the_space_that_is_searched():
    whole = {
        "search": {"search_space": "nasbench201"},
        "budget": {"network": "nasbench201"},
        "train": {"network": "nasbench201", "auxiliary_weight": 0.0},
    }
    assert Config.from_dict(whole).train.network == "nasbench201"
    for section, expected in (("budget", "nasbench201"), ("train", "nasbench201")):
        text = refusal({**whole, section: {**whole[section], "network": "cifar"}})
        assert f"{section}.network must be built of cells of search.search_space nasbench201: {expected}. Received" in text
    text = refusal({**whole, "search": {"search_space": "darts"}})
    assert "budget.network must be built of cells of search.search_space darts: cifar or imagenet. Received" in text
    text = refusal({**whole, "train": {**whole["train"], "auxiliary_weight": 0.4}})
    assert text.endswith("Expected train.auxiliary_weight 0. Received: train.auxiliary_weight=0.4")


def test_a_search_must_update_its_architecture():
    assert "Received: warmup_epochs=3, epochs=3" in refusal({"search": {"epochs": 3, "warmup_epochs": 3}})
    assert Config.from_dict({"search": {"epochs": 3, "warmup_epochs": 2}}).search.epochs == 3


def test_a_warmup_of_the_learning_rate_ends_before_the_training():
    assert "train.warmup_epochs=2, train.epochs=2" in refusal({"train": {"warmup_epochs": 2, "epochs": 2}})
    assert build("train", "warmup_epochs", 599).train.warmup_epochs == 599


def test_given_statistics_are_numbers_for_each_channel():
    data = Config.from_dict({"data": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}).data
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert Config.from_dict({"data": {"mean": [0], "std": [1]}}).data.mean == (0,)
    for values in ({"mean": [0.5]}, {"std": [0.5]}, {"mean": [0.5], "std": [0.5, 0.5]}, {"mean": [0.5], "std": [0]}):
        assert "data.mean and data.std must have as many numbers, those of data.std above 0. Received: data.mean=(" in refusal(
            {"data": values}
        )
    for values in ({"mean": ["a"], "std": [1]}, {"mean": [float("nan")], "std": [1]}, {"mean": [[1]], "std": [1]}):
        assert "data.mean must be a finite number for each channel" in refusal({"data": values})


def test_a_search_reads_its_images_in_memory():
    config_module.check_searchable(Config())
    with pytest.raises(
        ConfigError, match=r"^a search reads its images in memory.* Expected data.streaming=False. Received: data.streaming=True"
    ):
        config_module.check_searchable(replace(Config(), data={"streaming": True}))


def test_replace_changes_fields_and_validates():
    config = replace(Config(), seed=7, search={"epochs": 20}, export={"formats": ("onnx",)})
    assert (config.seed, config.search.epochs, config.search.warmup_epochs, config.export.formats) == (7, 20, 15, ("onnx",))
    assert replace(config, search={"channels": 4}).search.epochs == 20
    assert replace(config) == config
    for sections in ({"search": {"epochs": 3}}, {"search": {"epoch": 3}}, {"serach": {"epochs": 30}}, {"seed": {"a": 1}}, {"search": 3}):
        with pytest.raises(ConfigError, match="Received: "):
            replace(config, **sections)


def test_every_field_is_documented():
    for cls in (Config, *SECTIONS.values()):
        for field in dataclasses.fields(cls):
            assert field.name in cls.__doc__, f"{cls.__name__}.{field.name}"


def test_the_budget_is_the_papers_mobile_setting():
    budget = BudgetConfig()
    assert (budget.network, budget.channels, budget.cells, budget.resolution, budget.macs) == ("imagenet", 48, 14, 224, 600e6)
    assert config_module.DeriveConfig().rule == "budget"


def test_a_second_optimizer_of_the_architecture_needs_no_loss_scaling():
    search = {"dropout_rate_learning_rate": 0.1}
    assert Config.from_dict({"search": {**search, "precision": "mixed_bfloat16"}}).search.dropout_rate_learning_rate == 0.1
    text = refusal({"search": {**search, "precision": "mixed_float16"}})
    assert text.endswith("Expected 0, or another search.precision. Received: search.dropout_rate_learning_rate=0.1")
