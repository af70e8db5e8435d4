import dataclasses

import numpy as np
import pytest

from export import latency
from sivdnas_tf.config import BudgetConfig
from sivdnas_tf.errors import ConfigError
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.profiling.costs import deployed_cost
from sivdnas_tf.zoo import registry

BUDGET = BudgetConfig(network="cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, latency_runtime="tflite_all")
CELL = Cell((Edge(2, 0, "skip_connect"), Edge(2, 1, "sep_conv_3x3")), (2,))
SMALL = Genotype("small", CELL, CELL)


def test_the_deployed_network_is_the_one_that_is_measured(monkeypatch):
    def measure_latency(model, names):
        assert names == ("tflite_all",) * 3
        assert (model.input_shape, model.output_shape) == ((None, 8, 8, 1), (None, 3))
        params = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
        assert params == deployed_cost(registry.load("PDARTS"), BUDGET).params
        return [{"runtime": "tflite_all", "p50_ms": median, "p90_ms": 9.0, "p99_ms": 99.0} for median in (1.5, 1.25, 7.0)]

    monkeypatch.setattr(latency, "measure_latency", measure_latency)
    assert latency.deployed_latency_ms(registry.load("PDARTS"), BUDGET) == 1.25


@pytest.mark.parametrize("runtime", latency.RUNTIMES)
def test_a_median_of_every_runtime_that_a_configuration_names(runtime):
    assert latency.deployed_latency_ms(SMALL, dataclasses.replace(BUDGET, latency_runtime=runtime)) > 0.0


def test_another_runtime_is_refused():
    with pytest.raises(ConfigError, match="Received: 1 inputs, 1 outputs, runtimes tflite"):
        latency.deployed_latency_ms(SMALL, dataclasses.replace(BUDGET, latency_runtime="tflite"))
