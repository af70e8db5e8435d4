"""Tests that trace a network for a step or two: what its graph computes, not how fast."""

import pytest
import tensorflow as tf


@pytest.fixture(autouse=True, scope="package")
def graphs_as_traced():
    """Without TensorFlow's graph optimizer, which takes longer than these steps; searches and trainings are tested with it elsewhere."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
