"""The search cell and the evaluation cell, side by side over one wiring function.

A supernet whose gates are all 0 or 1 must equal the evaluation network with the same weights; that is only plausible while both
share `wire` and the table of operations.
"""

import keras
import tensorflow as tf

from sivdnas_tf.layers import blocks
from sivdnas_tf.layers.operations import candidate_operation, is_identity


def wire(inputs, nodes, node_output, concat):
    """Runs a cell: nodes in order, each from the states before it, then the concatenation.

    Args:
      inputs: preprocessed outputs of cells k-2 and k-1, `[batch, n, n, channels]` each.
      nodes: indices of the intermediate nodes to compute, ascending.
      node_output: function of `(node, states)` to the node's tensor; `states` maps every earlier node to its own.
      concat: nodes whose tensors are concatenated, in this order.
    """
    states = dict(enumerate(inputs))
    for node in nodes:
        states[node] = node_output(node, states)
    outputs = [states[node] for node in concat]
    return outputs[0] if len(outputs) == 1 else keras.ops.concatenate(outputs, axis=-1)


def preprocessing(cell_plan, normalization, name):
    """The two layers that bring a cell's inputs to its width, and input 0 to the resolution of input 1."""
    first = blocks.FactorizedReduce if cell_plan.reduction_prev else blocks.ReLUConvBN
    return (
        first(cell_plan.channels, normalization=normalization, name=f"{name}_preprocess0"),
        blocks.ReLUConvBN(cell_plan.channels, normalization=normalization, name=f"{name}_preprocess1"),
    )


class EdgeKind:
    """One compiled function for all search edges of the same width and stride.

    A supernet has a hundred edges of five kinds. Tracing every candidate operation of every edge takes minutes; this traces those of a
    kind once (for each resolution and replica) and passes an edge's weights as arguments. `_noinline` keeps the graph optimizer from
    expanding the function again. Not a Keras layer, so that the templates' own variables are nobody's weights.

    Args:
      primitives: names of the candidate operations, in the order of the samples.
      channels: of input and output.
      stride: 1 or 2.
    """

    def __init__(self, primitives, channels, stride):
        self.stride = stride
        self.templates = [
            candidate_operation(
                primitive, channels=channels, stride=stride, normalization="batch_statistics", pool_normalization="batch_statistics"
            )
            for primitive in primitives
        ]
        for template in self.templates:
            template.build((None, None, None, channels))
        self.apply = tf.function(self._apply, autograph=False, experimental_attributes={"_noinline": True})

    def _apply(self, accumulator, inputs, samples, gates, weights):
        """accumulator + sum over primitives of samples[p] * operation_p(inputs), computing only those whose gate is on.

        Args:
          accumulator: `[batch, n', n', channels]`, the node's sum so far.
          inputs: `[batch, n, n, channels]`, the predecessor's state.
          samples: [P], what multiplies each operation's output.
          gates: [P], bool.
          weights: a list of tensors a primitive, as in the templates' `trainable_variables`.
        """
        for index, template in enumerate(self.templates):

            def added(template=template, index=index, accumulator=accumulator):
                output, _ = template.stateless_call(weights[index], [], inputs)
                return accumulator + samples[index] * output

            # Adding inside the branch: an operation that is off leaves no tensor of zeros behind.
            accumulator = tf.cond(gates[index], added, lambda accumulator=accumulator: accumulator)
        return accumulator


class SearchEdge(keras.layers.Layer):
    """The weights of all candidate operations of one edge of one cell; computes through its `EdgeKind`.

    Args:
      kind: the shared `EdgeKind`.
    """

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self._kind = kind
        self.operation_weights = []

    def build(self):
        """Makes the weights, shaped as the templates'."""
        for primitive, template in enumerate(self._kind.templates):
            self.operation_weights.append([self._copy_of(variable, f"operation{primitive}") for variable in template.trainable_variables])
        self.built = True

    def _copy_of(self, variable, prefix):
        layer = variable.path.split("/")[-2]
        height, width, in_channels, _ = variable.shape
        fan_in = height * width * (1 if "depthwise" in layer else in_channels)
        return self.add_weight(name=f"{prefix}_{layer}", shape=variable.shape, initializer=blocks.fan_in_uniform(fan_in))

    def call(self, accumulator, inputs, samples, gates):
        """See `EdgeKind`."""
        weights = [[tf.convert_to_tensor(variable) for variable in variables] for variables in self.operation_weights]
        return self._kind.apply(accumulator, inputs, samples, gates, weights)


class SearchCell(keras.layers.Layer):
    """A cell with every candidate operation on every edge (Eq. 12, 13).

    Args:
      space: the `SearchSpace`.
      cell_plan: the `CellPlan`.
      edge_kinds: dict from `(channels, stride)` to `EdgeKind`, shared by the supernet's cells; missing kinds are added.
    """

    def __init__(self, space, cell_plan, edge_kinds, **kwargs):
        super().__init__(**kwargs)
        self._space, self._plan = space, cell_plan
        self.preprocess0, self.preprocess1 = preprocessing(cell_plan, "batch_statistics", "cell")
        self.edges = []
        for predecessor, node in space.edges:
            key = (cell_plan.channels, cell_plan.stride(predecessor))
            if key not in edge_kinds:
                edge_kinds[key] = EdgeKind(space.primitives, *key)
            self.edges.append(SearchEdge(edge_kinds[key], name=f"edge_{predecessor}_{node}"))

    def build(self):
        """Makes all weights."""
        for index, layer in enumerate((self.preprocess0, self.preprocess1)):
            layer.build((None, None, None, self._plan.in_channels[index]))
        for edge in self.edges:
            edge.build()
        self.built = True

    def call(self, inputs_0, inputs_1, samples, gates):
        """Computes the cell.

        Args:
          inputs_0, inputs_1: outputs of cells k-2 and k-1.
          samples: [E, P], the edge's sample times the operation's.
          gates: [E, P], bool: the edge's gate and the operation's.

        Returns:
          `[batch, n, n, nodes * channels]`.
        """

        def node_output(node, states):
            total = tf.zeros_like(states[0][:, :: self._plan.stride(0), :: self._plan.stride(0), :])
            for index in self._space.edges_into(node):
                predecessor = self._space.edges[index][0]
                total = self.edges[index](total, states[predecessor], samples[index], gates[index])
            return total

        inputs = self.preprocess0(inputs_0), self.preprocess1(inputs_1)
        return wire(inputs, self._space.nodes, node_output, self._space.nodes)


class EvaluationCell:
    """A genotype's cell in a Functional model: called on symbolic tensors, it makes one named layer an operation.

    Edges and the operations on an edge are summed without weights, as DARTS and FairDARTS do.

    Args:
      cell: the genotype's `Cell`.
      cell_plan: the `CellPlan`.
      normalization, pool_normalization: as for `candidate_operation`.
      drop_path: function of `(tensor, layer name)` applied after each operation that is not an identity, or None.
    """

    def __init__(self, cell, cell_plan, *, normalization="batch", pool_normalization=None, drop_path=None):
        self.cell, self.plan = cell, cell_plan
        self.normalization, self.pool_normalization = normalization, pool_normalization
        self.drop_path = drop_path
        self.name = f"cell{cell_plan.index}"

    def __call__(self, inputs_0, inputs_1):
        """The cell's symbolic output for the symbolic outputs of cells k-2 and k-1."""
        layers = preprocessing(self.plan, self.normalization, self.name)
        inputs = [layer(tensor) for layer, tensor in zip(layers, (inputs_0, inputs_1), strict=True)]
        return wire(inputs, self.cell.nodes, self._node_output, self.cell.concat)

    def _node_output(self, node, states):
        outputs = [self._operation(edge, number, states) for number, edge in enumerate(self.cell.edges_into(node))]
        return outputs[0] if len(outputs) == 1 else keras.layers.Add(name=f"{self.name}_node{node}")(outputs)

    def _operation(self, edge, number, states):
        stride = self.plan.stride(edge.predecessor)
        name = f"{self.name}_node{edge.node}_{number}_from{edge.predecessor}_{edge.operation}"
        layer = candidate_operation(
            edge.operation,
            channels=self.plan.channels,
            stride=stride,
            normalization=self.normalization,
            pool_normalization=self.pool_normalization,
            name=name,
        )
        output = layer(states[edge.predecessor])
        if self.drop_path is None or is_identity(edge.operation, stride):
            return output
        return self.drop_path(output, f"{name}_drop_path")
