"""Search method "random": a posterior that knows nothing, for `derive` to draw from until a draw fits the budget. Imports no TensorFlow.

The draw is uniform in that no edge and no operation is likelier than another: every edge is kept with probability 1/2 and every operation
of it with 1/5, independently, and what the budget does not allow is drawn again (rule "redraw"). Uniform over all subsets would keep half
of all operations, which almost never fits: the cells would be what a budget leaves of those with everything.
"""

import math

import numpy as np

from sivdnas_tf.posterior import CellPosterior, Posterior
from sivdnas_tf.run_dir import write_json
from sivdnas_tf.search_space import get_search_space

EDGE_PROBABILITY, OPERATION_PROBABILITY = 0.5, 0.2
# Where an edge has one operation: any of its primitives or none, each as likely.
_ALMOST_CERTAIN = -20.0


def uniform_posterior(space):
    """The `Posterior` of a search that never began: the same keep probabilities everywhere in a `SearchSpace`.

    Where an edge has one operation, all of an open edge's are open, of which a draw keeps one, each as likely; the edge is open with
    P / (P + 1), so that `none` is as likely as a primitive (but at a node that nothing else would feed).
    """
    edges, primitives = len(space.edges), len(space.primitives)
    edge_rate, operation_rate = math.log(1 / EDGE_PROBABILITY - 1), math.log(1 / OPERATION_PROBABILITY - 1)
    if space.one_operation_an_edge:
        edge_rate, operation_rate = -math.log(primitives), _ALMOST_CERTAIN
    cell = CellPosterior(
        operation_weights=np.ones((edges, primitives), np.float32),
        log_operation_dropout_rate=np.full((edges, primitives), operation_rate, np.float32),
        edge_weights=np.ones(edges, np.float32),
        log_edge_dropout_rate=np.full(edges, edge_rate, np.float32),
    )
    return Posterior(space.name, 0, **dict.fromkeys(space.cell_types, cell), method="random")


def write_random_search(config, run_dir, overwrite=False, say=print):
    """The search stage of method "random": writes config.json and search/posterior.npz, reads no images and trains nothing.

    Args:
      config: a `Config` with search.method "random".
      run_dir: the `RunDir`.
      overwrite: whether an earlier search there is removed first.
      say: function of a line for the user.

    Returns:
      The `Posterior`.

    Raises:
      RunDirError: where the search in `run_dir` was made with other settings.
    """
    done = run_dir.begin("search", config.stage_settings("search"), overwrite).done
    write_json(run_dir.file("config.json"), config.to_dict())
    if done:
        say(f"search: done already ({run_dir.file('search/posterior.npz')})")
        return run_dir.read_posterior()
    posterior = uniform_posterior(get_search_space(config.search.search_space))
    run_dir.write_posterior(posterior)
    say("search: method random trains no supernet: derive draws a genotype, by its seed, that fits the budget")
    return posterior
