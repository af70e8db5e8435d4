"""A genotype as a trainable or deployable Keras model (quark0/darts `cnn/model.py`; EVALUATION_NETWORK.md)."""

import keras

from sivdnas_tf.layers.blocks import ResidualReduction
from sivdnas_tf.layers.drop_path import DropPath, DropPathSchedule
from sivdnas_tf.models.cells import EvaluationCell
from sivdnas_tf.models.heads import AuxiliaryHead, build_classifier, build_stem

DROP_PATH_SCHEDULE = "drop_path_schedule"


def evaluation_network(
    genotype, plan, *, auxiliary=False, drop_path=False, synchronized=False, pool_normalization=None, seed=0, name="evaluation_network"
):
    """Builds the network of a genotype.

    Layers have the same names with and without the auxiliary head and drop path, so that weights pass from one form to the other.

    Args:
      genotype: a `Genotype`.
      plan: a `NetworkPlan` whose multipliers are the genotype's: `plan_network(..., multipliers=genotype.multipliers)`.
      auxiliary: whether the model has the auxiliary head as a second output (training only); the network must have one.
      drop_path: whether paths can be dropped (training only); rate and step are assigned through the layer `DROP_PATH_SCHEDULE`.
      synchronized: whether batch-norm takes its statistics over all replicas.
      pool_normalization: None as the reference evaluates, or one of `layers.normalization.NORMALIZATIONS` after every pool.
      seed: of drop path.
      name: of the model.

    Returns:
      A Functional `keras.Model` from images `[batch, resolution, resolution, image_channels]` to logits `[batch, classes]`, or to
      `[logits, auxiliary logits]`.
    """
    normalization = "synchronized_batch" if synchronized else "batch"
    images = keras.Input((plan.resolution, plan.resolution, plan.image_channels), name="image")
    drop = _drop_path(images, seed) if drop_path else None
    previous = build_stem(plan, normalization)(images)
    auxiliary_logits = None
    for cell_plan in plan.cells:
        cell = EvaluationCell(
            genotype.cell(cell_plan.cell_type),
            cell_plan,
            normalization=normalization,
            pool_normalization=pool_normalization,
            drop_path=drop,
        )
        if cell_plan.index in plan.residual_reductions:
            previous = [ResidualReduction(cell_plan.channels, normalization, name=f"reduction{cell_plan.index}")(*previous)]
        previous = [*previous[1:], cell(previous)]
        if auxiliary and cell_plan.index == plan.auxiliary_cell:
            auxiliary_logits = AuxiliaryHead(plan.network, plan.classes, normalization, name="auxiliary")(previous[-1])
    logits = build_classifier(plan, normalization)(previous[-1])
    return keras.Model(images, [logits, auxiliary_logits] if auxiliary else logits, name=name)


def _drop_path(images, seed):
    rate, step = DropPathSchedule(name=DROP_PATH_SCHEDULE)(images)
    indices = iter(range(1 << 30))
    return lambda tensor, name: DropPath(next(indices), seed=seed, name=name)(tensor, rate, step)
