import pytest

from sivdnas_tf.config import DERIVATION_RULES, Config, replace
from sivdnas_tf.errors import ConfigError
from sivdnas_tf.methods.registry import METHODS, get_method


def test_the_methods_are_those_of_the_paper_and_random():
    assert list(METHODS) == ["si_vdnas", "h_vdnas", "v_vdnas", "darts_first", "darts_second", "random"]
    assert all(name == method.name for name, method in METHODS.items())
    assert Config().search.method == "si_vdnas"


def test_every_method_has_a_rule_of_its_own_that_exists():
    rules = {name: method.rule for name, method in METHODS.items()}
    assert rules == {
        "si_vdnas": "budget",
        "h_vdnas": "budget",
        "v_vdnas": "darts",
        "darts_first": "darts",
        "darts_second": "darts",
        "random": "redraw",
    }
    for method in METHODS.values():
        assert set(method.rules) <= set(DERIVATION_RULES)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean 'h_vdnas'\? Expected one of si_vdnas, .* Received: 'h-vdnas'"):
        get_method("h-vdnas")
    with pytest.raises(ConfigError, match=r"config.search.method. Did you mean 'darts_first'\?"):
        replace(Config(), search={"method": "dart_first"})


@pytest.mark.parametrize("name", METHODS)
def test_one_switch_is_all_it_takes(name):
    config = replace(Config(), search={"method": name, "kl_weight": 0.3, "prior_gap_decay": 0.5, "initial_log_dropout_rate": -3.0})
    orders = {"darts_second": 2}
    assert get_method(name).hypergradient_order_in(config.search) == orders.get(name, 1)
    assert get_method(name).mixing_in(config.search) == ("softmax" if name.startswith("darts") else "identity")
    replace(Config(), search={"method": name, "mixing": "softmax"})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "darts_first",
            {"hypergradient_order": 2},
            "order 1, or the method darts_second. Received: search.hypergradient_order=2",
        ),
        ("darts_first", {"mixing": "sigmoid"}, "mixes by softmax. Expected search.mixing softmax or the default. Received: .*'sigmoid'"),
        ("darts_second", {"mixing": "average"}, "mixes by softmax"),
        ("darts_second", {"precision": "mixed_float16"}, "takes a finite difference, which needs search.precision float32"),
        ("darts_first", {"noise_in": "architecture"}, "darts_first draws no noise. Expected search.noise_in both"),
        ("h_vdnas", {"hypergradient_order": 2, "precision": "mixed_bfloat16"}, "needs search.precision float32"),
        ("darts_first", {"noise_shape": "cell"}, "draws no noise. Expected search.noise_shape operation. Received: .*'cell'"),
        ("darts_first", {"cost_scale": 1.0}, "Expected search.cost_scale 0. Received: search.cost_scale=1.0"),
        ("v_vdnas", {"cost_scale": 0.5}, "does not derive by keep probabilities, which it steers"),
    ],
)
def test_a_setting_that_contradicts_the_method_is_refused_in_one_line(method, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        replace(Config(), search={"method": method, **settings})
    assert "\n" not in str(caught.value) and "Received: search." in str(caught.value)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("h_vdnas", {"noise_shape": "example", "hypergradient_order": 2, "cost_scale": 1.0, "mixing": "average"}),
        ("v_vdnas", {"noise_shape": "cell", "mixing": "sigmoid", "hypergradient_order": 2}),
        ("darts_second", {"hypergradient_order": 2, "mixing": "softmax"}),
        ("si_vdnas", {"gate_gradient": "relaxed", "noise_shape": "cell", "cost_scale": 1.0, "hypergradient_order": 2}),
    ],
)
def test_settings_that_a_method_has_are_taken(method, settings):
    assert replace(Config(), search={"method": method, **settings}).search.method == method
