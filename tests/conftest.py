"""Two logical CPUs for the distribution tests, quiet start-up, and what tests share."""

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def pytest_configure(config):
    """Splits the CPU before anything initialises TensorFlow: strategies are tested on two devices without a GPU."""
    del config
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="session")
def read_events():
    """A function of a TensorBoard directory to its scalars and histograms: `{tag: {step: value}}` each."""
    import tensorflow as tf
    from tensorboard.compat.proto import event_pb2

    def read(directory):
        found = {"scalars": {}, "histograms": {}}
        for path in sorted(directory.glob("events.out.tfevents.*")):
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = event_pb2.Event.FromString(record)
                for value in event.summary.value:
                    found[value.metadata.plugin_data.plugin_name].setdefault(value.tag, {})[event.step] = tf.make_ndarray(value.tensor)
        return found["scalars"], found["histograms"]

    return read
