"""Random search, the baseline that learns nothing: no supernet, and the gates drawn until they fit the budget. Imports no TensorFlow."""

from sivdnas_tf.methods.method import Method

RANDOM = Method("random", trains_supernet=False, rules=("redraw", "sample"))
