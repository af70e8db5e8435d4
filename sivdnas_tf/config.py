"""The configuration of a run as frozen dataclasses, one a stage. Imports no TensorFlow and no ml_collections.

A config file (configs/*.py) returns an `ml_collections.ConfigDict`; `Config.from_dict` turns it, once, into these. An unknown
field, a value of the wrong type or out of range is a `ConfigError` that names the field.
"""

import dataclasses
import json
import math
import os

from sivdnas_tf.config_fields import build, checked
from sivdnas_tf.config_fields import constrained_field as _field
from sivdnas_tf.errors import ConfigError
from sivdnas_tf.methods.registry import METHODS, get_method
from sivdnas_tf.search_space import NETWORKS, SEARCH_SPACES, get_search_space

STRATEGIES = ("auto", "none", "mirrored", "multi_worker")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
LEARNING_RATE_SCHEDULES = ("cosine", "linear")
# How a posterior becomes a genotype: `derive.derive`.
DERIVATION_RULES = ("budget", "mode", "sample", "redraw", "best_of", "darts")
# What a derivation can rank an edge's operations by: `darts_rule.ranking`.
RANKINGS = ("method", "keep_probability", "contribution", "weight")
# In which a latency can be measured: see export/latency.py.
LATENCY_RUNTIMES = ("keras", "tflite_1", "tflite_all", "onnxruntime")
TUNERS = ("random", "hyperband", "bayesian", "grid")
# What a trial of `tune` is measured by: see `TuneConfig`.
TUNE_OBJECTIVES = ("accuracy_within_budget", "accuracy", "short_accuracy")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images and their splits.

    Attributes:
      name: "digits" (scikit-learn's, bundled), the name of a TFDS dataset, e.g. "cifar10", or "folder:PATH" (see data/folders.py).
      data_dir: where the TFDS dataset was prepared; "" is TFDS' own default directory. Nothing is ever downloaded.
      resolution: pixels a side after resizing; 0 keeps the images' own size (a folder needs one).
      holdout_fraction: share of the training images that is never trained on: chooses a checkpoint and verifies the export.
      test_fraction: share of the images that becomes the test split, for data that comes without one.
      crop_padding: pixels added on each side before the random crop of the training augmentation.
      flip: whether training images are flipped left to right at random.
      class_weights: what an example's cross-entropy is multiplied by in search and training, not in evaluation: 1 ("none"), or for
        unequal classes images / (classes * images of its class), over the training images ("balanced").
      max_corrupt: number of images that may be unreadable: they are skipped, by name (file, and index of the record in it).
      streaming: whether images stay encoded, and are read, decoded and cut anew every epoch, for more of them than memory holds decoded;
        False decodes them once into memory. Of folders and TFDS datasets; a search reads its images in memory.
      cache_gb: with `streaming`, encoded images of up to so many GiB in all stay in memory. TFDS records of more are read a file after the
        other, 16 in turn, in every epoch, and are split by their place in the files: the setting, not the machine, decides the splits.
      central_crop: side of the central square that images are cut to before resizing, as a share of their shorter side (0.875 is usual for
        ImageNet); 0 resizes the whole image, whatever its shape. Also what `predict` then does to a file.
      random_resized_crop: whether a training image is a random crop of 8 to 100 % of its area, of an aspect ratio from 3/4 to 4/3, resized
        to `resolution`, instead of `crop_padding`. With `streaming` it is cut from the file's own pixels, otherwise from those in memory.
      brightness_jitter, contrast_jitter, saturation_jitter, hue_jitter: a training image's brightness, contrast and saturation are
        multiplied by a random factor from 1 - jitter to 1 + jitter, its hue turned by up to `hue_jitter` of the full circle either way; 0
        turns each off. DARTS on ImageNet: 0.4, 0.4, 0.4, 0.2.
      mean, std: of each channel in units of pixel / 255, that images are normalised with; () measures them on the training images (with
        `streaming`, on a seeded sample of up to 4096 of them). ImageNet: (0.485, 0.456, 0.406), (0.229, 0.224, 0.225).
    """

    name: str = "digits"
    data_dir: str = ""
    resolution: int = _field(0, low=0)
    holdout_fraction: float = _field(0.1, above=0.0, high=0.9)
    test_fraction: float = _field(0.2, above=0.0, high=0.9)
    crop_padding: int = _field(4, low=0)
    flip: bool = True
    class_weights: str = _field("none", choices=("none", "balanced"))
    max_corrupt: int = _field(0, low=0)
    streaming: bool = False
    cache_gb: float = _field(8.0, low=0.0)
    central_crop: float = _field(0.0, low=0.0, high=1.0)
    random_resized_crop: bool = False
    brightness_jitter: float = _field(0.0, low=0.0, high=1.0)
    contrast_jitter: float = _field(0.0, low=0.0, high=1.0)
    saturation_jitter: float = _field(0.0, low=0.0, high=1.0)
    hue_jitter: float = _field(0.0, low=0.0, high=0.5)
    mean: tuple = _field(())
    std: tuple = _field(())

    def __post_init__(self):
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not all(type(number) in (int, float) and math.isfinite(number) for number in value):
                raise ConfigError(f"data.{name} must be a finite number for each channel, or () to measure it. Received: {value!r}")
        if len(self.mean) != len(self.std) or any(number <= 0 for number in self.std):
            raise ConfigError(
                "data.mean and data.std must have as many numbers, those of data.std above 0. "
                f"Received: data.mean={self.mean!r}, data.std={self.std!r}"
            )


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The supernet, its posterior and the bilevel optimisation (METHOD.md sections 2 and 3).

    Attributes:
      search_space: name of the space, "darts" or "nasbench201"; its primitives compete on every edge.
      channels, cells: size of the supernet; cells are a multiple of three in "nasbench201".
      resolution: pixels a side that the search sees, from 8 to 64, images shrunk or enlarged to it; 0 takes them as `data` gives them.
      epochs: passes over the weight half of the training images, or of `steps_per_epoch` steps.
      steps_per_epoch: steps of an epoch, at most what the half has; each epoch then sees another random part of it. 0 sees all of it.
      warmup_epochs: first epochs, in which only weights are updated.
      batch_size: images a step, all replicas together, of each half.
      method: "si_vdnas" (the paper's), its ablations "h_vdnas" and "v_vdnas" (Table 3), "darts_first", "darts_second", or "random", which
        trains nothing and reads of this section only `search_space` (methods/). A setting that contradicts the method is refused; what
        weighs, schedules or estimates a part that it does not have (`kl_weight`, `kl_until_budget`, `prior_gap_decay`, dropout rates,
        `gate_gradient`) has no effect.
      mixing: how w and phi become mixing weights: "identity", "average", "sigmoid" or "softmax", see `MixingWeights`. DARTS' are always
        "softmax".
      initial_log_dropout_rate: log delta and log sigma at the start.
      noise_shape: what has Gaussian noise of its own in a step: each "operation" and edge of a cell type (the paper), each of them in every
        "cell", or for every "example". Gates are drawn once a step in any case.
      gate_gradient: what gradient the draw of a gate passes to its dropout rate: "none" (the paper), "straight_through" or "relaxed". The
        last two compute every operation in the architecture's step, at its full price.
      gate_temperature: of "relaxed".
      noise_in: which of a step's two updates have the Gaussian noise: "both" (the paper), or the "architecture"'s alone; gates are in both.
      kl_weight: what the KL divergence is multiplied by beside the batch-mean cross-entropy; 1 / N is the ELBO as written.
      kl_ramp_epochs: the KL divergence's weight grows linearly to kl_weight over so many epochs after the warm-up; 0 has it from the start.
      kl_centered: whether the divergence's gradient to the log dropout rates is centred, over an edge's operations and over a node's edges:
        the prior then moves rates against each other, not all of them up. Not the paper's.
      kl_until_budget: whether the divergence weighs nothing in the steps that begin with the expected multiply-adds of what the gates keep
        within `budget.macs`: the prior's pruning then ends there, however long the search goes on. Not the paper's.
      cost_scale: what the expected multiply-adds of the deployed network, as a share of `budget.macs`, are multiplied by in the
        architecture's loss: steers the search to the budget.
      prior_gap_decay: what (1 - lambda)^2 is multiplied by an epoch, after the warm-up.
      hypergradient_order: of the architecture's gradient: 1, as if the weights did not depend on the architecture, or 2, through one step
        of theirs (DARTS' unrolled gradient; about three times the time of a step). darts_second is of order 2 without it.
      architecture_learning_rate, architecture_beta_1, architecture_beta_2: of Adam on the architecture parameters.
      dropout_rate_learning_rate: of Adam on log delta and log sigma, with the same betas; 0 is architecture_learning_rate.
      architecture_weight_decay: coupled, on w and phi only (on log delta it would be a prior nobody asked for).
      learning_rate, final_learning_rate: of SGD on the weights, cosine over the epochs.
      momentum, weight_decay, gradient_clip_norm: of SGD on the weights; the decay is coupled, the clipping global, 0 turns it off.
      cutout_length: side in pixels of the square that Cutout zeroes in training images; 0 turns it off.
      precision: Keras' dtype policy: "float32", "mixed_bfloat16", or "mixed_float16" with dynamic loss scaling. For accelerators: slower on
        a CPU. Architecture parameters are float32 in any case.
      jit_compile: whether XLA compiles the step. For accelerators: far slower on a CPU. One device only.
      normalize_skips: whether skip connections of stride 1 end in batch-norm without affine parameters, as all other operations do; not
        the paper's.
      recompute: whether the backward pass computes each cell once more, instead of the forward pass keeping what is within it: less
        memory, more time.
    """

    search_space: str = _field("darts", choices=tuple(SEARCH_SPACES))
    channels: int = _field(16, low=2)
    cells: int = _field(8, low=3)
    resolution: int = _field(0, low=0, high=64)
    epochs: int = _field(50, low=1)
    steps_per_epoch: int = _field(0, low=0)
    warmup_epochs: int = _field(15, low=0)
    batch_size: int = _field(64, low=1)
    method: str = _field("si_vdnas", choices=tuple(METHODS))
    mixing: str = _field("identity", choices=("identity", "average", "sigmoid", "softmax"))
    initial_log_dropout_rate: float = _field(-5.0, low=-20.0, high=20.0)
    noise_shape: str = _field("operation", choices=("operation", "cell", "example"))
    gate_gradient: str = _field("none", choices=("none", "straight_through", "relaxed"))
    gate_temperature: float = _field(0.5, above=0.0)
    noise_in: str = _field("both", choices=("both", "architecture"))
    kl_weight: float = _field(0.01, low=0.0)
    kl_ramp_epochs: int = _field(0, low=0)
    kl_centered: bool = False
    kl_until_budget: bool = False
    cost_scale: float = _field(0.0, low=0.0)
    prior_gap_decay: float = _field(0.95, above=0.0, high=1.0)
    hypergradient_order: int = _field(1, low=1, high=2)
    architecture_learning_rate: float = _field(3e-4, above=0.0)
    architecture_beta_1: float = _field(0.5, low=0.0, high=0.9999)
    architecture_beta_2: float = _field(0.999, low=0.0, high=0.999999)
    dropout_rate_learning_rate: float = _field(0.0, low=0.0)
    architecture_weight_decay: float = _field(1e-3, low=0.0)
    learning_rate: float = _field(0.025, above=0.0)
    final_learning_rate: float = _field(0.001, low=0.0)
    momentum: float = _field(0.9, low=0.0, high=0.9999)
    weight_decay: float = _field(3e-4, low=0.0)
    gradient_clip_norm: float = _field(5.0, low=0.0)
    cutout_length: int = _field(0, low=0)
    precision: str = _field("float32", choices=PRECISIONS)
    jit_compile: bool = False
    normalize_skips: bool = False
    recompute: bool = False

    @property
    def steered_by_budget(self):
        """Whether the search depends on the budget."""
        return self.cost_scale > 0 or METHODS[self.method].kl_until_budget_in(self)


@dataclasses.dataclass(frozen=True)
class DeriveConfig:
    """How a posterior becomes a genotype (METHOD.md section 4).

    Attributes:
      rule: "budget", "mode", "sample", "redraw", "best_of" or "darts"; the default, "budget", is the search method's own rule, which for
        si_vdnas and h_vdnas is "budget". `derive --rule` takes any that fits the method, and means it.
      seed: of the draws of "sample", "redraw" and "best_of".
      samples: number of draws of "best_of".
      rank_by: what rule "darts" ranks operations by, and in a space of one operation an edge every rule: "keep_probability",
        "contribution" (that times the size of the mixing weights), "weight" (the softmax of w), or what the search's "method" says.
    """

    rule: str = _field("budget", choices=DERIVATION_RULES)
    seed: int = _field(0, low=0, high=2**31 - 1)
    samples: int = _field(16, low=1, high=10_000)
    rank_by: str = _field("method", choices=RANKINGS)


@dataclasses.dataclass(frozen=True)
class BudgetConfig:
    """The network that is deployed, and what it may cost.

    Attributes:
      network, channels, cells, classes, resolution, image_channels: of the deployed network.
      macs: largest number of multiply-adds an image.
      convention: which count is held against it: "macs" (convolutions and dense layers) or "macs_ptflops".
      params: largest number of parameters; 0 for no limit.
      latency_ms: largest median time of one image, in milliseconds, measured on the machine that runs the command; 0 for no limit.
      latency_runtime: what it is measured in: "keras" (the compiled function), "tflite_1" (one thread), "tflite_all", "onnxruntime" (all).
    """

    network: str = _field("imagenet", choices=NETWORKS)
    channels: int = _field(48, low=2)
    cells: int = _field(14, low=3)
    classes: int = _field(1000, low=2)
    resolution: int = _field(224, low=4)
    image_channels: int = _field(3, low=1)
    macs: float = _field(600e6, above=0.0)
    convention: str = _field("macs", choices=("macs", "macs_ptflops"))
    params: float = _field(0.0, low=0.0)
    latency_ms: float = _field(0.0, low=0.0)
    latency_runtime: str = _field("tflite_1", choices=LATENCY_RUNTIMES)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The evaluation network and its training (METHOD.md section 7).

    Attributes:
      network, channels, cells: the evaluation network, built of cells of `search.search_space`; classes and resolution are the data's.
      epochs: over all training images but the held-out ones.
      batch_size: images a step, all replicas together.
      learning_rate, final_learning_rate: of SGD, at the first epoch and after the last.
      schedule: how the one becomes the other, constant within an epoch: "cosine" or "linear".
      warmup_epochs: in epoch e (from 0) of these the rate is multiplied by (e + 1) / warmup_epochs; 0 for no warm-up.
      momentum, weight_decay, gradient_clip_norm: of SGD; the decay is coupled, the clipping global, 0 turns it off.
      weight_decay_on: what decays: "all" trainable variables, as PyTorch's SGD does it for the reference, or the "kernels" of convolutions
        and dense layers alone, not batch-norm's scale and offset, not a bias.
      ema_decay: of an exponential moving average of the network, updated every step, which is what the held-out images measure and what is
        kept; 0 keeps the weights themselves. See `training.averaging`.
      drop_path_rate: probability of dropping a path in the last epoch; grows linearly from 0.
      auxiliary_weight: weight of the auxiliary head's loss; 0 builds no head, and must be it for a "nasbench201" network, which has none.
      label_smoothing: share of the target spread over all classes.
      cutout_length: side in pixels of the square that Cutout zeroes; 0 turns it off.
      checkpoint_choice: which weights are kept: those of the "best" epoch on the held-out images, or of the "last".
      precision, jit_compile: as of the search. The held-out images are measured, and the weights kept, in float32.
    """

    network: str = _field("cifar", choices=NETWORKS)
    channels: int = _field(36, low=2)
    cells: int = _field(20, low=3)
    epochs: int = _field(600, low=1)
    batch_size: int = _field(96, low=1)
    learning_rate: float = _field(0.025, above=0.0)
    final_learning_rate: float = _field(0.0, low=0.0)
    schedule: str = _field("cosine", choices=LEARNING_RATE_SCHEDULES)
    warmup_epochs: int = _field(0, low=0)
    momentum: float = _field(0.9, low=0.0, high=0.9999)
    weight_decay: float = _field(3e-4, low=0.0)
    weight_decay_on: str = _field("all", choices=("all", "kernels"))
    gradient_clip_norm: float = _field(5.0, low=0.0)
    ema_decay: float = _field(0.0, low=0.0, high=0.999999)
    drop_path_rate: float = _field(0.3, low=0.0, high=0.99)
    auxiliary_weight: float = _field(0.4, low=0.0)
    label_smoothing: float = _field(0.0, low=0.0, high=0.99)
    cutout_length: int = _field(16, low=0)
    checkpoint_choice: str = _field("best", choices=("best", "last"))
    precision: str = _field("float32", choices=PRECISIONS)
    jit_compile: bool = False


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """What is written, and how closely it must agree with the Keras model.

    Attributes:
      formats: any of "saved_model", "onnx", "tflite".
      preprocessing: "inside" the exported model (it takes pixel values from 0 to 255) or "outside" (it takes normalised images).
      onnx_layout: "nhwc" or "nchw", of the ONNX model's input.
      verification_images: largest number of held-out images that every artifact is run on.
      max_abs_diff: largest difference of a logit.
      min_top1_agreement: smallest share of images on which the most probable class is the same.
    """

    formats: tuple = _field(("saved_model", "onnx", "tflite"), choices=("saved_model", "onnx", "tflite"))
    preprocessing: str = _field("inside", choices=("inside", "outside"))
    onnx_layout: str = _field("nhwc", choices=("nhwc", "nchw"))
    verification_images: int = _field(256, low=1)
    max_abs_diff: float = _field(1e-3, above=0.0)
    min_top1_agreement: float = _field(0.99, low=0.0, high=1.0)


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """The trials of `tune`: what is drawn, how, and what they are measured by. No other command reads it.

    Attributes:
      tuner: "random", "hyperband", "bayesian" or "grid", of Keras Tuner.
      space: a row a hyperparameter, such as ("search.kl_weight", "log_float", 1e-3, 1.0): see `tuning.space`.
      objective: accuracy of the trial's network on a validation split taken from the training images: "accuracy_within_budget" (a network
        over `budget` is a failed trial), "accuracy" (without a budget), or "short_accuracy" (within it, after `short_epochs` epochs).
      max_trials: number of trials, failed ones and each of Hyperband's rounds included; more can be added to a finished run.
      validation_fraction: share of the images of both halves that becomes the validation split; holdout and test stay as they are.
      short_epochs: epochs of the training with "short_accuracy".
      factor: of "hyperband": a round trains the best 1 / factor of the one before for factor times as many epochs.
      initial_points: trials that "bayesian" draws at random first; 0 for three a hyperparameter.
      genotype: name in the zoo, or file, that every trial trains; "" searches one in every trial.
    """

    tuner: str = _field("random", choices=TUNERS)
    space: tuple = _field(())
    objective: str = _field("accuracy_within_budget", choices=TUNE_OBJECTIVES)
    max_trials: int = _field(20, low=1)
    validation_fraction: float = _field(0.2, above=0.0, high=0.9)
    short_epochs: int = _field(5, low=1)
    factor: int = _field(3, low=2)
    initial_points: int = _field(0, low=0)
    genotype: str = ""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a search or a training is saved.

    Attributes:
      every_epochs: epochs between checkpoints.
      every_minutes: minutes between checkpoints within an epoch; 0 saves at the end of epochs only.
      keep: number of newest checkpoints that stay on disk.
    """

    every_epochs: int = _field(1, low=1)
    every_minutes: float = _field(10.0, low=0.0)
    keep: int = _field(2, low=1)


@dataclasses.dataclass(frozen=True)
class DistributionConfig:
    """Devices.

    Attributes:
      strategy: "none" (one device), "mirrored" (every GPU of this machine, or every logical CPU where it has none), "multi_worker" (every
        GPU, or the CPU, of every host that TF_CONFIG names), or "auto": multi_worker where TF_CONFIG names several workers, else mirrored
        where there are several GPUs.
    """

    strategy: str = _field("auto", choices=STRATEGIES)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
      seed: of splits, initial weights, augmentation, gates and noise.
      deterministic: whether TensorFlow must use deterministic operations (slower; the same bits every time).
      data, search, derive, budget, train, export, tune, checkpoint, distribution: one a concern.
    """

    seed: int = _field(0, low=0, high=2**31 - 1)
    deterministic: bool = False
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    derive: DeriveConfig = dataclasses.field(default_factory=DeriveConfig)
    budget: BudgetConfig = dataclasses.field(default_factory=BudgetConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    tune: TuneConfig = dataclasses.field(default_factory=TuneConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    distribution: DistributionConfig = dataclasses.field(default_factory=DistributionConfig)

    def __post_init__(self):
        method, space = get_method(self.search.method), get_search_space(self.search.search_space)
        method.check_settings(self.search)
        for section in ("budget", "train"):
            network = getattr(self, section).network
            if network not in space.networks:
                raise ConfigError(
                    f"{section}.network must be built of cells of search.search_space {space.name}: {' or '.join(space.networks)}. "
                    f"Received: {section}.network={network!r}"
                )
        if self.train.network == "nasbench201" and self.train.auxiliary_weight:
            raise ConfigError(
                "a nasbench201 network has no auxiliary head. Expected train.auxiliary_weight 0. "
                f"Received: train.auxiliary_weight={self.train.auxiliary_weight}"
            )
        if method.hypergradient_order_in(self.search) == 2 and self.search.precision != "float32":
            raise ConfigError(
                "search.hypergradient_order 2 takes a finite difference, which needs search.precision float32. "
                f"Received: search.precision={self.search.precision!r}"
            )
        if self.search.dropout_rate_learning_rate and self.search.precision == "mixed_float16":
            raise ConfigError(
                "search.dropout_rate_learning_rate makes a second optimizer, whose loss scaling would part from the first one's. "
                "Expected 0, or another search.precision. "
                f"Received: search.dropout_rate_learning_rate={self.search.dropout_rate_learning_rate}"
            )
        if self.search.warmup_epochs >= self.search.epochs:
            raise ConfigError(
                "search.warmup_epochs must be less than search.epochs, or the architecture is never updated. "
                f"Received: warmup_epochs={self.search.warmup_epochs}, epochs={self.search.epochs}"
            )
        if self.train.warmup_epochs >= self.train.epochs:
            raise ConfigError(
                "train.warmup_epochs must be less than train.epochs, or the learning rate is never the schedule's. "
                f"Received: train.warmup_epochs={self.train.warmup_epochs}, train.epochs={self.train.epochs}"
            )

    def to_dict(self):
        """Nested dicts of plain values; a tuple stays one, so that a ConfigDict made of this lets the command line override it."""
        return dataclasses.asdict(self)

    def stage_settings(self, stage):
        """The fields that the result of stage "search" or "train" depends on: the run directory's record of it."""
        values = self.to_dict()
        steered = stage == "search" and self.search.steered_by_budget
        return {key: values[key] for key in ("seed", "deterministic", "data", stage, *(["budget"] if steered else []))}

    @classmethod
    def from_dict(cls, values):
        """Builds the configuration from nested mappings, missing fields at their defaults.

        Raises:
          ConfigError: for an unknown field, a wrong type, or a value out of range, naming the field.
        """
        return build(cls, values, "config")


def checked_field(path, value):
    """`value` as the field `path` ("search.kl_weight") holds it; raises `ConfigError` for a value that it does not take."""
    section, name = path.split(".")
    (cls,) = (field.type for field in dataclasses.fields(Config) if field.name == section)
    (field,) = (field for field in dataclasses.fields(cls) if field.name == name)
    return checked(value, field, path)


def check_searchable(config):
    """Raises `ConfigError` where the images of `config` are not read into memory: a search takes halves of all of them there."""
    if config.data.streaming:
        raise ConfigError(
            "a search reads its images in memory, at 8 to 64 pixels; train, evaluate, export and predict read streamed ones. "
            "Expected data.streaming=False. Received: data.streaming=True"
        )


def replace(config, **sections):
    """`config` with fields of its sections replaced: `replace(config, search={"epochs": 2}, seed=1)`; validated like a file."""
    values = config.to_dict()
    for name, value in sections.items():
        both = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if both else value
    return Config.from_dict(values)


def cluster_workers():
    """Addresses of the workers that TF_CONFIG names, none where it is not set.

    Raises:
      ConfigError: where it is not a cluster of workers alone with the number of one of them.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return []
    try:
        values = json.loads(text)
        cluster, task = values.get("cluster", {}), values.get("task", {})
        workers = list(cluster.get("worker", []))
        valid = set(cluster) <= {"worker"} and (not workers or (task.get("type") == "worker" and task.get("index") in range(len(workers))))
    except (AttributeError, TypeError, ValueError):
        valid = False
    if not valid:
        raise ConfigError(
            'TF_CONFIG must be such as {"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}: '
            f"workers alone, and which of them this is. Received: {text!r}"
        )
    return workers
