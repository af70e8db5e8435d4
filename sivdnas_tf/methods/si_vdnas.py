"""SI-VDNAS, the paper's method: gates and Gaussian noise on operations and edges, an annealed prior (Section 3). Imports no TensorFlow."""

from sivdnas_tf.methods.method import Method

SI_VDNAS = Method(
    "si_vdnas",
    operations="semi_implicit",
    edges="semi_implicit",
    annealed=True,
    rules=("budget", "mode", "sample", "redraw", "best_of", "darts"),
)
