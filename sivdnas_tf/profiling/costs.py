"""Parameters and multiply-adds of an operation, a cell and a network, by closed formulas. Imports no TensorFlow.

Three counts, never called by one name (EVALUATION_NETWORK.md, "How size is counted"):

    params        trainable: kernels, batch-norm's gamma and beta, the classifier's bias. Running statistics are not parameters.
    macs          sum over convolutions of output elements * (input channels / groups) * kernel size, and in * out of the classifier
    macs_ptflops  macs + 2 * batch-norm elements + ReLU elements + pooling input elements, the global pool's included

All are of one image and of the deployed network: the auxiliary head, which only training has, is counted by itself.

Departure from the reference networks: quark0/darts builds, runs and counts what no output depends on (a node outside `concat` that
feeds nothing, the preprocessing of an input that no edge leaves, a cell that no later cell reads). A frozen graph does not hold
such things, so that they cost nothing here. `none` costs nothing, but reads its input (the reference multiplies it by 0), so
that what it reads counts as used. No published genotype of the zoo tells the two ways of counting apart.
"""

import dataclasses
import functools
import os
import platform

from sivdnas_tf.errors import BudgetError, ConfigError, GenotypeError, nearest
from sivdnas_tf.search_space import EVALUATION_OPERATIONS, MAX_CELLS, MIN_CELLS, cells_step, plan_network, space_of_network

CONVENTIONS = ("macs", "macs_ptflops")

# Auxiliary head of both networks: a 1x1 convolution to 128 channels, a 2x2 convolution to 768, a dense layer.
_AUXILIARY_WIDTHS = (128, 768)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What something costs; costs of parts add up with `+`.

    Attributes:
      params: trainable parameters.
      macs: multiply-adds of convolutions and dense layers, one image.
      macs_ptflops: the same with batch-norm, ReLU and pooling.
    """

    params: int = 0
    macs: int = 0
    macs_ptflops: int = 0

    def __add__(self, other):
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(self.params + other.params, self.macs + other.macs, self.macs_ptflops + other.macs_ptflops)


def cost_in(cost, convention):
    """Multiply-adds of `cost` as `convention` ("macs" or "macs_ptflops") counts them; raises `ConfigError` for any other name."""
    if convention not in CONVENTIONS:
        raise ConfigError(
            f"unknown convention of multiply-adds.{nearest(convention, CONVENTIONS)} Expected one of {', '.join(CONVENTIONS)}. "
            f"Received: {convention!r}"
        )
    return getattr(cost, convention)


@functools.lru_cache(maxsize=4096)
def operation_cost(operation, *, channels, resolution, stride):
    """Cost of one operation on an edge of an evaluation network.

    Args:
      operation: one of `EVALUATION_OPERATIONS`.
      channels: of input and output.
      resolution: pixels a side of the input; the output has ceil(resolution / stride).
      stride: 1 or 2.

    Returns:
      A `Cost`.

    Raises:
      GenotypeError: for an unknown operation.
      ConfigError: for a stride, a width or a size that no operation has.
    """
    if operation not in EVALUATION_OPERATIONS:
        raise GenotypeError(
            f"unknown operation.{nearest(operation, EVALUATION_OPERATIONS)} Expected one of {', '.join(EVALUATION_OPERATIONS)}. "
            f"Received: {operation!r}"
        )
    if stride not in (1, 2) or channels < 1 or resolution < 1:
        raise ConfigError(
            "an operation has stride 1 or 2, at least 1 channel and at least 1 pixel. "
            f"Received: stride={stride}, channels={channels}, resolution={resolution}"
        )
    if operation == "none":
        return Cost()
    if operation == "skip_connect":
        return Cost() if stride == 1 else _factorized_reduce(channels, channels, resolution)
    kind, _, size = operation.rpartition("_")
    if kind in ("max_pool", "avg_pool"):
        return _pool(channels, resolution)
    if kind == "sep_conv":  # the separable unit stands twice, the stride in the first
        kernel = _kernel_size(size)
        first = _separable_unit(channels, kernel, resolution, stride)
        return first + _separable_unit(channels, kernel, _strided(resolution, stride), 1)
    if kind == "nor_conv":
        return _relu_convolution(channels, channels, _kernel_size(size), resolution, stride)
    if kind == "dil_conv":
        return _separable_unit(channels, _kernel_size(size), resolution, stride)
    return _factorized_convolution(channels, 7, resolution, stride)


def cell_cost(cell, cell_plan):
    """Cost of one cell, the preprocessing of its inputs included.

    Args:
      cell: `genotype.Cell`.
      cell_plan: `search_space.CellPlan` of its place in the network.

    Returns:
      A `Cost`.
    """
    return _total(cost for _, cost in cell_parts(cell, cell_plan))


def cell_parts(cell, cell_plan):
    """What a cell is made of: pairs of a name, "preprocess 0", "preprocess 1" or an operation, and its `Cost`, as `cell_cost` adds them."""
    used = used_nodes(cell)
    for index, halve in _preprocessed(cell_plan):
        if index in used:
            yield f"preprocess {index}", _preprocessing_cost(cell_plan.in_channels[index], cell_plan, halve)
    for edge in cell.edges:
        if edge.node in used:
            resolution = cell_plan.in_resolution if edge.predecessor < cell_plan.n_inputs else cell_plan.out_resolution
            stride = cell_plan.stride(edge.predecessor)
            yield edge.operation, operation_cost(edge.operation, channels=cell_plan.channels, resolution=resolution, stride=stride)


def _preprocessed(cell_plan):
    """Pairs of an input that is preprocessed, and whether that halves it."""
    return ((0, cell_plan.reduction_prev), (1, False)) if cell_plan.preprocesses else ()


def check_network(genotype, network):
    """Raises `GenotypeError` where a network is not built of cells of the genotype's search space."""
    space = space_of_network(network)
    if genotype.search_space != space.name:
        raise GenotypeError(
            f"a {network} network is built of cells of the search space {space.name}. "
            f"Received: {genotype.name!r} of {genotype.search_space}"
        )


def network_cost(genotype, *, network, channels, cells, classes, resolution, image_channels=3):
    """Cost of a whole evaluation network, the auxiliary head excluded.

    Args:
      genotype: `Genotype` of its cells.
      network, channels, cells, classes, resolution, image_channels: as `search_space.plan_network` takes them.

    Returns:
      A `Cost`.

    Raises:
      ConfigError: where no such network exists.
    """
    parts = network_parts(
        genotype,
        network=network,
        channels=channels,
        cells=cells,
        classes=classes,
        resolution=resolution,
        image_channels=image_channels,
    )
    return _total(cost for _, _, cost in parts)


def network_parts(genotype, *, network, channels, cells, classes, resolution, image_channels=3):
    """What a network is made of, for tables and pictures; arguments and errors as of `network_cost`, which is the sum.

    Returns:
      A list of `(place, name, Cost)` in the order of the network: place is "stem", "cell 0 normal" and so on, or "classifier"; name is as
      of `cell_parts`, or that of the place.
    """
    plan = _plan(genotype, network, channels, cells, classes, resolution, image_channels)
    used = _used_tensors(genotype, plan)
    parts = [("stem", "stem", _stem_cost(plan, stem_1_used=1 in used))]
    for cell_plan in plan.cells:
        if cell_plan.index in plan.residual_reductions:
            parts.append((f"reduction before cell {cell_plan.index}", "residual reduction", _residual_reduction_cost(cell_plan)))
        if cell_plan.index + cell_plan.n_inputs in used:
            place = f"cell {cell_plan.index} {cell_plan.cell_type}"
            parts += [(place, name, cost) for name, cost in cell_parts(genotype.cell(cell_plan.cell_type), cell_plan)]
    return [*parts, ("classifier", "classifier", _classifier_cost(plan))]


def auxiliary_head_params(genotype, *, network, channels, cells, classes, resolution, image_channels=3):
    """Parameters of the auxiliary head that training adds to the network, if it has one; arguments and errors as of `network_cost`.

    The ImageNet head has no batch-norm after its second convolution (EVALUATION_NETWORK.md, "Skeleton").
    """
    plan = _plan(genotype, network, channels, cells, classes, resolution, image_channels)
    if plan.auxiliary_cell is None:
        return 0
    narrow, wide = _AUXILIARY_WIDTHS
    in_channels = plan.cells[plan.auxiliary_cell].out_channels
    batch_norms = 2 * narrow + (2 * wide if network == "cifar" else 0)
    return in_channels * narrow + narrow * wide * 2 * 2 + batch_norms + (wide + 1) * classes


def deployed_plan(genotype, budget):
    """The `NetworkPlan` of the network that a `config.BudgetConfig` describes, with the genotype's cells."""
    return _plan(genotype, **_deployed_network(budget))


def deployed_cost(genotype, budget):
    """`network_cost` of the network that a `config.BudgetConfig` describes."""
    return network_cost(genotype, **_deployed_network(budget))


def expected_cost_terms(space, budget):
    """What the deployed network of a `config.BudgetConfig` costs in expectation, as a function of keep probabilities.

    An operation is computed where its own gate and its edge's are 1, in every cell of its type, so that with K operations' and k edges'
    keep probabilities the expectation is  fixed + sum_types sum_e k_e sum_p K_ep term_ep.  Left out: that a node keeps one edge whatever
    the draw, that nothing feeds on an unused node, and that a space of one operation an edge derives fewer than its gates leave.

    Args:
      space: the `SearchSpace`.
      budget: `config.BudgetConfig`.

    Returns:
      `(fixed, {cell type: [E][P]})`, in the budget's convention: stem, preprocessing and classifier, and what each
      operation of each edge adds.
    """
    network = _deployed_network(budget)
    plan = plan_network(network.pop("network"), **network, multipliers=(len(space.outputs),) * len(space.cell_types))
    fixed = _stem_cost(plan, stem_1_used=True) + _classifier_cost(plan)
    terms = {cell_type: [[0] * len(space.primitives) for _ in space.edges] for cell_type in space.cell_types}
    for cell_plan in plan.cells:
        if cell_plan.index in plan.residual_reductions:
            fixed += _residual_reduction_cost(cell_plan)
        for index, halve in _preprocessed(cell_plan):
            fixed += _preprocessing_cost(cell_plan.in_channels[index], cell_plan, halve)
        for row, (predecessor, _) in zip(terms[cell_plan.cell_type], space.edges, strict=True):
            resolution = cell_plan.in_resolution if predecessor < cell_plan.n_inputs else cell_plan.out_resolution
            size = {"channels": cell_plan.channels, "resolution": resolution, "stride": cell_plan.stride(predecessor)}
            for index, primitive in enumerate(space.primitives):
                row[index] += cost_in(operation_cost(primitive, **size), budget.convention)
    return cost_in(fixed, budget.convention), terms


def fits_budget(cost, budget):
    """Whether a `Cost` is within the multiply-adds and the parameters of a `config.BudgetConfig`."""
    return cost_in(cost, budget.convention) <= budget.macs and (not budget.params or cost.params <= budget.params)


def budget_text(budget):
    """The limits of a `config.BudgetConfig` for a message: "600,000,000 macs", with the parameters where they are limited."""
    return f"{budget.macs:,.15g} {budget.convention}" + (f" and {budget.params:,.15g} params" if budget.params else "")


def cost_text(cost, budget):
    """What of a `Cost` is held against a `config.BudgetConfig`, for a message."""
    return f"{cost_in(cost, budget.convention):,} {budget.convention}" + (f" and {cost.params:,} params" if budget.params else "")


def widest_channels(genotype, budget, multiple=2):
    """The largest `channels`, a multiple of `multiple` (even), at which the deployed network fits `budget`; None where none does."""
    if multiple < 2 or multiple % 2:
        raise ConfigError(f"channels are a multiple of an even number (factorized reduce splits them in two). Received: {multiple}")

    def fits(times):
        return fits_budget(network_cost(genotype, **{**_deployed_network(budget), "channels": multiple * times}), budget)

    high = 1
    while fits(high):  # ends, because every width costs more than a narrower one
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return multiple * low or None


def deepest_cells(genotype, budget):
    """The largest number of cells with which the deployed network fits a `config.BudgetConfig` at its width; None where none does."""

    def fits(cells):
        return fits_budget(network_cost(genotype, **{**_deployed_network(budget), "cells": cells}), budget)

    step = cells_step(budget.network)
    cells = MIN_CELLS - step
    while cells + step <= MAX_CELLS and fits(cells + step):  # one more cell lengthens one of the three stages, and shortens none
        cells += step
    return cells if cells >= MIN_CELLS else None


def check_budget(genotype, budget, subject="the deployed network"):
    """Raises `BudgetError`, naming the width that would fit, if `genotype` costs more than a `config.BudgetConfig` allows.

    Args:
      genotype: `Genotype`.
      budget: `config.BudgetConfig`.
      subject: what the message calls the network.

    Returns:
      The deployed network's `Cost`.
    """
    cost = deployed_cost(genotype, budget)
    if not fits_budget(cost, budget):
        widest = widest_channels(genotype, budget)
        advice = f"channels={widest} is the widest that would fit" if widest else "no width would fit"
        raise BudgetError(
            f"{subject} costs more than the budget allows. Expected at most {budget_text(budget)}; {advice}. "
            f"Received: {cost_text(cost, budget)} at network={budget.network}, channels={budget.channels}, "
            f"cells={budget.cells}, resolution={budget.resolution}, classes={budget.classes}"
        )
    return cost


def check_latency(milliseconds, budget, subject="the deployed network"):
    """Raises `BudgetError` if a latency measured here is over a `config.BudgetConfig`'s limit; returns it otherwise.

    Args:
      milliseconds: median of one image, measured in `budget.latency_runtime`.
      budget: `config.BudgetConfig`; a `latency_ms` of 0 is no limit.
      subject: what the message calls the network.
    """
    if budget.latency_ms and milliseconds > budget.latency_ms:
        raise BudgetError(
            f"{subject} takes longer than the budget allows. Expected at most {budget.latency_ms:,.15g} ms an image, the median in "
            f"{budget.latency_runtime} on this machine ({platform.machine()}, {os.cpu_count()} cores). Received: {milliseconds:,.15g} ms "
            f"at network={budget.network}, channels={budget.channels}, cells={budget.cells}, resolution={budget.resolution}, "
            f"classes={budget.classes}"
        )
    return milliseconds


def used_nodes(cell):
    """Nodes of a `genotype.Cell`, its inputs included, on which its output depends: a frozenset of indices."""
    used = set(cell.concat)
    for edge in sorted(cell.edges, key=lambda edge: edge.node, reverse=True):  # a predecessor is an earlier node
        if edge.node in used:
            used.add(edge.predecessor)
    return frozenset(used)


def _used_tensors(genotype, plan):
    """Indices on which the logits depend: the first are the stem's tensors, as many as a cell has inputs; then the cells' outputs."""
    n_inputs = len(plan.stem_channels)
    used_inputs = {cell_type: used_nodes(genotype.cell(cell_type)) & set(range(n_inputs)) for cell_type in genotype.cell_types}
    used = {len(plan.cells) + n_inputs - 1}
    for cell_plan in reversed(plan.cells):
        if cell_plan.index + n_inputs in used:
            used.update(cell_plan.index + node for node in used_inputs[cell_plan.cell_type])
    return used


def _plan(genotype, network, channels, cells, classes, resolution, image_channels):
    check_network(genotype, network)
    return plan_network(
        network,
        channels=channels,
        cells=cells,
        classes=classes,
        resolution=resolution,
        image_channels=image_channels,
        multipliers=genotype.multipliers,
    )


def _deployed_network(budget):
    names = ("network", "channels", "cells", "classes", "resolution", "image_channels")
    return {name: getattr(budget, name) for name in names}


def _total(costs):
    return sum(costs, Cost())


def _strided(resolution, stride):
    return -(-resolution // stride)


def _kernel_size(text):
    return int(text.partition("x")[0])


def _relu(channels, resolution):
    return Cost(0, 0, channels * resolution**2)


def _pool(channels, resolution):
    return Cost(0, 0, channels * resolution**2)


def _batch_norm(channels, resolution):
    return Cost(2 * channels, 0, 2 * channels * resolution**2)


def _convolution(kernel_elements, output_pixels):
    """A convolution without bias whose kernel holds `kernel_elements` numbers: each is used once an output pixel."""
    return Cost(kernel_elements, kernel_elements * output_pixels, kernel_elements * output_pixels)


def _separable_unit(channels, kernel, resolution, stride):
    """ReLU, depthwise, pointwise, batch-norm; dilation changes no count."""
    out = _strided(resolution, stride)
    convolutions = _convolution(channels * kernel**2 + channels**2, out**2)
    return _relu(channels, resolution) + convolutions + _batch_norm(channels, out)


def _factorized_convolution(channels, kernel, resolution, stride):
    """ReLU, 1 x kernel with the stride along the width, kernel x 1 with the stride along the height, batch-norm."""
    out = _strided(resolution, stride)
    elements = channels**2 * kernel
    convolutions = _convolution(elements, resolution * out) + _convolution(elements, out**2)
    return _relu(channels, resolution) + convolutions + _batch_norm(channels, out)


def _factorized_reduce(in_channels, out_channels, resolution):
    """ReLU, two 1x1 convolutions of stride 2 to half the channels each, batch-norm over both."""
    out = _strided(resolution, 2)
    return _relu(in_channels, resolution) + _convolution(in_channels * out_channels, out**2) + _batch_norm(out_channels, out)


def _relu_convolution(in_channels, channels, kernel, resolution, stride):
    """ReLU, full convolution, batch-norm."""
    out = _strided(resolution, stride)
    convolution = _convolution(in_channels * channels * kernel**2, out**2)
    return _relu(in_channels, resolution) + convolution + _batch_norm(channels, out)


def _preprocessing_cost(in_channels, cell_plan, halve):
    channels, resolution = cell_plan.channels, cell_plan.in_resolution
    if halve:
        return _factorized_reduce(in_channels, channels, 2 * resolution)
    return _relu_convolution(in_channels, channels, 1, resolution, 1)


def _residual_reduction_cost(cell_plan):
    """The block before a cell: two 3x3 convolutions, and a 2x2 average pool with a 1x1 convolution."""
    channels, resolution = cell_plan.channels, cell_plan.in_resolution
    in_channels = channels // 2
    main = _relu_convolution(in_channels, channels, 3, 2 * resolution, 2) + _relu_convolution(channels, channels, 3, resolution, 1)
    return main + _pool(in_channels, 2 * resolution) + _convolution(in_channels * channels, resolution**2)


def _stem_cost(plan, stem_1_used):
    if plan.network != "imagenet":  # one convolution, read by cell 0, and in "cifar" by cell 1 too
        channels = plan.stem_channels[0]
        convolution = _convolution(9 * plan.image_channels * channels, plan.resolution**2)
        return convolution + _batch_norm(channels, plan.resolution)
    channels = plan.stem_channels[0]
    half, quarter, eighth = plan.resolution // 2, plan.resolution // 4, plan.resolution // 8
    total = _convolution(9 * plan.image_channels * (channels // 2), half**2) + _batch_norm(channels // 2, half)
    total += _relu(channels // 2, half) + _convolution(9 * (channels // 2) * channels, quarter**2) + _batch_norm(channels, quarter)
    if stem_1_used:
        total += _relu(channels, quarter) + _convolution(9 * channels * plan.stem_channels[1], eighth**2)
        total += _batch_norm(plan.stem_channels[1], eighth)
    return total


def _classifier_cost(plan):
    """Global average pool and dense layer with bias; before it in "nasbench201", batch-norm and ReLU."""
    multiply_adds, resolution = plan.final_channels * plan.classes, plan.cells[-1].out_resolution
    before = _pool(plan.final_channels, resolution)
    if plan.network == "nasbench201":
        before += _batch_norm(plan.final_channels, resolution) + _relu(plan.final_channels, resolution)
    return before + Cost(multiply_adds + plan.classes, multiply_adds, multiply_adds)
