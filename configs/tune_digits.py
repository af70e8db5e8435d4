"""Eight trials of settings for scikit-learn's handwritten digits, within the quickstart's budget, on a laptop's CPU.

python -m sivdnas_tf tune --config=configs/tune_digits.py --workdir=runs/tune_digits

runs/tune_digits/tune/best_config.py is then a configuration for `run`. A trial searches as the quickstart does and trains for half as many
epochs. The eight took 44 minutes on two CPU cores, one of which other work kept busy, and found accuracies from 0.8726 to 0.9807 on the
validation images: BUILD.md, "Tuning the digits".
"""

from configs import quickstart


def get_config():
    """quickstart.py, of which the pressure and the mixing of the search, and the settings of the training, are drawn."""
    config = quickstart.get_config()
    config.tune.tuner = "bayesian"
    config.tune.initial_points = 5
    config.tune.max_trials = 8
    config.tune.objective = "short_accuracy"
    config.tune.short_epochs = 6
    config.tune.space = (
        ("search.kl_weight", "log_float", 0.005, 0.5),
        ("search.mixing", "choice", "identity", "average"),
        ("search.architecture_learning_rate", "log_float", 0.02, 0.3),
        ("train.channels,budget.channels", "int", 12, 24, 4),
        ("train.learning_rate", "log_float", 0.01, 0.3),
        ("train.drop_path_rate", "float", 0.0, 0.3),
    )
    return config
