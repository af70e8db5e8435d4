"""Eight trials of settings for scikit-learn's handwritten digits, within the quickstart's budget.

python -m sivdnas_tf tune --config=configs/tune_digits.py --workdir=runs/tune_digits

"""

from configs import quickstart


def get_config():
    """The quickstart, of which the search's pressure and the training's settings are drawn."""
    config = quickstart.get_config()
    config.tune.tuner = "bayesian"
    config.tune.max_trials = 8
    config.tune.initial_points = 5
    config.tune.validation_fraction = 0.2
    config.tune.space = (
        ("search.kl_weight", "log_float", 0.005, 0.5),
        ("search.mixing", "choice", "identity", "average"),
        ("search.architecture_learning_rate", "log_float", 0.02, 0.3),
        ("train.channels,budget.channels", "int", 12, 24, 4),
        ("train.learning_rate", "log_float", 0.01, 0.3),
        ("train.drop_path_rate", "float", 0.0, 0.3),
    )
    return config
