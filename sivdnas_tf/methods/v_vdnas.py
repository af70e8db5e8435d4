"""V-VDNAS (Table 3): Gaussian dropout on operations alone, no edge parameters, DARTS' rule by keep_probability. Imports no TensorFlow."""

from sivdnas_tf.methods.method import Method

# A threshold would keep all edges but those whose operations all fall: its own rule is DARTS', the others can be asked for.
V_VDNAS = Method("v_vdnas", operations="gaussian", rules=("darts", "mode"))
