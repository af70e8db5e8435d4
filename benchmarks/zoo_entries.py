"""Turns finished runs into entries of the zoo's searched.json, printed as JSON: genotype, how it was searched, counts, what was measured.

python benchmarks/zoo_entries.py --command="python -m sivdnas_tf run …" NAME=RUN_DIRECTORY …
"""

import argparse
import dataclasses
import json

from sivdnas_tf.config import Config
from sivdnas_tf.genotype import Genotype
from sivdnas_tf.profiling.costs import auxiliary_head_params, deployed_cost, network_cost
from sivdnas_tf.run_dir import RunDir, read_json

# The reference networks in which the zoo counts.
NETWORKS = {
    "cifar": {"network": "cifar", "channels": 36, "cells": 20, "classes": 10, "resolution": 32},
    "imagenet": {"network": "imagenet", "channels": 48, "cells": 14, "classes": 1000, "resolution": 224},
}


def entry(name, run_dir, command):
    """The entry of a run; without a trained network it has no `measured`."""
    config = Config.from_dict(read_json(run_dir.file("config.json")))
    genotype = Genotype.from_dict({**run_dir.read_genotype().to_dict(), "name": name})
    counts = {
        network: {**dataclasses.asdict(network_cost(genotype, **size)), "params_aux_head": auxiliary_head_params(genotype, **size)}
        for network, size in NETWORKS.items()
    }
    details = read_json(run_dir.file("derive.json"))
    last = run_dir.read_metrics("search")[-1]
    searched = {
        "command": command.replace("SEED", str(config.seed)),
        "rule": details["rule"],
        "threshold": details["threshold"],
        "mode_macs": details["mode_cost"]["macs"],
        "architecture_half_accuracy": last["architecture_accuracy"],
        "expected_operations": last["expected_operations"],
    }
    result = {"genotype": genotype.to_dict(), "source": "searched by this repository", "published": {}, "searched": searched}
    if run_dir.is_done("evaluate"):
        evaluation = read_json(run_dir.file("evaluation.json"))
        result["measured"] = {"split": evaluation["split"], "images": evaluation["images"], "top1": evaluation["top1"]}
        result["measured"] |= dataclasses.asdict(deployed_cost(genotype, config.budget))
    return {**result, "counts": counts}


def main():
    """Prints the entries of all runs as one object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", required=True, help="how the runs were made; SEED becomes each one's seed")
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN_DIRECTORY")
    options = parser.parse_args()
    pairs = [text.split("=", 1) for text in options.runs]
    print(json.dumps({name: entry(name, RunDir(path, create=False), options.command) for name, path in pairs}, indent=1))


if __name__ == "__main__":
    main()
