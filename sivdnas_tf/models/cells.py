"""The search cell and the evaluation cell, side by side over one wiring function.

A supernet whose gates are all 0 or 1 must equal the evaluation network with the same weights; that is only plausible while both
share `wire` and the table of operations.
"""

import keras
import tensorflow as tf

from sivdnas_tf.layers import blocks
from sivdnas_tf.layers.mixed_operation import MixedOperation, empty_sums, total
from sivdnas_tf.layers.operations import candidate_operation, is_identity


def wire(inputs, nodes, node_output, concat):
    """Runs a cell: nodes in order, each from the states before it, then the concatenation.

    Args:
      inputs: what the first nodes are, `[batch, n, n, channels]` each: in DARTS' cells the preprocessed outputs of cells k-2 and k-1.
      nodes: indices of the intermediate nodes to compute, ascending.
      node_output: function of `(node, states)` to the node's tensor; `states` maps every earlier node to its own.
      concat: nodes whose tensors are concatenated, in this order.
    """
    states = dict(enumerate(inputs))
    for node in nodes:
        states[node] = node_output(node, states)
    outputs = [states[node] for node in concat]
    return outputs[0] if len(outputs) == 1 else keras.ops.concatenate(outputs, axis=-1)


def preprocessed(layers, inputs):
    """A cell's first nodes: its inputs, each through its layer of `preprocessing` where there are any."""
    return [layer(tensor) for layer, tensor in zip(layers, inputs, strict=True)] if layers else list(inputs)


def preprocessing(cell_plan, normalization, name):
    """The layers that bring a cell's inputs to its width, input 0 to the resolution of input 1; none where it takes them as they are."""
    if not cell_plan.preprocesses:
        return ()
    first = blocks.FactorizedReduce if cell_plan.reduction_prev else blocks.ReLUConvBN
    return (
        first(cell_plan.channels, normalization=normalization, name=f"{name}_preprocess0"),
        blocks.ReLUConvBN(cell_plan.channels, normalization=normalization, name=f"{name}_preprocess1"),
    )


class StackedOperations(keras.layers.Layer):
    """The weights of the candidate operations of several edges alike, each tensor stacked over the edges.

    Twelve variables an edge instead would be 1,344 in the eight cells of full size, and each costs the optimizer a dozen graph nodes.

    Args:
      mixed: the `MixedOperation` that computes these edges.
      n_edges: number of edges.
    """

    def __init__(self, mixed, n_edges, **kwargs):
        super().__init__(**kwargs)
        self._mixed, self._n_edges = mixed, n_edges
        self.operation_weights = []

    def build(self):
        """Makes the variables, a list a primitive: `[n_edges, …]`, shaped as the templates' and initialised as a single edge's are."""
        for primitive, template in enumerate(self._mixed.templates):
            self.operation_weights.append([self._stack_of(variable, f"operation{primitive}") for variable in template.trainable_variables])
        self.built = True

    def _stack_of(self, variable, prefix):
        layer = variable.path.split("/")[-2]
        height, width, in_channels, _ = variable.shape
        fan_in = height * width * (1 if "depthwise" in layer else in_channels)
        return self.add_weight(name=f"{prefix}_{layer}", shape=(self._n_edges, *variable.shape), initializer=blocks.fan_in_uniform(fan_in))

    def of_edges(self):
        """The tensors of each edge: a list of `n_edges`, of lists a primitive, as `MixedOperation.add` takes them."""
        stacks = [
            [tf.unstack(tf.cast(tf.convert_to_tensor(variable), self.compute_dtype)) for variable in variables]
            for variables in self.operation_weights
        ]
        return [[[stack[edge] for stack in primitive] for primitive in stacks] for edge in range(self._n_edges)]


class SearchCell(keras.layers.Layer):
    """A cell with every candidate operation on every edge (Eq. 12, 13).

    Args:
      space: the `SearchSpace`.
      cell_plan: the `CellPlan`.
      mixed_operations: dict from `(channels, stride)` to `MixedOperation`, shared by the supernet's cells; missing ones are added.
      recompute: whether the backward pass computes the cell once more, instead of the forward pass keeping what is within it.
      normalize_skips: see `MixedOperation`.
    """

    def __init__(self, space, cell_plan, mixed_operations, recompute=False, normalize_skips=False, **kwargs):
        super().__init__(autocast=False, **kwargs)  # samples stay float32
        self._space, self._plan, self.recompute = space, cell_plan, recompute
        self.preprocessing = preprocessing(cell_plan, "batch_statistics", "cell")
        self._mixed = {}
        self._edges = {}  # stride -> indices of the edges that have it
        for index, (predecessor, _) in enumerate(space.edges):
            stride = cell_plan.stride(predecessor)
            key = (cell_plan.channels, stride)
            if key not in mixed_operations:
                mixed_operations[key] = MixedOperation(space.primitives, *key, normalize_skips)
            self._mixed[predecessor] = mixed_operations[key]
            self._edges.setdefault(stride, []).append(index)
        self.operations = {
            stride: StackedOperations(mixed_operations[cell_plan.channels, stride], len(edges), name=f"stride{stride}")
            for stride, edges in self._edges.items()
        }

    def build(self):
        """Makes all weights."""
        for index, layer in enumerate(self.preprocessing):
            layer.build((None, None, None, self._plan.in_channels[index]))
        for operations in self.operations.values():
            operations.build()
        self.built = True

    def edge_weights(self):
        """The weights of every edge, in the space's order: tensors, in a list a primitive."""
        weights = {}
        for stride, operations in self.operations.items():
            weights.update(zip(self._edges[stride], operations.of_edges(), strict=True))
        return [weights[index] for index in range(len(weights))]

    def call(self, inputs, samples, gates, gradients_to="all"):
        """Computes the cell.

        Args:
          inputs: a list of the outputs of cells k-2 and k-1, or of the one input of a cell that has one.
          samples: [E, P], the edge's sample times the operation's, or [batch, E, P] for each example's.
          gates: [E, P], bool: the edge's gate and the operation's.
          gradients_to: see `MixedOperation.add`.

        Returns:
          `[batch, n, n, output nodes * channels]`.
        """
        if not self.recompute:
            return self._nodes(inputs, samples, gates, gradients_to)
        variables = self.trainable_variables

        @tf.recompute_grad
        def nodes(samples, *tensors):
            own = tensors[len(inputs) :]
            with keras.StatelessScope(state_mapping=list(zip(variables, own, strict=True))):
                return self._nodes(tensors[: len(inputs)], samples, gates, gradients_to)

        # As tensors, which recompute_grad treats like its other arguments, whatever kind of variable the strategy made.
        return nodes(samples, *inputs, *(tf.convert_to_tensor(variable) for variable in variables))

    def _nodes(self, inputs, samples, gates, gradients_to):
        beginnings, weights = {}, self.edge_weights()
        with_phases = any(mixed.uses_phases for mixed in self._mixed.values())
        edge_samples, edge_gates = tf.unstack(samples, axis=-2), tf.unstack(gates)

        def beginnings_of(state, states):
            if state not in beginnings:
                leaving = [index for index, (predecessor, _) in enumerate(self._space.edges) if predecessor == state]
                needed = tf.reduce_any([edge_gates[index] for index in leaving], axis=0)
                beginnings[state] = self._mixed[state].beginnings(states[state], needed)
            return beginnings[state]

        def node_output(node, states):
            sums = empty_sums(states[0][:, :: self._plan.stride(0), :: self._plan.stride(0), :], with_phases)
            for index in self._space.edges_into(node):
                predecessor = self._space.edges[index][0]
                sums, beginnings[predecessor] = self._mixed[predecessor].add(
                    sums, beginnings_of(predecessor, states), edge_samples[index], edge_gates[index], weights[index], gradients_to
                )
            return total(sums)

        return wire(preprocessed(self.preprocessing, inputs), self._space.nodes, node_output, self._space.outputs)


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

    def __call__(self, inputs):
        """The cell's symbolic output for its symbolic inputs, a list: the outputs of cells k-2 and k-1, or one."""
        layers = preprocessing(self.plan, self.normalization, self.name)
        return wire(preprocessed(layers, inputs), self.cell.nodes, self._node_output, self.cell.concat)

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
