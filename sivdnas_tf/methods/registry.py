"""The search methods by name: the values of `search.method`. Imports no TensorFlow."""

from sivdnas_tf.errors import ConfigError, nearest
from sivdnas_tf.methods.darts import DARTS_FIRST, DARTS_SECOND
from sivdnas_tf.methods.h_vdnas import H_VDNAS
from sivdnas_tf.methods.random import RANDOM
from sivdnas_tf.methods.si_vdnas import SI_VDNAS
from sivdnas_tf.methods.v_vdnas import V_VDNAS

METHODS = {method.name: method for method in (SI_VDNAS, H_VDNAS, V_VDNAS, DARTS_FIRST, DARTS_SECOND, RANDOM)}


def get_method(name):
    """The `Method` of a name; raises `ConfigError` for an unknown one."""
    if name not in METHODS:
        raise ConfigError(f"unknown method of search.{nearest(name, METHODS)} Expected one of {', '.join(METHODS)}. Received: {name!r}")
    return METHODS[name]
