"""The searches behind docs/ablation.md on real CIFAR-10, a JSON line each in benchmarks/ablation.jsonl.

    python benchmarks/ablation.py --list                                  # what there is to run, and what is done
    python benchmarks/ablation.py --workdir=DIR --data_dir=DATA           # all that has no line yet, in order
    python benchmarks/ablation.py --workdir=DIR --data_dir=DATA --only='1/*' --jobs=2
    python benchmarks/ablation_page.py                                    # tables and plots from the lines

A run is commands of `python -m sivdnas_tf`, as its line records them: search and derive, train and evaluate where the cell is trained, each
in a process with one thread, so that --jobs of them share the cores. What was interrupted continues: a finished run has a line, a half one
its directory. Question 5 trains the cells that question 1's lines have: a second call trains what the first one found. DATA holds a
prepared TFDS cifar10.
"""

import argparse
import concurrent.futures
import dataclasses
import fnmatch
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

from sivdnas_tf.config import Config
from sivdnas_tf.methods.registry import get_method
from sivdnas_tf.profiling.costs import deployed_cost
from sivdnas_tf.run_dir import RunDir, read_json

LINES = pathlib.Path(__file__).with_suffix(".jsonl")
_ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
# What a line keeps of search/metrics.jsonl, a list over the epochs each.
_CURVES = (
    *("loss", "accuracy", "architecture_loss", "architecture_accuracy", "expected_operations", "expected_macs", "mean_entropy"),
    *("mode_operations", "skip_share", "weightless_share", "findings"),
)
_DERIVED = ("rule", "threshold", "raised", "architecture_string")

_METHODS = ("si_vdnas", "h_vdnas", "v_vdnas", "darts_first", "darts_second")
_BENCHMARK = "configs/nasbench201_cifar10.py"
# Settings that the configuration took over from these runs are off in the base that others are held against.
_BASE = {_BENCHMARK: {"search.kl_until_budget": False, "budget.macs": 200e6}}
# The configuration's own budget, that every cell meets: DARTS' rule cannot prune to a smaller one.
_ALL_FIT = {"budget.macs": 230e6}
_UNTIL_BUDGET = {"search.kl_until_budget": True}
_PAPER = {"search.normalize_skips": False, "search.gate_gradient": "none"}
# The DARTS space at a size at which a search takes minutes on one core, and a training too. Cells at the budget have 15 to 31 operations.
_SMALL = {
    "data.resolution": 16,
    "search.resolution": 0,
    "search.channels": 4,
    "search.epochs": 10,
    "search.warmup_epochs": 3,
    "search.steps_per_epoch": 45,
    "search.architecture_learning_rate": 0.025,
    "search.kl_weight": 0.003,
    "train.channels": 8,
    "train.epochs": 2,
    "budget.channels": 8,
    "budget.resolution": 16,
    "budget.macs": 1.6e6,
}
# Those of 0, 1, 2, … whose random cell costs at least 0.95 of that budget, about as much as searched cells do.
_RANDOM_SEEDS = (13, 22, 35, 37, 46)
# NAS-Bench-201's network at the width and depth of the searched supernet.
_TRAINED = {"train.channels": 8, "train.cells": 3, "train.epochs": 2, "train.batch_size": 64, "train.learning_rate": 0.05}
# Those of 0, 1, 2, … whose random cell there costs at least 110e6. Most searched cells cost 149e6 to 220e6.
_RANDOM_BENCHMARK_SEEDS = (4, 13, 17, 20)
# 3x3 convolutions and one skip connection, from input to output: what the long DARTS search of question 3 found with seed 1.
_REFERENCE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


@dataclasses.dataclass(frozen=True)
class Run:
    """A search, and what is made of it; or a cell that is trained without one.

    Attributes:
      question: of docs/ablation.md, 1 to 5.
      name: what differs from the configuration, for tables; of a given cell, its architecture string.
      seed: of everything, the derivation's draws included.
      config: file of the configuration.
      fields: configuration field -> value.
      trains: whether the cell is trained and evaluated; a given one must be.
      best_of: whether rule best_of derives a cell too, after the method's own rule.
      search_of: key of a run whose search, which differs in nothing but the budget, this one takes a copy of, so that its own `search`
        command finds it done. What looks wrong with a search depends on the budget, and is left out of the line.
      genotype: architecture string of a cell that is trained and evaluated in place of a searched one.
    """

    question: int
    name: str
    seed: int
    config: str = _BENCHMARK
    fields: dict = dataclasses.field(default_factory=dict)
    trains: bool = False
    best_of: bool = False
    search_of: str = ""
    genotype: str = ""

    @property
    def key(self):
        """`1/si_vdnas/0`: the same for the same run."""
        return f"{self.question}/{self.name}/{self.seed}"

    def directory(self, workdir, key=None):
        """Where in `workdir` this run, or the one of another key, has its files."""
        return pathlib.Path(workdir) / re.sub(r"[^\w.]+", "_", key or self.key)

    def commands(self, workdir, data_dir):
        """The arguments of `python -m sivdnas_tf`, a list a command."""
        values = {**_BASE.get(self.config, {}), **self.fields, "seed": self.seed, "derive.seed": self.seed}
        overrides = [f"--config={self.config}", f"--config.data.data_dir={data_dir}"]
        overrides += [f"--config.{field}={value}" for field, value in values.items()]
        located = [f"--workdir={workdir}"]
        if self.genotype:
            yield ["train", *overrides, *located, f"--genotype={self.genotype}"]
            yield ["evaluate", *located]
            return
        yield ["search", *overrides, *located]
        # Overwritten, where the second rule derives again: what was interrupted between them then goes on.
        yield ["derive", *located, *(["--overwrite"] if self.best_of else [])]
        if self.best_of:
            yield ["derive", *located, "--overwrite", "--rule=best_of"]
        if self.trains:
            yield ["train", *overrides, *located]
            yield ["evaluate", *located]


def runs():
    """All runs, in the order in which they are made."""
    of_methods = [
        Run(1, method, seed, fields={"search.method": method, **_budget(method)}, best_of=method == "si_vdnas")
        for seed in range(3)
        for method in _METHODS
    ]
    of_methods += [Run(1, "si_vdnas, the configuration as it is", seed, fields={**_UNTIL_BUDGET, **_ALL_FIT}) for seed in range(3)]
    of_methods += [Run(1, "si_vdnas as in the paper", seed, fields=_PAPER) for seed in range(3)]
    of_methods += [Run(1, "si_vdnas, kl_until_budget", seed, fields=_UNTIL_BUDGET) for seed in range(3)]
    # The annealing ends about where that of the short search does: 0.95^8 and 0.983^28 after the warm-up.
    longer = {"search.epochs": 30, "search.prior_gap_decay": 0.983}
    long = [
        Run(3, f"{method}, three times as long", seed, fields={"search.method": method, **longer, **_budget(method)})
        for seed in range(2)
        for method in ("si_vdnas", "darts_first")
    ]
    long += [Run(3, "si_vdnas, kl_until_budget, three times as long", seed, fields={**longer, **_UNTIL_BUDGET}) for seed in range(2)]
    one_factor = {
        "kl_weight 0.01": {"search.kl_weight": 0.01},
        "kl_weight 0.1": {"search.kl_weight": 0.1},
        "log delta -3": {"search.initial_log_dropout_rate": -3.0},
        "log delta -7": {"search.initial_log_dropout_rate": -7.0},
        "prior_gap_decay 0.8": {"search.prior_gap_decay": 0.8},
        "prior_gap_decay 1": {"search.prior_gap_decay": 1.0},
        "mixing average": {"search.mixing": "average"},
        "mixing sigmoid": {"search.mixing": "sigmoid"},
        "mixing softmax": {"search.mixing": "softmax"},
        "gate_gradient none": {"search.gate_gradient": "none"},
        "normalize_skips off": {"search.normalize_skips": False},
        "kl_centered": {"search.kl_centered": True},
        "kl_until_budget, a budget of 120M": {**_UNTIL_BUDGET, "budget.macs": 120e6},
    }
    factors = [Run(4, name, 0, fields=fields) for name, fields in one_factor.items()]
    small = [Run(2, method, seed, "configs/cifar10_small.py", _small(method), trains=True) for seed in range(2) for method in _METHODS]
    # Nothing that the posterior draws costs as little as the budget: with one that all draws meet, `mode` stands beside the best of them.
    # Rule darts tells whether it is the search or the rule that makes the difference to DARTS.
    again = {"mode, 6M": ("mode", 6e6), "best_of, 6M": ("best_of", 6e6), "rule darts": ("darts", 3e6)}
    for seed in range(2):
        for name, (rule, macs) in again.items():
            fields = {**_SMALL, "budget.macs": macs, "derive.rule": rule}
            source = f"2/si_vdnas/{seed}"
            small.append(Run(2, f"si_vdnas, {name}", seed, "configs/cifar10_small.py", fields, trains=True, search_of=source))
    random = [
        Run(2, "random", seed, "configs/cifar10_small.py", {**_SMALL, "search.method": "random"}, trains=True) for seed in _RANDOM_SEEDS
    ]
    return [*of_methods, *long, *factors, *small, *random, *_trained_cells()]


def _trained_cells():
    """Question 1's cells, `best_of`'s too, as far as there are lines; random cells; the reference with three seeds."""
    found = {_REFERENCE}
    for line in read_lines().values():
        if line["question"] == 1:
            found |= {line["architecture_string"], line.get("best_of", line)["architecture_string"]}
    seeded = [*((cell, 0) for cell in sorted(found)), (_REFERENCE, 1), (_REFERENCE, 2)]
    fields = {**_TRAINED, **_ALL_FIT}
    cells = [Run(5, cell, seed, fields=fields, trains=True, genotype=cell) for cell, seed in seeded]
    random = {**fields, "search.method": "random"}
    return [*cells, *(Run(5, "random", seed, fields=random, trains=True) for seed in _RANDOM_BENCHMARK_SEEDS)]


def _budget(method):
    return _ALL_FIT if get_method(method).rule == "darts" else {}


def _small(method):
    """`_SMALL` for a method: cifar10_small.py averages, which contradicts DARTS' softmax; DARTS' rule keeps cells of up to 2.91e6 macs."""
    mixing = {"search.mixing": "softmax"} if method.startswith("darts") else {}
    budget = {"budget.macs": 3e6} if get_method(method).rule == "darts" else {}
    return {**_SMALL, "search.method": method, **mixing, **budget}


def read_lines():
    """Key of a run -> its line."""
    if not LINES.exists():
        return {}
    entries = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    return {entry["key"]: entry for entry in entries}


def execute(run, workdir, data_dir):
    """Runs the commands, each from where it was interrupted; returns the run's line."""
    path, derived = run.directory(workdir), {}
    if run.search_of and not path.exists():
        _copy_search(run.directory(workdir, run.search_of), path)
    for command in run.commands(path, data_dir):
        result = subprocess.run(
            [sys.executable, "-m", "sivdnas_tf", *command], env=os.environ | _ONE_THREAD, capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"{run.key}: {command[0]} ended with {result.returncode}: {result.stderr.strip()[-500:]}")
        if command[0] == "derive":
            key = "best_of" if "--rule=best_of" in command else "own"
            derived[key] = read_json(path / "derive.json"), RunDir(path, create=False).read_genotype()
    own = _as_given(RunDir(path, create=False)) if run.genotype else derived["own"]
    best_of = own if own[0].get("rule") == "best_of" else derived.get("best_of", (None, None))
    return _line(run, RunDir(path, create=False), *own) | _best_of(*best_of)


def _as_given(run_dir):
    """What derive.json would say of the genotype that the run was given, as far as a line has it; and the genotype."""
    genotype, config = run_dir.read_genotype(), Config.from_dict(read_json(run_dir.file("config.json")))
    cost = dataclasses.asdict(deployed_cost(genotype, config.budget))
    return {"cost": cost, "mode_cost": None, "architecture_string": genotype.architecture_string}, genotype


def _copy_search(source, target):
    """Makes the run directory `target` with the finished search of `source` and nothing else of it.

    Raises:
      RuntimeError: where that has not finished: another machine, or another time, would not make the same one to the last bit.
    """
    if not source.exists() or not RunDir(source, create=False).is_done("search"):
        raise RuntimeError(f"{target.name} derives from the search of another run. Expected it finished in {source}. Received: none there")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source / "search", partial / "search")
    (partial / "stages").mkdir()
    shutil.copy(source / "stages" / "search.json", partial / "stages")
    partial.rename(target)


def _best_of(derivation, genotype):
    """What a line says of rule best_of: what it returned, and what else it had to choose from."""
    if derivation is None:
        return {}
    scores = [entry["score"] for entry in derivation["candidates"]]
    return {
        "best_of": {
            "architecture_string": genotype.architecture_string,
            "macs": derivation["cost"]["macs"],
            "score": max(score for score in scores if score is not None),
            "mode_score": scores[0],
            "drawn": len(scores) - 1,
            "over_budget": scores.count(None),
            "least_macs": min(entry["macs"] for entry in derivation["candidates"]),
        }
    }


def _line(run, run_dir, derivation, genotype):
    records = run_dir.read_metrics("search")
    timed = run_dir.read_metrics("train") if run.genotype else records
    named = ["python -m sivdnas_tf " + shlex.join(command) for command in run.commands("DIR", "DATA")]
    line = {
        "key": run.key,
        "question": run.question,
        "name": run.name,
        "seed": run.seed,
        "commands": named,
        "threads": 1,
        **{field: derivation.get(field) for field in _DERIVED},
        "macs": derivation["cost"]["macs"],
        "params": derivation["cost"]["params"],
        "mode_macs": (derivation["mode_cost"] or {}).get("macs"),
        "operations": {
            cell_type: [edge.operation for edge in genotype.cell(cell_type).edges if edge.operation != "none"]
            for cell_type in genotype.cell_types
        },
        "seconds": round(sum(record["seconds"] for record in timed), 1),
        "steps": records[-1]["step"] if records else 0,
        **{name: [_rounded(record.get(name)) for record in records] for name in _CURVES},
    }
    if run.search_of:
        line.pop("findings")
    if run.trains:
        evaluation = read_json(run_dir.file("evaluation.json"))
        line |= {"test_accuracy": evaluation["top1"], "test_images": evaluation["images"]}
    return line


def _rounded(value):
    return round(value, 4) if isinstance(value, float) else value


def main():
    """Lists the runs, or makes what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", help="where the runs' directories go")
    parser.add_argument("--data_dir", default=os.environ.get("SIVDNAS_CIFAR10_DIR"), help="of a prepared TFDS cifar10")
    parser.add_argument("--only", default="*", help="pattern of keys, as --list shows them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with one thread")
    parser.add_argument("--list", action="store_true", help="show the runs and stop")
    options = parser.parse_args()
    done, wanted = read_lines(), [run for run in runs() if fnmatch.fnmatch(run.key, options.only)]
    if options.list:
        for run in wanted:
            print(f"{'done' if run.key in done else 'open'}  {run.key}")
        return
    if not options.workdir or not options.data_dir:
        parser.error("needs --workdir, and --data_dir or SIVDNAS_CIFAR10_DIR")
    waiting = [run for run in wanted if run.key not in done]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(execute, run, options.workdir, options.data_dir): run for run in waiting}
        for future in concurrent.futures.as_completed(futures):
            line = future.result()
            with LINES.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            print(f"{line['key']}: {line['architecture_string'] or line['operations']} in {line['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
