"""Genotypes by name: published ones, with what their papers print and what the reference networks count, and some that were searched here.

Imports no TensorFlow.

genotypes.json holds, for each name: `genotype` (schema 1), `source` (repository and file), `published` (figures of papers and
READMEs, some in conventions that nobody can reproduce), `counts` (params, macs, macs_ptflops of the two reference networks, exact) and,
where the authors' own network differs from those, a `note`. searched.json holds the same for cells that this repository searched, with
nothing published: `searched` says how (command, rule, the search's end), `measured` what came of a training by the same command.
"""

import copy
import functools
import importlib.resources
import json
import os
import sys

from sivdnas_tf import darts_genotype
from sivdnas_tf.errors import GenotypeError, nearest
from sivdnas_tf.genotype import Genotype


@functools.cache
def _architectures():
    directory, found = importlib.resources.files("sivdnas_tf.zoo"), {}
    for file in ("genotypes.json", "searched.json"):
        found |= json.loads(directory.joinpath(file).read_text(encoding="utf-8"))["architectures"]
    return found


def names():
    """Names of all genotypes, in the order of the files: published ones first."""
    return tuple(_architectures())


def entry(name):
    """The entry `name`: a dict with genotype, source, published, counts and perhaps note, searched, measured; the caller's own copy.

    Raises:
      GenotypeError: for an unknown name, naming the nearest.
    """
    if name not in _architectures():
        raise GenotypeError(f"unknown genotype.{nearest(name, names())} Expected one of {', '.join(names())}. Received: {name!r}")
    return copy.deepcopy(_architectures()[name])


@functools.cache
def load(name):
    """The `Genotype` called `name`; raises `GenotypeError` for an unknown name."""
    return Genotype.from_dict(entry(name)["genotype"])


def resolve(name_or_path, say=lambda line: None):
    """The genotype that a command line names: a name of the zoo, or else a file (`./NAME` where both exist).

    Args:
      name_or_path: text or a path; a file is of schema 1, or of a form that `darts_genotype` converts. Text that begins with "|" is
        NAS-Bench-201's string of a cell.
      say: function of the line that says what was converted; not called for a name, or for a file of schema 1.

    Returns:
      A `Genotype`.

    Raises:
      GenotypeError: where it is neither, naming the nearest name of the zoo, or where the file is refused.
    """
    text = os.fspath(name_or_path)
    if text in _architectures():
        return load(text)
    if text.startswith("|"):
        return Genotype.from_architecture_string(text)
    if not os.path.exists(text):
        raise GenotypeError(
            f"unknown genotype: the zoo has none of this name, and no file of this name exists.{nearest(text, names())} "
            f"Expected a file or one of {', '.join(names())}. Received: {text!r}"
        )
    genotype, converted = darts_genotype.load(text)
    if converted:
        say(converted)
    return genotype


def say_converted(lines):
    """Says what `resolve` converted on standard error: standard output may be JSON lines."""
    for line in lines:
        print(f"sivdnas_tf: {' '.join(line.splitlines())}", file=sys.stderr)
