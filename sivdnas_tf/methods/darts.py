"""DARTS of first and of second order (Liu et al. 2019): softmax over an edge's operations, and nothing else. Imports no TensorFlow."""

from sivdnas_tf.methods.method import Method

DARTS_FIRST = Method("darts_first", operations="weights", mixing="softmax", hypergradient_order=1, ranked_by="weight")
DARTS_SECOND = Method("darts_second", operations="weights", mixing="softmax", hypergradient_order=2, ranked_by="weight")
