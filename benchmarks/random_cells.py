"""Random genotypes of about a given cost, to hold searched ones against: written as JSON files, and a JSON line each.

    python benchmarks/random_cells.py --config=configs/cifar10_small.py --output=DIR

Draws of the search method "random" (sivdnas_tf/random_search.py); what costs more than the configuration's budget, or less than --share
of it, is drawn again.
"""

import argparse
import importlib.util
import json
import pathlib

from sivdnas_tf.config import Config
from sivdnas_tf.derive import derive
from sivdnas_tf.errors import BudgetError
from sivdnas_tf.random_search import uniform_posterior
from sivdnas_tf.search_space import get_search_space


def arguments():
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="configuration file, for its budget")
    parser.add_argument("--output", required=True, help="directory of the genotypes")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.95, help="least cost, as a share of the budget")
    return parser.parse_args()


def read_config(path):
    """The `Config` of a configuration file."""
    spec = importlib.util.spec_from_file_location("configuration", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Config.from_dict(module.get_config().to_dict())


def main():
    """Draws until there are enough, with seeds 0, 1, 2, …"""
    options = arguments()
    config = read_config(options.config)
    posterior, output = uniform_posterior(get_search_space(config.search.search_space)), pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    found, seed = 0, -1
    while found < options.count:
        seed += 1
        try:
            derivation = derive(posterior, rule="sample", seed=seed, budget=config.budget, name=f"random_{found}")
        except BudgetError:
            continue
        cost = derivation.details["cost"]
        if cost["macs"] < options.share * config.budget.macs:
            continue
        path = output / f"random_{found}.json"
        path.write_text(derivation.genotype.to_json(), encoding="utf-8")
        found += 1
        edges = {cell: len(getattr(derivation.genotype, cell).edges) for cell in ("normal", "reduction")}
        print(json.dumps({"path": str(path), "seed": seed, "macs": cost["macs"], "params": cost["params"], "operations": edges}))


if __name__ == "__main__":
    main()
