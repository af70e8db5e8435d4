"""The tables and plots of docs/ablation.md, drawn from the lines of benchmarks/ablation.jsonl.

python benchmarks/ablation_page.py            # rewrites what stands between the page's markers, and the plots beside it
python benchmarks/ablation_page.py --check    # ends with 1 where the page does not show what the lines say
"""

import argparse
import collections
import pathlib
import re
import statistics
import sys

from ablation import read_lines

from sivdnas_tf.report.curves import Series, line_chart

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "ablation.md"
_COLOURS = ("#0072b2", "#d55e00", "#00805d", "#a2447c", "#a07800", "#56606b", "#1f1f1f", "#c2a5cf")
_CURVES = {
    "skip_share": "skip connections among the operations that would be derived",
    "expected_operations": "operations expected to be kept",
    "architecture_accuracy": "accuracy on the architecture half",
}


def _last(line, name):
    """The value after the last epoch, None where there is none."""
    return next((value for value in reversed(line.get(name, [])) if value is not None), None)


def _name(line):
    return line["name"]


def _number(value, digits=2):
    return "" if value is None else f"{value:.{digits}f}"


def _cell(found):
    """The string for a table, or how many operations each cell has; of a line, or what it says of best_of."""
    cell = found["architecture_string"]
    return f"`{cell.replace('|', chr(92) + '|')}`" if cell else ", ".join(f"{kind} {len(ops)}" for kind, ops in found["operations"].items())


def _row(line):
    weightless, skips = (_number(_last(line, name)) for name in ("weightless_share", "skip_share"))
    expected, searched = (_last(line, name) for name in ("expected_operations", "expected_macs"))
    searched = None if searched is None else searched / 1e6
    return (_cell(line), f"{line['macs'] / 1e6:.1f}", _number(searched, 1), skips, weightless, _number(expected, 1), _accuracy(line))


def _accuracy(line):
    return _number(_last(line, "architecture_accuracy"), 3)


_HEADER = ("cell", "macs, M", "expected macs, M", "skips", "no weights", "expected operations", "accuracy")


def _table(header, rows):
    lines = [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def _of(lines, question):
    return [line for line in lines.values() if line["question"] == question]


def table_methods(lines):
    """Question 1: a row a search."""
    rows = sorted(_of(lines, 1), key=lambda line: (line["name"], line["seed"]))
    return _table(("search", "seed", *_HEADER), [(line["name"], line["seed"], *_row(line)) for line in rows])


def table_trained(lines):
    """Question 2: a row a cell, then mean and standard deviation a method."""
    rows, own = [], sorted(_of(lines, 2), key=lambda line: (line["name"], line["seed"]))
    for line in own:
        rows.append((line["name"], line["seed"], *_row(line), f"{line['test_accuracy']:.4f}"))
    for name in sorted({line["name"] for line in own}):
        values = [line["test_accuracy"] for line in own if line["name"] == name]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        rows.append(
            (
                f"**{name}**",
                f"{len(values)} cell{'s' * (len(values) > 1)}",
                *[""] * len(_HEADER),
                f"**{statistics.mean(values):.4f}{spread}**",
            )
        )
    return _table(("search", "seed", *_HEADER, "test accuracy"), rows)


def table_cells(lines):
    """Question 5: a row a training, the best first, with the searches of questions 1 and 3 that found the cell."""
    found = collections.defaultdict(list)
    for line in sorted((*_of(lines, 1), *_of(lines, 3)), key=lambda line: (line["name"], line["seed"])):
        found[line["architecture_string"]].append(f"{line['name']} {line['seed']}")
        if "best_of" in line:
            found[line["best_of"]["architecture_string"]].append(f"{line['name']} {line['seed']} by best_of")
    rows = []
    for line in sorted(_of(lines, 5), key=lambda line: -line["test_accuracy"]):
        by = ["random"] if line["name"] == "random" else found[line["architecture_string"]]
        rows.append((_cell(line), "; ".join(by), f"{line['macs'] / 1e6:.1f}", line["seed"], f"{line['test_accuracy']:.4f}"))
    return _table(("cell", "found by (and seed)", "macs, M", "seed of the training", "test accuracy"), rows)


def table_long(lines):
    """Question 3: each long search below its short one."""
    rows = []
    for line in sorted(_of(lines, 3), key=lambda line: (line["name"], line["seed"])):
        short = lines.get(f"1/{line['name'].removesuffix(', three times as long')}/{line['seed']}")
        rows += [(each["name"], each["seed"], each["steps"], *_row(each)) for each in (short, line) if each]
    return _table(("search", "seed", "steps", *_HEADER), rows)


def table_factors(lines):
    """Question 4: the search of question 1 with seed 0, and what one changed setting makes of it."""
    base = [lines[key] for key in ("1/si_vdnas/0", "1/si_vdnas, kl_until_budget/0") if key in lines]
    rows = [
        (f"**{line['name']}**" if line["key"] == "1/si_vdnas/0" else line["name"], *_row(line))
        for line in (*base, *sorted(_of(lines, 4), key=_name))
    ]
    return _table(("setting", *_HEADER), rows)


def table_best_of(lines):
    """Rule best_of beside the method's own: a row a search."""
    rows = []
    for line in _of(lines, 1):
        if "best_of" in line:
            found = line["best_of"]
            own = "" if found["mode_score"] is None else f"{found['mode_score']:.4f}"
            rows.append((line["seed"], _cell(found), f"{found['macs'] / 1e6:.1f}", f"{found['score']:.4f}", own, found["over_budget"]))
    return _table(("seed", "cell of best_of", "macs, M", "its score", "score of mode", "candidates over the budget"), rows)


TABLES = {
    "methods": table_methods,
    "best_of": table_best_of,
    "trained": table_trained,
    "long": table_long,
    "factors": table_factors,
    "cells": table_cells,
}


def plots(lines):
    """File name -> SVG."""
    drawn = {}
    groups = {"methods": _of(lines, 1), "long": _of(lines, 3)}
    for group, members in groups.items():
        names = sorted({line["name"] for line in members})
        for curve, title in _CURVES.items():
            series = []
            for name, colour in zip(names, _COLOURS[: len(names)], strict=True):
                values = [line[curve] for line in members if line["name"] == name]
                epochs = tuple(range(1, min(map(len, values)) + 1))
                series.append(Series(name, epochs, tuple(_mean([each[epoch - 1] for each in values]) for epoch in epochs), colour))
            if series:
                drawn[f"{group}_{curve}.svg"] = line_chart(series, title=f"{title}, mean over the seeds") + "\n"
    return drawn


def _mean(values):
    return None if None in values else statistics.mean(values)


def render(text, lines):
    """The page with every table between `<!-- NAME -->` and `<!-- /NAME -->` made anew."""
    for name, make in TABLES.items():
        block = f"<!-- {name} -->\n{make(lines)}\n<!-- /{name} -->"
        text, count = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{PAGE} must have one pair of markers of the table {name}. Received: {count}")
    return text


def main():
    """Rewrites the page and its plots, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; end with 1 where something is not as the lines say")
    options, lines = parser.parse_args(), read_lines()
    files = {PAGE: render(PAGE.read_text(encoding="utf-8"), lines)}
    files |= {PAGE.with_suffix("") / name: svg for name, svg in plots(lines).items()}
    stale = [path for path, content in files.items() if not path.exists() or path.read_text(encoding="utf-8") != content]
    if options.check:
        for path in stale:
            print(f"not what benchmarks/ablation.jsonl says: {path}", file=sys.stderr)
        sys.exit(1 if stale else 0)
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
