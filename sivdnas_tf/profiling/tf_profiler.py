"""What TensorFlow's built-in profiler counts in a frozen network, reconciled with multiply-adds; and the price of any Keras model.

The profiler (`tf.compat.v1.profiler`, "float_operation") needs a graph whose variables are constants and whose batch is fixed: with
variables it counts nothing, with an unknown batch nonsense (STACK.md section 5). It then counts

    2 * macs        of Conv2D, DepthwiseConv2dNative and MatMul, where nothing is padded,
    more            of a dilated convolution whose size the dilation does not divide: it runs on the phases of the padded image, and what
                    they hold beyond the image is counted,
    something else  of additions, products, pooling, softmax; nothing of ReLU, concatenation, padding, grouped convolutions, Einsum.

So float_ops of convolutions and dense layers, less that padding, are 2 * macs exactly, and everything else has its own name.
"""

import dataclasses
import math

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from sivdnas_tf.errors import DataError

# Contractions: what `macs` counts. The profiler counts the first three.
_PROFILED = ("Conv2D", "DepthwiseConv2dNative", "MatMul")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# A body that runs an unknown number of times, or not at all.
_LOOPS = ("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a graph that costs something.

    Attributes:
      name: in the graph.
      type: TensorFlow's name of the operation.
      macs: multiply-adds, one image; 0 for what is no convolution and no dense layer.
      float_ops: what the profiler counts.
    """

    name: str
    type: str
    macs: int
    float_ops: int

    @property
    def padding_float_ops(self):
        """What the profiler counts beyond 2 * macs of a convolution or dense layer."""
        return self.float_ops - 2 * self.macs if self.macs else 0


@dataclasses.dataclass(frozen=True)
class GraphProfile:
    """What the profiler counts in one graph.

    Attributes:
      operations: an `Operation` for each that the profiler or `macs` counts.
    """

    operations: tuple

    @property
    def float_ops(self):
        """The profiler's total."""
        return sum(operation.float_ops for operation in self.operations)

    @property
    def macs(self):
        """Multiply-adds of convolutions and dense layers by the shapes in the graph."""
        return sum(operation.macs for operation in self.operations)

    @property
    def padding_float_ops(self):
        """What the profiler counts of the padding of dilated convolutions."""
        return sum(operation.padding_float_ops for operation in self.operations)

    @property
    def contraction_float_ops(self):
        """What it counts of convolutions and dense layers, that padding included."""
        return sum(operation.float_ops for operation in self.operations if operation.macs)

    def by_type(self):
        """`(type, number of operations, float_ops, macs)` of every type, those that cost most first."""
        totals = {}
        for operation in self.operations:
            count, float_ops, macs = totals.get(operation.type, (0, 0, 0))
            totals[operation.type] = (count + 1, float_ops + operation.float_ops, macs + operation.macs)
        return sorted(((name, *values) for name, values in totals.items()), key=lambda row: (-row[2], row[0]))


def profile_model(model, input_shapes=None):
    """Runs TensorFlow's profiler on the frozen inference graph of a Keras model, for a batch of one.

    Args:
      model: a built Keras model.
      input_shapes: shapes without the batch, one an input; None takes the model's own, which must then be known.

    Returns:
      A `GraphProfile`.

    Raises:
      DataError: where an input's shape is unknown.
    """
    frozen = convert_variables_to_constants_v2(_concrete_function(model, input_shapes))
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options = tf.compat.v1.profiler.ProfileOptionBuilder(options).with_empty_output().build()
    tree = tf.compat.v1.profiler.profile(frozen.graph, cmd="scope", options=options)
    float_ops = dict(_leaves(tree))
    operations = []
    for operation in frozen.graph.get_operations():
        counted, macs = float_ops.get(operation.name, 0), _multiply_adds(operation) if operation.type in _PROFILED else 0
        if counted or macs:
            operations.append(Operation(operation.name, operation.type, macs, counted))
    return GraphProfile(tuple(operations))


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """Price of a Keras model that is not made of a genotype.

    Attributes:
      params: trainable, frozen layers' included; moving statistics are none.
      macs: multiply-adds of convolutions and contractions, one image.
      uncounted: sorted names of operations in which multiply-adds may hide that cannot be counted: loops and conditionals.
    """

    params: int
    macs: int
    uncounted: tuple


def model_cost(model, input_shapes=None):
    """Prices any built Keras model by the shapes in its inference graph: grouped, transposed and 3D convolutions and Einsum included.

    Args:
      model: a Keras model; all its layers are made trainable, which is what is counted.
      input_shapes: as `profile_model`.

    Returns:
      A `ModelCost`.

    Raises:
      DataError: where an input's shape is unknown.
    """
    model.trainable = True
    graph = _concrete_function(model, input_shapes).graph
    macs, uncounted = 0, set()
    for operation in _with_called(graph):
        if operation.type in _LOOPS:
            uncounted.add(operation.type)
        else:
            macs += _multiply_adds(operation)
    return ModelCost(sum(math.prod(variable.shape) for variable in model.trainable_variables), macs, tuple(sorted(uncounted)))


def load_model(path):
    """The Keras model in a .keras file; raises `DataError` where it cannot be read. Code in it (Lambda layers) is refused."""
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"a Keras model must be a readable .keras file without code in it. Received: {path!r} ({reason})") from error


def shapes_at(model, resolution):
    """Shapes of the model's inputs without the batch, open sizes of images as `resolution` pixels."""
    return [[resolution if size is None else size for size in each.shape[1:]] for each in model.inputs]


def _concrete_function(model, input_shapes):
    given = [list(each.shape[1:]) for each in model.inputs] if input_shapes is None else [list(shape) for shape in input_shapes]
    if any(size is None for shape in given for size in shape):
        raise DataError(f"{model.name!r} leaves the size of its input open: give --resolution. Received: input shapes {given}")
    specs = [tf.TensorSpec([1, *shape], each.dtype) for shape, each in zip(given, model.inputs, strict=True)]

    @tf.function(autograph=False)
    def infer(*inputs):
        return model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)

    return infer.get_concrete_function(*specs)


def _leaves(tree):
    """`(name, float_ops)` of every operation in the profiler's tree of scopes."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        waiting.extend(node.children)
        if node.float_ops:
            yield node.name, node.float_ops


def _with_called(graph):
    """Operations of a graph and of the functions that it calls, once a call."""
    for operation in graph.get_operations():
        if operation.type in _CALLS:
            yield from _with_called(graph._get_function(operation.get_attr("f").name).graph)  # no public way to a function's graph
        else:
            yield operation


def _multiply_adds(operation):
    """Multiply-adds of a convolution or contraction by its shapes; 0 for any other operation."""
    kind = operation.type
    if kind in ("Conv2D", "Conv3D"):  # kernel: [..., input channels of a group, output channels]
        return _elements(_true_output(operation)) * math.prod(operation.inputs[1].shape[:-1])
    if kind == "DepthwiseConv2dNative":  # kernel: [height, width, channels, multiplier]
        return _elements(_true_output(operation)) * math.prod(operation.inputs[1].shape[:2])
    if kind in ("Conv2DBackpropInput", "Conv3DBackpropInputV2"):  # a transposed convolution: every input pixel meets the whole kernel
        return _elements(operation.inputs[2].shape) * math.prod(operation.inputs[1].shape[:-1])
    if kind in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        transposed = operation.get_attr("transpose_a" if kind == "MatMul" else "adj_x")
        return _elements(operation.outputs[0].shape) * operation.inputs[0].shape[-2 if transposed else -1]
    if kind in ("Einsum", "XlaEinsum"):
        return _einsum_multiply_adds(operation)
    return 0


def _true_output(operation):
    """Shape of a convolution's output; of a dilated one's, which runs on phases of the padded image, after they are put together."""
    (output, *_) = operation.outputs
    together = [each for each in output.consumers() if each.type == "BatchToSpaceND"]
    return together[0].outputs[0].shape if together else output.shape


def _einsum_multiply_adds(operation):
    """Product of the sizes of all labels; an equation of one operand multiplies nothing."""
    equation = operation.get_attr("equation")
    terms = (equation.decode() if isinstance(equation, bytes) else equation).partition("->")[0].split(",")
    if len(terms) < 2:
        return 0
    sizes = {}
    for term, tensor in zip(terms, operation.inputs, strict=True):
        head, ellipsis, tail = term.partition("...")
        shape = list(tensor.shape)
        sizes |= dict(zip(head, shape, strict=False))
        if ellipsis:
            sizes |= {("...", index): size for index, size in enumerate(shape[len(head) : len(shape) - len(tail)])}
            sizes |= dict(zip(tail, shape[len(shape) - len(tail) :], strict=True))
    return math.prod(sizes.values())


def _elements(shape):
    return math.prod(shape)
