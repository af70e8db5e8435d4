"""Tables 1 and 2 of the SI-VDNAS paper: what is printed there beside what the cells really cost, and which way of counting gives it.

    python benchmarks/published_sizes.py [--markdown]

One JSON line a row, or README's two tables. Ours are params and macs of the DARTS evaluation networks of the published cells (closed
formulas, which TensorFlow's profiler confirms: `profile --tf_profiler`), or of the network that Keras ships. A printed figure is
reproduced where ours, rounded to the printed digits, is the same ("cut off": where it is the same without rounding):

    params          trainable parameters; "with auxiliary head": those of the head, which only training has, added
    macs            multiply-adds of convolutions and dense layers
    macs_ptflops    the same with batch-norm, ReLU and pooling

"no genotype": the paper's system has no published cell of this search space. "own network": the figure is of other networks than the
DARTS ones, in which its cell is counted here all the same.
"""

import argparse
import decimal
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from sivdnas_tf import darts_genotype
from sivdnas_tf.profiling import costs
from sivdnas_tf.zoo import registry

CIFAR = {"network": "cifar", "channels": 36, "cells": 20, "classes": 10, "resolution": 32}
IMAGENET = {"network": "imagenet", "channels": 48, "cells": 14, "classes": 1000, "resolution": 224}

# PC_DARTS_image of yuhuixu1993/PC-DARTS, genotypes.py; not in the zoo, whose cells come with counts of the reference networks.
PC_DARTS_IMAGENET = {
    "normal": [
        *(["skip_connect", 1], ["sep_conv_3x3", 0], ["sep_conv_3x3", 0], ["skip_connect", 1]),
        *(["sep_conv_3x3", 1], ["sep_conv_3x3", 3], ["sep_conv_3x3", 1], ["dil_conv_5x5", 4]),
    ],
    "normal_concat": [2, 3, 4, 5],
    "reduce": [
        *(["sep_conv_3x3", 0], ["skip_connect", 1], ["dil_conv_5x5", 2], ["max_pool_3x3", 1]),
        *(["sep_conv_3x3", 2], ["sep_conv_3x3", 1], ["sep_conv_5x5", 0], ["sep_conv_3x3", 3]),
    ],
    "reduce_concat": [2, 3, 4, 5],
}

# Of BayesNAS' three published cells the table's is taken to be 0.005.
# System, what has its cell (a name in the zoo, "keras:NAME", a DARTS genotype, None), millions of params and of multiply-adds as printed,
# and whether they are of the authors' own networks.
TABLE_1 = [
    ("DenseNet-BC", None, "25.6", None, True),
    ("AmoebaNet-A + cutout", "AmoebaNet", "3.2", None, True),
    ("AmoebaNet-B + cutout", None, "2.8", None, True),
    ("NASNet-A + cutout", "NASNet", "3.3", None, True),
    ("ENAS + cutout", "ENASNet", "4.6", None, True),
    ("PNAS", "PNASNet", "3.2", None, True),
    ("NAONet-WS", None, "3.1", None, True),
    ("MdeNAS", "MdeNAS", "3.6", None, False),
    ("DARTS (1st order) + cutout", "DARTS_V1", "3.3", None, False),
    ("DARTS (2nd order) + cutout", "DARTS_V2", "3.3", None, False),
    ("SNAS (mild) + cutout", "SNAS_mild", "2.9", None, True),
    ("SNAS (moderate) + cutout", "SNAS_moderate", "2.8", None, True),
    ("SNAS (aggressive) + cutout", "SNAS_aggressive", "2.3", None, True),
    ("PC-DARTS + cutout", "PC_DARTS_cifar", "3.6", None, False),
    ("P-DARTS + cutout", "PDARTS", "3.4", None, False),
    ("BayesNAS + cutout", "BayesNAS_0.005", "3.4", None, True),
    ("DARTS-EGS (M = 4)", None, "2.6", None, False),
    ("DARTS-EGS (M = 7)", None, "2.9", None, False),
    ("Amended-DARTS, S1 + cutout", None, "3.5", None, False),
    ("Amended-DARTS, S2 + cutout", None, "3.6", None, False),
    ("SI-VDNAS (base) + cutout", None, "3.6", None, False),
    ("SI-VDNAS (convergence) + cutout", None, "2.7", None, False),
]
TABLE_2 = [
    ("Inception-v1", None, "6.6", "1448", True),
    ("MobileNet", "keras:MobileNet", "4.2", "569", True),
    ("ShuffleNet 2x (v2)", None, "5", "591", True),
    ("AmoebaNet-C", None, "6.4", "570", True),
    ("NASNet-A", "keras:NASNetMobile", "5.3", "564", True),
    ("NASNet-A, its cell in the DARTS network", "NASNet", "5.3", "564", True),
    ("PNAS", "PNASNet", "5.1", "588", True),
    ("MdeNAS", "MdeNAS", "6.1", None, False),
    ("DARTS (2nd order)", "DARTS_V2", "4.7", "574", False),
    ("SNAS (mild)", "SNAS_mild", "4.3", "522", True),
    ("PC-DARTS (CIFAR-10)", "PC_DARTS_cifar", "5.3", "586", False),
    ("PC-DARTS (ImageNet)", PC_DARTS_IMAGENET, "5.3", "597", False),
    ("P-DARTS", "PDARTS", "4.9", "557", False),
    ("BayesNAS", "BayesNAS_0.005", "3.9", None, True),
    ("DARTS-EGS (M = 4)", None, "4.3", None, False),
    ("DARTS-EGS (M = 7)", None, "4.7", None, False),
    ("DARTS+", None, "5.1", "582", False),
    ("FairDARTS-A", "FairDARTS_a", "3.6", "417", False),
    ("FairDARTS-B", "FairDARTS_b", "4.8", "541", False),
    ("Amended-DARTS, S2", None, "5.5", "590", False),
    ("SI-VDNAS (base)", None, "5.0", "577", False),
    ("SI-VDNAS (convergence)", None, "4.1", "462", False),
]


def counts(cell, size):
    """What ours is: a dict of params, params with the auxiliary head, macs and macs_ptflops; None where nothing counts it."""
    if isinstance(cell, str) and cell.startswith("keras:"):
        import keras

        from sivdnas_tf.profiling.tf_profiler import model_cost

        cost = model_cost(getattr(keras.applications, cell.removeprefix("keras:"))(weights=None))
        return {"params": cost.params, "params_with_auxiliary_head": None, "macs": cost.macs, "macs_ptflops": None}
    genotype = registry.load(cell) if isinstance(cell, str) else darts_genotype.from_dict(cell, "PC_DARTS_imagenet")[0]
    cost = costs.network_cost(genotype, **size)
    with_head = cost.params + costs.auxiliary_head_params(genotype, **size)
    return {"params": cost.params, "params_with_auxiliary_head": with_head, "macs": cost.macs, "macs_ptflops": cost.macs_ptflops}


def reproducing(printed, ours, rounding=decimal.ROUND_HALF_UP):
    """Names of those of `ours` that, in millions and rounded to as many digits, are what is printed."""
    digits = decimal.Decimal(1).scaleb(decimal.Decimal(printed).as_tuple().exponent)
    millions = {name: decimal.Decimal(value) / 1_000_000 for name, value in ours.items() if value is not None}
    names = (name for name, value in millions.items() if value.quantize(digits, rounding) == decimal.Decimal(printed))
    return [name.replace("_", " ") if name.startswith("params") else name for name in names]


def verdict(printed, ours, own_network):
    """What the row says of one printed figure."""
    if printed is None:
        return None
    found = reproducing(printed, ours)
    cut_off = [f"{name}, cut off" for name in reproducing(printed, ours, decimal.ROUND_FLOOR)]
    return ", ".join(found or cut_off) or "not reproduced" + (" (own network)" if own_network else "")


def row(table, size, system, cell, params, macs, own_network):
    """One row as a dict."""
    result = {"table": table, "system": system, "published_params_M": params, "published_macs_M": macs}
    if cell is None:
        return {**result, "genotype": None}
    ours = counts(cell, size)
    of_params = {name: value for name, value in ours.items() if name.startswith("params")}
    of_macs = {name: value for name, value in ours.items() if name.startswith("macs")}
    reproduced = {"params": verdict(params, of_params, own_network), "macs": verdict(macs, of_macs, own_network)}
    return {**result, "genotype": cell if isinstance(cell, str) else "PC_DARTS_imagenet", **ours, "reproduced_by": reproduced}


def markdown(rows, table):
    """Lines of a README table."""
    with_macs = table == 2
    titles = ["system", "params (M): printed", "ours", "which count gives it"]
    titles += ["multiply-adds (M): printed", "macs", "macs_ptflops", "which count gives it"] if with_macs else []
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for line in rows:
        if line["table"] != table:
            continue
        found, missing = line["genotype"] is not None, "no genotype"
        cells = [line["system"], line["published_params_M"]]
        cells += [f"{line['params'] / 1e6:.3f}", line["reproduced_by"]["params"]] if found else ["", missing]
        if with_macs:
            ours = [line.get(name) for name in ("macs", "macs_ptflops")]
            cells += [line["published_macs_M"] or "", *("" if value is None else f"{value / 1e6:.2f}" for value in ours)]
            cells += [(line["reproduced_by"]["macs"] or "") if found else missing]
        yield f"| {' | '.join(cells)} |"


def main():
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="README's tables")
    arguments = parser.parse_args()
    rows = [row(1, CIFAR, *entry) for entry in TABLE_1] + [row(2, IMAGENET, *entry) for entry in TABLE_2]
    if arguments.markdown:
        for table in (1, 2):
            print("\n".join([*markdown(rows, table), ""]))
    else:
        for line in rows:
            print(json.dumps(line))


if __name__ == "__main__":
    main()
