"""How long `profile` takes from the start of a process, and whether it imported TensorFlow; one JSON line a case.

    python benchmarks/profile_speed.py [--runs=5]

Cases: one published cell in each network, every cell of the zoo with what fits (`--fit`), and 100 genotype files in one call. Each run is
a fresh process; `seconds` is the median of their wall times, the interpreter's start included, `slowest_seconds` the longest. The files
hold random cells of every operation that an evaluation network has, one or two operations into each of four nodes.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.search_space import DARTS_OPERATIONS
from sivdnas_tf.zoo import registry

FILES = 100
# Says last, on standard error, whether any of them was imported.
_CHILD = (
    "import sys\nfrom sivdnas_tf.__main__ import main\ncode = main(['sivdnas_tf', *sys.argv[1:]])\n"
    "print([name for name in ('tensorflow', 'keras', 'tensorflow_probability') if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
)


def random_cell(generator):
    """Four nodes, each of one or two operations on any of the tensors before it."""
    edges = [
        Edge(node, int(generator.integers(node)), str(generator.choice(DARTS_OPERATIONS)))
        for node in range(2, 6)
        for _ in range(generator.integers(1, 3))
    ]
    return Cell(tuple(edges), (2, 3, 4, 5))


def write_files(directory):
    """Writes the genotype files; returns their paths."""
    generator, paths = np.random.default_rng(0), []
    for index in range(FILES):
        paths.append(pathlib.Path(directory) / f"random_{index}.json")
        genotype = Genotype(f"random_{index}", random_cell(generator), random_cell(generator))
        paths[-1].write_text(genotype.to_json(), encoding="utf-8")
    return paths


def measure(case, arguments, rows, runs):
    """A case as a dict: each run must print `rows` JSON lines."""
    seconds, imported = [], set()
    for _ in range(runs):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", _CHILD, "profile", *arguments, "--json"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        if len(done.stdout.splitlines()) != rows:
            raise RuntimeError(f"profile must print {rows} lines. Received: {len(done.stdout.splitlines())}")
        imported.add(done.stderr.splitlines()[-1])
    return {
        "case": case,
        "genotypes": rows,
        "runs": runs,
        "seconds": round(statistics.median(seconds), 3),
        "slowest_seconds": round(max(seconds), 3),
        "tensorflow_imported": imported != {"[]"},
    }


def main():
    """Prints the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="processes a case")
    runs, zoo = parser.parse_args().runs, registry.names()
    with tempfile.TemporaryDirectory() as directory:
        files = ",".join(map(str, write_files(directory)))
        for case, arguments, rows in (
            ("one cell, cifar", ["--genotype=DARTS_V2", "--network=cifar"], 1),
            ("one cell, imagenet", ["--genotype=DARTS_V2", "--network=imagenet"], 1),
            ("the zoo, imagenet, --fit", [f"--genotype={','.join(zoo)}", "--network=imagenet", "--fit"], len(zoo)),
            ("files, cifar", [f"--genotype={files}", "--network=cifar"], FILES),
            ("files, imagenet", [f"--genotype={files}", "--network=imagenet"], FILES),
        ):
            print(json.dumps(measure(case, arguments, rows, runs)), flush=True)


if __name__ == "__main__":
    main()
