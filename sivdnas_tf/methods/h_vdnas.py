"""H-VDNAS (Table 3): Gaussian dropout on operations and edges, without gates, lambda = 0. Imports no TensorFlow."""

from sivdnas_tf.methods.method import Method

# Its gates are 1 (Phi = 1), so there is nothing to sample: what keep_probability says is held against a threshold.
H_VDNAS = Method("h_vdnas", operations="gaussian", edges="gaussian", rules=("budget", "mode", "darts"))
