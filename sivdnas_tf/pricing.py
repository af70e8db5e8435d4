"""What `profile` does: prices genotypes, or any Keras model, and shows where the multiply-adds are.

By closed formulas, without TensorFlow, unless it is asked to run TensorFlow's profiler, to measure latency, or to read a Keras model.
"""

import json

from sivdnas_tf.config import Config, replace
from sivdnas_tf.errors import ConfigError
from sivdnas_tf.profiling import costs
from sivdnas_tf.quiet import import_tensorflow, quiet
from sivdnas_tf.report.costs_picture import draw_costs
from sivdnas_tf.run_dir import atomic_path
from sivdnas_tf.search_space import plan_network, space_of_network
from sivdnas_tf.zoo import registry

USUAL_SIZES = {
    "cifar": {"channels": 36, "cells": 20, "classes": 10, "resolution": 32},
    "imagenet": {"channels": 48, "cells": 14, "classes": 1000, "resolution": 224},
    "nasbench201": {"channels": 16, "cells": 15, "classes": 10, "resolution": 32},
}
_BAR = 40  # characters of the longest bar


def profile(
    genotypes,
    network,
    size,
    limits,
    *,
    fit=False,
    fit_cells=False,
    multiple_of=4,
    table=False,
    picture=None,
    tf_profiler=False,
    latency=False,
    as_json=False,
    say=print,
):
    """Prices genotypes and prints a table, or one JSON object a line.

    Args:
      genotypes: names in the zoo, or files.
      network: "cifar", "imagenet" or "nasbench201".
      size: dict of channels, cells, classes, resolution; None takes the network's usual one.
      limits: dict of fields of `config.BudgetConfig`: macs, convention, params.
      fit: whether to find the widest channels within the limits, a multiple of `multiple_of`.
      fit_cells: whether to find the largest number of cells within the limits.
      table: whether to print what each operation of each cell costs.
      picture: path of an SVG of the same to write, for one genotype; or None.
      tf_profiler: whether to run TensorFlow's profiler on the frozen network, and reconcile it.
      latency: whether to measure the network in each runtime on this machine.
      as_json: whether to print JSON.
      say: function of a line for the user.

    Raises:
      ConfigError, GenotypeError: where no such network exists.
    """
    size = {name: usual if size[name] is None else size[name] for name, usual in USUAL_SIZES[network].items()}
    plan_network(network, **size)  # says of a size that no network has what is wrong with it
    budget = _budget(network, {**size, **limits})
    if picture and len(genotypes) != 1:
        raise ConfigError(f"--picture is of one genotype. Received: {len(genotypes)}")
    converted = []
    resolved = [registry.resolve(name, converted.append) for name in genotypes]
    rows = [_row(genotype, network, size, budget) for genotype in resolved]
    registry.say_converted(converted)
    if fit or fit_cells:
        for genotype, row in zip(resolved, rows, strict=True):
            row |= {"fit_channels": costs.widest_channels(genotype, budget, multiple_of)} if fit else {}
            row |= {"fit_cells": costs.deepest_cells(genotype, budget)} if fit_cells else {}
    if picture:
        with atomic_path(picture) as temporary:
            temporary.write_text(draw_costs(resolved[0].name, _parts(resolved[0], network, size)), encoding="utf-8")
    sections = [[*_table_lines(genotype.name, _parts(genotype, network, size))] if table else [] for genotype in resolved]
    if tf_profiler or latency:
        for genotype, row, section in zip(resolved, rows, sections, strict=True):
            section += _run_model(_built(genotype, network, size), row, tf_profiler, latency)
    for line in (json.dumps(row) for row in rows) if as_json else _lines(rows, budget):
        say(line)
    if not as_json:
        for line in (line for section in sections for line in section):
            say(line)


def profile_model(path, resolution, limits, *, tf_profiler=False, latency=False, as_json=False, say=print):
    """Prices the Keras model of a .keras file as `profile` prices a genotype; the network's own fields are null.

    Args:
      path: of the file. Code in it (Lambda layers) is refused; layers of this package are known.
      resolution: pixels a side, where the model leaves them open; or None.
      limits, tf_profiler, latency, as_json, say: as of `profile`.

    Raises:
      DataError: for a file that cannot be read, or a model whose input's size is open.
      ConfigError: for a convention other than "macs": what batch-norm and pools of any model cost is not counted.
    """
    budget = replace(Config(), budget=limits).budget
    if budget.convention != "macs":
        raise ConfigError(f"a Keras model is priced in macs only. Received: convention={budget.convention!r}")
    import_tensorflow()
    import sivdnas_tf.models.evaluation_network  # noqa: F401  registers this package's layers
    from sivdnas_tf.profiling import tf_profiler as profiler

    with quiet():
        model = profiler.load_model(path)
        shapes = None if resolution is None else profiler.shapes_at(model, resolution)
        cost = profiler.model_cost(model, shapes)
    row = {"name": model.name, **dict.fromkeys(("network", "channels", "cells", "classes")), "resolution": resolution}
    row |= {"params": cost.params, "macs": cost.macs, "macs_ptflops": None, "uncounted": list(cost.uncounted)}
    row["within_budget"] = cost.macs <= budget.macs and (not budget.params or cost.params <= budget.params)
    section = _run_model(model, row, tf_profiler, latency, shapes) if tf_profiler or latency else []
    if as_json:
        say(json.dumps(row))
        return
    say(f"{model.name}: {cost.params:,} params, {cost.macs:,} macs; within budget: {'yes' if row['within_budget'] else 'no'}")
    if cost.uncounted:
        say(f"not counted, whatever is in them: {', '.join(cost.uncounted)}")
    for line in section:
        say(line)


def _budget(network, fields):
    """The `config.BudgetConfig` of a network, in a configuration whose other sections fit it."""
    space = {"search": {"search_space": space_of_network(network).name}, "train": {"network": network, "auxiliary_weight": 0}}
    return replace(Config(), budget={"network": network, **fields}, **space).budget


def _row(genotype, network, size, budget):
    cost = costs.deployed_cost(genotype, budget)
    return {
        "name": genotype.name,
        "network": network,
        **size,
        "params": cost.params,
        "macs": cost.macs,
        "macs_ptflops": cost.macs_ptflops,
        "within_budget": costs.fits_budget(cost, budget),
    }


def _parts(genotype, network, size):
    return costs.network_parts(genotype, network=network, **size)


def _lines(rows, budget):
    width = max(len("genotype"), *(len(row["name"]) for row in rows))
    first = rows[0]
    yield (
        f"{first['network']} network, {first['channels']} channels, {first['cells']} cells, {first['classes']} classes, "
        f"{first['resolution']}x{first['resolution']}; budget {costs.budget_text(budget)}"
    )
    fits = {"fit_channels": "widest channels", "fit_cells": "most cells"}
    fits = {field: title for field, title in fits.items() if field in first}
    titles = "".join(f"  {title}" for title in fits.values())
    yield f"{'genotype':{width}}  {'params':>12}  {'macs':>14}  {'macs_ptflops':>14}  within budget{titles}"
    for row in rows:
        within = "yes" if row["within_budget"] else "no"
        found = "".join(f"  {row[field] or 'none':>{len(title)}}" for field, title in fits.items())
        yield f"{row['name']:{width}}  {row['params']:>12,}  {row['macs']:>14,}  {row['macs_ptflops']:>14,}  {within:13}{found}".rstrip()


def _table_lines(name, parts):
    """What each kind of operation of each place costs, a bar for its share of the dearest."""
    rows = {}
    for place, operation, cost in parts:
        count, before = rows.get((place, operation), (0, costs.Cost()))
        rows[place, operation] = (count + 1, before + cost)
    longest = max(cost.macs for _, cost in rows.values())
    widths = [max(len(key[index]) for key in rows) for index in (0, 1)]
    yield f"{name}:"
    yield f"{'place':{widths[0]}}  {'operation':{widths[1]}}  times  {'params':>10}  {'macs':>13}"
    for (place, operation), (count, cost) in rows.items():
        bar = "#" * round(_BAR * cost.macs / longest)
        yield f"{place:{widths[0]}}  {operation:{widths[1]}}  {count:>5}  {cost.params:>10,}  {cost.macs:>13,}  {bar}".rstrip()


def _built(genotype, network, size):
    import_tensorflow()
    from sivdnas_tf.models.evaluation_network import evaluation_network

    with quiet():  # without the genotype's name, which may be one that TensorFlow refuses: an architecture string
        return evaluation_network(genotype, plan_network(network, multipliers=genotype.multipliers, **size))


def _run_model(model, row, tf_profiler, latency, shapes=None):
    """Adds to `row` what the profiler counts and what the runtimes take, and returns the lines that say so."""
    lines = []
    if tf_profiler:
        from sivdnas_tf.profiling.tf_profiler import profile_model as run_profiler

        with quiet((1, 2)):
            profiled = run_profiler(model, shapes)
        row |= {"float_ops": profiled.float_ops, "float_ops_corrected": profiled.float_ops - profiled.padding_float_ops}
        lines += _profiler_lines(row, profiled)
    if latency:
        from export.latency import latency_lines, measure_latency

        with quiet((1, 2)):
            row["latency"] = measure_latency(model, shapes)
        lines += latency_lines(row["name"], row["latency"])
    return lines


def _profiler_lines(row, profiled):
    yield f"{row['name']}: TensorFlow's profiler on the frozen graph, batch 1"
    yield f"{'operation':24}  {'times':>5}  {'float_ops':>15}  {'2 x macs':>15}"
    for name, count, float_ops, macs in profiled.by_type():
        yield f"{name:24}  {count:>5}  {float_ops:>15,}  {f'{2 * macs:,}' if macs else '':>15}".rstrip()
    contractions, padding = profiled.contraction_float_ops, profiled.padding_float_ops
    yield f"{'total':24}  {'':>5}  {profiled.float_ops:>15,}  {2 * profiled.macs:>15,}"
    padded = sum(1 for operation in profiled.operations if operation.padding_float_ops)
    yield (
        f"convolutions and dense layers: {contractions:,} float_ops, less {padding:,} of the padding of {padded} dilated convolutions, are "
        f"{contractions - padding:,}"
    )
    expected = 2 * row["macs"]
    verdict = "equal" if contractions - padding == expected else "NOT equal"
    yield f"2 x {row['macs']:,} macs, by the shapes of the network, are {expected:,}: {verdict}"
    yield f"all else, which macs do not count: {profiled.float_ops - contractions:,} float_ops"
