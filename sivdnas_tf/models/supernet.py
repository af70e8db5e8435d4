"""The supernet of all search methods and its bilevel step (METHOD.md sections 2, 3 and 5; Algorithm 1)."""

import typing

import keras
import tensorflow as tf

from sivdnas_tf.errors import ConfigError, nearest
from sivdnas_tf.layers.architecture_parameters import make_parameters
from sivdnas_tf.layers.blocks import ResidualReduction
from sivdnas_tf.methods.si_vdnas import SI_VDNAS
from sivdnas_tf.models.cells import SearchCell
from sivdnas_tf.models.heads import build_classifier, build_stem
from sivdnas_tf.posterior import CellPosterior, Posterior
from sivdnas_tf.training import hypergradient, objective
from sivdnas_tf.training.distribution import apply_gradients, loss_scale, replica_mean
from sivdnas_tf.variational.distributions import Draw, step_seed

NOISE_SHAPES = ("operation", "cell", "example")


class CellDraw(typing.NamedTuple):
    """Gates and noise of one cell type: `Draw`s of shape [E, P] and [E]; noise may have leading axes, see `Supernet`."""

    operations: Draw
    edges: Draw


def _without_noise(draw):
    return draw._replace(noise=tf.zeros_like(draw.noise))


class Supernet(keras.Model):
    """A network in which every edge carries every primitive, weighted by samples of the architecture posterior.

    Owns the architecture parameters once a cell type: all normal cells share one set, all reduction cells another. An edge's output is
    v_e * sum_p mu_ep * op_p(x) (Eq. 12, 13) with v = phi * zeta and mu = w * xi; an operation whose own or whose edge's gate is 0 is
    not computed. Compile it with both optimizers (`compile`), then use `fit` on `((images, labels), (images, labels))` (weight half,
    architecture half), or `bilevel_step` in a loop.

    Args:
      space: a `SearchSpace`.
      plan: a `NetworkPlan` with one multiplier, the space's number of output nodes, for all cell types.
      method: the `methods.method.Method`: which architecture parameters there are, what is drawn for them, and their KL divergence.
      mixing: "identity", "average", "sigmoid" or "softmax", see `MixingWeights`; where the method has one of its own, it is that.
      initial_log_dropout_rate: log delta and log sigma at the start.
      noise_in: which of a step's updates have the Gaussian noise: "both", or the "architecture"'s alone.
      noise_shape: what has Gaussian noise of its own: each "operation" and edge of a cell type (the paper), each of them in every "cell",
        or in every cell for every "example". The gates are drawn once a step in any case.
      normalize_skips: whether skip connections of stride 1 end in batch-norm without affine parameters, as all else does. Not the paper's.
      recompute: whether the backward pass computes each cell once more, instead of the forward pass keeping what is within: less memory,
        more time.
      gate_gradient, gate_temperature: see `SemiImplicitDropout`; anything but "none" computes every operation in the architecture's step.
      seed: of gates and noise; with the step number it decides every draw.
      name: of the model.
    """

    def __init__(
        self,
        space,
        plan,
        *,
        method=SI_VDNAS,
        mixing="identity",
        initial_log_dropout_rate=-5.0,
        noise_in="both",
        noise_shape="operation",
        gate_gradient="none",
        gate_temperature=0.5,
        normalize_skips=False,
        recompute=False,
        seed=0,
        name="supernet",
    ):
        super().__init__(name=name, dtype="float32")  # its own arguments, draws, stay as they are whatever its layers compute in
        if noise_shape not in NOISE_SHAPES:
            raise ConfigError(
                f"unknown noise_shape.{nearest(noise_shape, NOISE_SHAPES)} Expected one of {', '.join(NOISE_SHAPES)}. "
                f"Received: noise_shape={noise_shape!r}"
            )
        self.space, self.plan, self.method, self.seed = space, plan, method, seed
        self.kl_centered = self.kl_until_budget = False  # until `compile` says
        self.noise_in, self.noise_shape, self.gate_gradient = noise_in, noise_shape, gate_gradient
        self.mixing = method.mixing or mixing
        common = {
            "mixing": self.mixing,
            "initial_log_dropout_rate": initial_log_dropout_rate,
            "gate_gradient": gate_gradient,
            "gate_temperature": gate_temperature,
        }
        n_edges, n_primitives = len(space.edges), len(space.primitives)
        groups = tuple(node for _, node in space.edges)
        self.operation_dropout = {
            cell_type: make_parameters(method.operations, (n_edges, n_primitives), name=f"{cell_type}_operations", **common)
            for cell_type in self.space.cell_types
        }
        self.edge_dropout = {
            cell_type: make_parameters(method.edges, (n_edges,), groups=groups, name=f"{cell_type}_edges", **common)
            for cell_type in self.space.cell_types
        }
        self._make_network({"recompute": recompute, "normalize_skips": normalize_skips})
        self._make_state()
        self.update_architecture = True

    def _make_network(self, cell_options):
        images = keras.Input((self.plan.resolution, self.plan.resolution, self.plan.image_channels))
        self.stem = keras.Model(images, build_stem(self.plan, "batch_statistics")(images), name="stem")
        kinds = {}
        self.cells = [
            SearchCell(self.space, cell_plan, kinds, name=f"cell{cell_plan.index}", **cell_options) for cell_plan in self.plan.cells
        ]
        for cell in self.cells:
            cell.build()
        after = [self.plan.cells[index] for index in self.plan.residual_reductions]
        self.reductions = [ResidualReduction(plan.channels, "batch_statistics", name=f"reduction{plan.index}") for plan in after]
        for plan, block in zip(after, self.reductions, strict=True):
            block.build((None, None, None, plan.channels // 2))
        self.classifier = build_classifier(self.plan, "batch_statistics")
        self.classifier.build((None, None, None, self.plan.final_channels))
        self.built = True

    def _make_state(self):
        # (1 - lambda)^2 of operations and of edges, annealed separately (Algorithm 1); the loop assigns them.
        self.operation_prior_gap = self.add_weight(name="operation_prior_gap", shape=(), initializer="ones", trainable=False)
        self.edge_prior_gap = self.add_weight(name="edge_prior_gap", shape=(), initializer="ones", trainable=False)
        # Share of kl_weight that is in force, below 1 while the loop ramps it up. No Keras variable, so that a checkpoint holds what it
        # always held: the loop assigns it in every epoch.
        self.kl_scale = tf.Variable(1.0, trainable=False, name="kl_scale")
        names = ("loss", "accuracy", "architecture_loss", "architecture_accuracy", "kl", *self._norm_names())
        self._trackers = {name: keras.metrics.Mean(name=name) for name in names}

    def _norm_names(self):
        return ("mixing_gradient_norm", "dropout_rate_gradient_norm") if self.dropout_rate_variables else ("mixing_gradient_norm",)

    @property
    def update_architecture(self):
        """Whether `fit` updates the architecture as well as the weights: True, but during a warm-up."""
        return self._update_architecture

    @update_architecture.setter
    def update_architecture(self, value):
        self._update_architecture = value
        self.train_function = None  # `fit`'s compiled step was traced for the old value: it would go on with that, silently

    @property
    def architecture_variables(self):
        """w, phi, log delta and log sigma of all cell types, as far as the method has them."""
        return [*self.mixing_variables, *self.dropout_rate_variables]

    @property
    def mixing_variables(self):
        """w and phi of all cell types: the architecture variables that weight decay belongs on."""
        return [variable for layer in self._dropout_layers() for variable in layer.mixing_variables]

    @property
    def dropout_rate_variables(self):
        """log delta and log sigma of all cell types."""
        return [variable for layer in self._dropout_layers() for variable in layer.dropout_rate_variables]

    @property
    def weight_variables(self):
        """Every trainable variable that is not an architecture variable."""
        architecture = {id(variable) for variable in self.architecture_variables}
        return [variable for variable in self.trainable_variables if id(variable) not in architecture]

    def _dropout_layers(self):
        return [layers[cell_type] for cell_type in self.space.cell_types for layers in (self.operation_dropout, self.edge_dropout)]

    def draw(self, step, batch_size=None):
        """The gates and the noise of a step: a dict from cell type to `CellDraw`.

        Fixed by the seed and `step` alone, but the noise of examples, which differs between replicas.

        Args:
          step: integer scalar.
          batch_size: of this replica, for the noise of "example" only.
        """
        return {
            cell_type: CellDraw(
                **{
                    level: layer.draw(self._seed(step, cell_type, level), *self._noise(step, cell_type, level, batch_size))
                    for level, layer in self._levels(cell_type).items()
                }
            )
            for cell_type in self.space.cell_types
        }

    def _levels(self, cell_type):
        return {"operations": self.operation_dropout[cell_type], "edges": self.edge_dropout[cell_type]}

    def _seed(self, step, cell_type, level):
        return step_seed(self.seed, step, f"{cell_type}_{level}")

    def _noise(self, step, cell_type, level, batch_size):
        """The leading axes of a level's noise and its seed, where it has axes of its own."""
        if self.noise_shape == "operation":
            return ()
        seed = step_seed(self.seed, step, f"{cell_type}_{level}_noise")
        cells = sum(plan.cell_type == cell_type for plan in self.plan.cells)
        if self.noise_shape == "cell":
            return (cells,), seed
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return (cells, batch_size), tf.random.experimental.stateless_fold_in(seed, replica)

    def differentiable(self, draw, step):
        """`draw`, the one of `step`, with gates that pass gradient where `gate_gradient` asks for it."""
        if self.gate_gradient == "none":
            return draw
        return {
            cell_type: CellDraw(
                **{
                    level: layer.differentiable(getattr(draw[cell_type], level), self._seed(step, cell_type, level))
                    for level, layer in self._levels(cell_type).items()
                }
            )
            for cell_type in self.space.cell_types
        }

    def samples(self, draw=None, compute_all=False):
        """What multiplies each operation's output, and which are computed.

        Args:
          draw: from `draw`; None takes the posterior's mean and computes every operation.
          compute_all: whether operations whose gate is 0 are computed too, which gradients through gates need.

        Returns:
          A dict from cell type to `(float [E, P], bool [E, P])`; the floats have the noise's leading axes.
        """
        result = {}
        for cell_type in self.space.cell_types:
            operations, edges = self.operation_dropout[cell_type], self.edge_dropout[cell_type]
            if draw is None:
                sample = edges.expected_sample()[:, None] * operations.expected_sample()
            else:
                cell_draw = draw[cell_type]
                sample = edges(cell_draw.edges)[..., None] * operations(cell_draw.operations)
            if draw is None or compute_all:
                gates = tf.ones(operations.shape, tf.bool)
            else:
                gates = cell_draw.edges.gate[:, None] * cell_draw.operations.gate > 0.5
            result[cell_type] = (sample, gates)
        return result

    def call(self, images, draw=None, compute_all=False, gradients_to="all"):
        """Logits `[batch, classes]` of images `[batch, resolution, resolution, channels]`.

        `draw` and `compute_all` as in `samples`. `gradients_to` the "weights", the "samples" or "all" of the candidate operations: the
        gradient to the others is 0, and costs nothing.
        """
        samples = self.samples(draw, compute_all)
        counts = dict.fromkeys(self.space.cell_types, 0)
        previous, reductions = tf.nest.flatten(self.stem(images)), iter(self.reductions)
        for cell_plan, cell in zip(self.plan.cells, self.cells, strict=True):
            sample, gates = samples[cell_plan.cell_type]
            if sample.shape.rank > 2:  # each cell has its own
                sample = sample[counts[cell_plan.cell_type]]
            counts[cell_plan.cell_type] += 1
            if cell_plan.index in self.plan.residual_reductions:
                previous = [next(reductions)(*previous)]
            previous = [*previous[1:], cell(list(previous), sample, gates, gradients_to=gradients_to)]
        return self.classifier(previous[-1])

    def compute_output_shape(self, input_shape, **kwargs):
        """`[batch, classes]`."""
        del kwargs
        return (input_shape[0], self.plan.classes)

    def kl_divergence(self, draw):
        """KL between posterior and annealed prior given the gates of `draw` (Eq. 14, 17, 18): a scalar in nats.

        Summed over operations and edges of all cell types, each parameter set once, however many cells share it. An operation counts
        whether or not its edge is kept.
        """
        terms = []
        for cell_type in self.space.cell_types:
            operations, edges = self.operation_dropout[cell_type], self.edge_dropout[cell_type]
            terms.append(operations.kl_divergence(draw[cell_type].operations, self.operation_prior_gap, self.kl_centered))
            terms.append(edges.kl_divergence(draw[cell_type].edges, self.edge_prior_gap, self.kl_centered))
        return tf.add_n(terms)

    def expected_cost(self, fixed, terms):
        """Expected cost of a network whose gates are drawn, differentiable through the keep probabilities.

        Args:
          fixed: what does not depend on the gates.
          terms: a dict from cell type to float `[E, P]`: what each operation of each edge adds; both as `costs.expected_cost_terms`, in any
            unit.

        Returns:
          A float32 scalar in that unit.
        """
        total = tf.constant(fixed, tf.float32)
        for cell_type in self.space.cell_types:
            operations, edges = self.operation_dropout[cell_type], self.edge_dropout[cell_type]
            kept = edges.keep_probability()[:, None] * operations.keep_probability()
            total += tf.reduce_sum(kept * tf.constant(terms[cell_type], tf.float32))
        return total

    def compile(
        self,
        weight_optimizer,
        architecture_optimizer,
        *,
        dropout_rate_optimizer=None,
        kl_weight=0.01,
        kl_centered=False,
        kl_until_budget=False,
        weight_decay=0.0,
        architecture_weight_decay=0.0,
        gradient_clip_norm=0.0,
        hypergradient_order=1,
        class_weights=None,
        cost_scale=0.0,
        cost_terms=None,
        run_eagerly=False,
    ):
        """Sets both optimizers and how the step uses them; under a strategy, call it inside `strategy.scope()`.

        Args:
          weight_optimizer: Keras optimizer of the weights; its `iterations` number the steps.
          architecture_optimizer: Keras optimizer of the architecture variables.
          dropout_rate_optimizer: Keras optimizer of log delta and log sigma; None leaves them to the architecture's.
          kl_weight: of the KL in the architecture's loss.
          kl_centered: see `SemiImplicitDropout.kl_divergence`.
          kl_until_budget: whether the KL weighs nothing while the expected cost is at most 1 of `cost_terms`' unit.
          weight_decay: coupled, on the weights.
          architecture_weight_decay: coupled, on w and phi.
          gradient_clip_norm: largest global norm of the weights' gradient; 0 for no clipping.
          hypergradient_order: 1, or 2 for the architecture's gradient through one step of the weights (`hypergradient.second_order`); the
            weights' optimizer must then be a `keras.optimizers.SGD`.
          class_weights: float `[classes]` that an example's cross-entropy is multiplied by in both losses; None for 1.
          cost_scale: of the expected cost in the architecture's loss.
          cost_terms: `(fixed, {cell type: float [E, P]})`, see `expected_cost`; read only where `cost_scale` is above 0 or
            `kl_until_budget` is set.
          run_eagerly: whether `fit` runs without tf.function, for debugging.

        Raises:
          ConfigError: for order 2 with another optimizer of the weights.
        """
        if hypergradient_order == 2 and not (isinstance(weight_optimizer, keras.optimizers.SGD) and not weight_optimizer.nesterov):
            raise ConfigError(
                "hypergradient_order=2 unrolls a step of keras.optimizers.SGD without nesterov, which the weights' optimizer must be. "
                f"Received: weight_optimizer={weight_optimizer.name}"
            )
        # XLA on a CPU is far slower for depthwise convolutions (STACK.md section 8), so never by Keras' own choice.
        super().compile(optimizer=weight_optimizer, run_eagerly=run_eagerly, jit_compile=False)
        self.weight_optimizer, self.architecture_optimizer = weight_optimizer, architecture_optimizer
        # Keras builds a model's optimizer on all variables unless it is built already.
        weight_optimizer.build(self.weight_variables)
        self.dropout_rate_optimizer, self.kl_centered, self.kl_until_budget = dropout_rate_optimizer, kl_centered, kl_until_budget
        if dropout_rate_optimizer is None:
            architecture_optimizer.build(self.architecture_variables)
        else:
            architecture_optimizer.build(self.mixing_variables)
            dropout_rate_optimizer.build(self.dropout_rate_variables)
        self.kl_weight, self.gradient_clip_norm, self._class_weights = kl_weight, gradient_clip_norm, class_weights
        self.hypergradient_order, self._cost_scale, self._cost_terms = hypergradient_order, cost_scale, cost_terms
        self._weight_decays = [weight_decay] * len(self.weight_variables)
        decayed, undecayed = len(self.mixing_variables), len(self.dropout_rate_variables)
        self._architecture_weight_decays = [architecture_weight_decay] * decayed + [0.0] * undecayed

    def bilevel_step(self, data, update_architecture=True):
        """One step of Algorithm 1: draw, update the architecture on one batch, then the weights on the other with the same draw.

        Args:
          data: `((images, labels), (images, labels))`: of the weight half and of the architecture half, which share no image.
          update_architecture: False during the warm-up, when only the weights learn.

        Returns:
          A dict of float32 scalars of this step: loss, accuracy, and with `update_architecture` architecture_loss,
          architecture_accuracy, kl, and the global norm of the gradient to w and phi (mixing_gradient_norm) and to the log dropout rates
          (dropout_rate_gradient_norm, where the method has them): averaged over the replicas, without weight decay, before the optimizer.
          A step that loss scaling skips has norms of 0.
        """
        logs = self.architecture_step(data) if update_architecture else {}
        return {**logs, **self.weight_step(data)}

    def architecture_step(self, data):
        """The first half of `bilevel_step`, for loops that compile the halves apart: `weight_step` must follow.

        Both make the same draw: it depends on the seed and on the number of the step, which the second half counts.
        """
        weight_batch, (images, labels) = data
        step = self.weight_optimizer.iterations
        draw = self.draw(step, tf.shape(weight_batch[0])[0])
        compute_all = self.gate_gradient != "none"
        gradients_to = "samples" if self.hypergradient_order == 1 else "all"

        def loss():
            own = self.differentiable(draw, step)
            logits, divergence = self(images, draw=own, compute_all=compute_all, gradients_to=gradients_to), self.kl_divergence(own)
            expected_cost = self.expected_cost(*self._cost_terms) if self._cost_scale or self.kl_until_budget else 0.0
            value = objective.architecture_loss(
                labels,
                logits,
                divergence,
                self._kl_weight_at(expected_cost),
                self._class_weights,
                expected_cost=expected_cost,
                cost_scale=self._cost_scale,
            )
            return value, (logits, divergence)

        def training_loss():
            return self._training_loss(self.differentiable(draw, step), *weight_batch, compute_all=compute_all)

        variables = self.architecture_variables
        if self.hypergradient_order == 1:
            scale = loss_scale(self.architecture_optimizer)
            value, (logits, divergence), gradients = hypergradient.first_order(loss, variables, scale)
        else:
            value, (logits, divergence), gradients = hypergradient.second_order(
                loss,
                training_loss,
                variables,
                self.weight_variables,
                learning_rate=tf.cast(self.weight_optimizer.learning_rate, tf.float32),
                step=self._stepped,
                average=replica_mean,
            )
        gradients = self._update_architecture_by(gradients)
        return {
            "architecture_loss": value,
            "architecture_accuracy": objective.accuracy(labels, logits),
            "kl": divergence,
            **self._gradient_norms(gradients),
        }

    def _kl_weight_at(self, expected_cost):
        """What the KL is multiplied by in this step: constant to the gradient."""
        weight = self.kl_weight * self.kl_scale
        return tf.where(expected_cost > 1.0, weight, 0.0) if self.kl_until_budget else weight

    def _update_architecture_by(self, gradients):
        """Gives the gradients to the optimizer, or each kind of variable's to its own; returns them averaged over the replicas."""
        variables, decays = self.architecture_variables, self._architecture_weight_decays
        if self.dropout_rate_optimizer is None:
            return apply_gradients(self.architecture_optimizer, gradients, variables, weight_decays=decays)
        averaged, first = [], len(self.mixing_variables)
        for optimizer, part in ((self.architecture_optimizer, slice(first)), (self.dropout_rate_optimizer, slice(first, None))):
            averaged += apply_gradients(optimizer, gradients[part], variables[part], weight_decays=decays[part])
        return averaged

    def _gradient_norms(self, gradients):
        """The norms of the gradients to `architecture_variables`, by kind of variable."""
        n_mixing = len(self.mixing_variables)
        norms = [tf.linalg.global_norm(part) for part in (gradients[:n_mixing], gradients[n_mixing:]) if part]
        if loss_scale(self.architecture_optimizer) is not None:  # overflows now and then, by design: the optimizer then skips the step
            norms = [tf.where(tf.math.is_finite(norm), norm, 0.0) for norm in norms]
        return dict(zip(self._norm_names(), norms, strict=True))

    def _stepped(self, gradients):
        """The weights after a step of their optimizer with these gradients, without clipping, as DARTS unrolls it."""
        optimizer, variables = self.weight_optimizer, self.weight_variables
        rate = tf.cast(optimizer.learning_rate, tf.float32)
        velocities = optimizer.momentums if optimizer.momentum else [tf.zeros([])] * len(variables)
        stepped = []
        for variable, velocity, gradient, decay in zip(variables, velocities, gradients, self._weight_decays, strict=True):
            value = tf.convert_to_tensor(variable)
            # Keras' velocity holds the learning rate, v <- momentum * v - rate * g, and is what is added.
            stepped.append(value + optimizer.momentum * tf.convert_to_tensor(velocity) - rate * (gradient + decay * value))
        return stepped

    def _training_loss(self, draw, images, labels, **options):
        logits = self(images, draw=draw, **options)
        return objective.cross_entropy(labels, logits, weights=self._class_weights), logits

    def weight_step(self, data):
        """The second half of `bilevel_step`, and all of a step of the warm-up."""
        images, labels = data[0]
        draw = self.draw(self.weight_optimizer.iterations, tf.shape(images)[0])
        if self.noise_in == "architecture":
            draw = {cell_type: CellDraw(*(_without_noise(level) for level in levels)) for cell_type, levels in draw.items()}
        variables = self.weight_variables
        scale = loss_scale(self.weight_optimizer)
        value, logits, gradients = hypergradient.first_order(
            lambda: self._training_loss(draw, images, labels, gradients_to="weights"), variables, scale
        )
        apply_gradients(self.weight_optimizer, gradients, variables, clip_norm=self.gradient_clip_norm, weight_decays=self._weight_decays)
        return {"loss": value, "accuracy": objective.accuracy(labels, logits)}

    def train_step(self, data):
        """Keras' training step: `bilevel_step`, with running means of its values."""
        for name, value in self.bilevel_step(data, self.update_architecture).items():
            self._trackers[name].update_state(value)
        return {name: tracker.result() for name, tracker in self._trackers.items()}

    @property
    def metrics(self):
        """The running means that Keras resets at the start of an epoch."""
        return list(self._trackers.values())

    def posterior(self, epoch):
        """The architecture parameters as a `Posterior` of NumPy arrays, after `epoch` epochs."""
        cells = {
            cell_type: CellPosterior(*self.operation_dropout[cell_type].parameters(), *self.edge_dropout[cell_type].parameters())
            for cell_type in self.space.cell_types
        }
        return Posterior(self.space.name, epoch, **cells, method=self.method.name, mixing=self.mixing)
