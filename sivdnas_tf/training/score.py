"""What rule "best_of" ranks genotypes by: their accuracy within the supernet that was searched, with its weights."""

import numpy as np
import tensorflow as tf

from sivdnas_tf.data.datasets import batches
from sivdnas_tf.errors import RunDirError
from sivdnas_tf.models.supernet import CellDraw
from sivdnas_tf.search_space import get_search_space
from sivdnas_tf.training import objective
from sivdnas_tf.training.loop import UNREADABLE, model_state
from sivdnas_tf.training.search import build_supernet, search_datasets, search_steps
from sivdnas_tf.variational.distributions import Draw


def genotype_draw(genotype, space):
    """`{cell type: CellDraw}` of a supernet that computes what a `Genotype` keeps, without noise.

    Args:
      genotype: a `Genotype` of the space.
      space: its `SearchSpace`.
    """
    draw = {}
    for cell_type in space.cell_types:
        operations = np.zeros((len(space.edges), len(space.primitives)), np.float32)
        for edge in genotype.cell(cell_type).edges:
            if edge.operation not in space.primitives:  # `none`: closed
                continue
            operations[space.edges.index((edge.predecessor, edge.node)), space.primitives.index(edge.operation)] = 1.0
        edges = operations.max(axis=1)
        draw[cell_type] = CellDraw(Draw(operations, np.zeros_like(operations)), Draw(edges, np.zeros_like(edges)))
    return draw


def supernet_score(config, datasets, run_dir):
    """A function of a `Genotype` to its accuracy in the supernet of a finished search, a fraction of 1.

    The weights, and the mixing weights w and phi, are those of the newest checkpoint. Batch-norm takes the statistics of the batch, as in
    the search. The images are the architecture half's, unaugmented, in batches of `search.batch_size` of an order that the seed fixes: all
    that an epoch of the search has.

    Args:
      config: the `Config` of the search.
      datasets: `Datasets`, of which only the split architecture is read.
      run_dir: the `RunDir`.

    Raises:
      RunDirError: where there is no checkpoint of this search that can be read.
    """
    datasets = search_datasets(config, datasets)
    steps = search_steps(config, datasets)
    supernet = build_supernet(config, datasets.image_shape, len(datasets.class_names), steps)
    _restore(supernet, run_dir)
    space = get_search_space(config.search.search_space)

    @tf.function(autograph=False)
    def accuracy(images, labels, draw):
        return objective.accuracy(labels, supernet(images, draw=draw))

    def score(genotype):
        draw = tf.nest.map_structure(tf.constant, genotype_draw(genotype, space))
        options = {"mean": datasets.mean, "std": datasets.std, "seed": config.seed, "epoch": 0, "max_batches": steps}
        half = batches(datasets.architecture, config.search.batch_size, **options)
        return float(np.mean([accuracy(images, labels, draw).numpy() for images, labels in half], dtype=np.float64))

    return score


def _restore(supernet, run_dir):
    """Gives the supernet the variables of the newest checkpoint."""
    directory = str(run_dir.file("search/checkpoints"))
    path = tf.train.latest_checkpoint(directory)
    if path is None:
        raise RunDirError(
            f"rule best_of scores with the supernet's weights. Expected a checkpoint of the search. Received: none in {directory}"
        )
    try:
        # Optimizers and the loop's own state stay where they are.
        tf.train.Checkpoint(supernet=model_state(supernet)).restore(path).assert_existing_objects_matched().expect_partial()
    except (*UNREADABLE, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise RunDirError(
            f"the search's newest checkpoint cannot be read: {reason}. Expected that of this search. Received: {path}"
        ) from None
