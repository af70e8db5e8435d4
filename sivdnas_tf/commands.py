"""What each command does, as functions of a configuration, a run directory and plain values; `__main__` parses their arguments.

TensorFlow is imported inside the functions that need it: `profile`, `derive` and every refusal of wrong input start without.
"""

import functools
import os

from sivdnas_tf.config import Config, DeriveConfig, check_searchable, cluster_workers, replace
from sivdnas_tf.data.description import read_description
from sivdnas_tf.derive import derive, full_genotype
from sivdnas_tf.errors import ConfigError, RunDirError
from sivdnas_tf.methods.registry import get_method
from sivdnas_tf.profiling import costs
from sivdnas_tf.quiet import import_tensorflow, quiet
from sivdnas_tf.random_search import write_random_search
from sivdnas_tf.run_dir import read_json, write_json
from sivdnas_tf.tuning import records
from sivdnas_tf.tuning.cluster import tuner_role, wait_for_chief
from sivdnas_tf.tuning.settings import check_tune, tune_settings
from sivdnas_tf.uncertainty import describe
from sivdnas_tf.zoo import registry

# A stage and those that are made from its result.
_DOWNSTREAM = {"search": ("search", "train"), "train": ("train",)}


def run(config, run_dir, overwrite=False, say=print):
    """search -> derive -> train -> evaluate -> export -> report; returns nothing, prints the artifacts and the accuracy last."""
    check_searchable(config)
    strategy = config.distribution.strategy
    if strategy == "multi_worker" or (strategy == "auto" and len(cluster_workers()) > 1):
        raise ConfigError(
            "run is for one process: over several workers call search and train on each of them, and derive, evaluate, export and "
            f"report on one. Received: distribution.strategy={strategy!r}, workers={cluster_workers()}"
        )
    search(config, run_dir, overwrite, say)
    derive_genotype(run_dir, overwrite=overwrite, say=say)
    train(config, run_dir, overwrite=overwrite, say=say)
    result = evaluate(run_dir, overwrite=overwrite, say=say)
    export(run_dir, overwrite=overwrite, say=say)
    report(run_dir, say)
    say(_evaluation_line(result))


def search(config, run_dir, overwrite=False, say=print):
    """Searches (images to search/posterior.npz)."""
    if not get_method(config.search.method).trains_supernet:
        _check_config(config, run_dir, "search", overwrite)
        write_random_search(config, run_dir, overwrite, say)
        return
    check_searchable(config)
    _check_config(config, run_dir, "search", overwrite)
    say = _start(config, say)
    from sivdnas_tf.training.search import run_search

    run_search(config, _datasets(config, say), run_dir, overwrite, say)


def derive_genotype(run_dir, rule=None, seed=None, budget_macs=None, overwrite=False, say=print):
    """Derives genotype.json and derive.json from the posterior; None takes the configuration's value.

    The configuration's default rule, "budget", is the rule of the search's method; a `rule` that is given is meant as it is.
    """
    run_dir.require("search")
    config = read_config(run_dir)
    method = get_method(config.search.method)
    own_rule = rule is None and config.derive.rule == DeriveConfig.rule
    changed = {"rule": method.rule if own_rule else rule, "seed": seed}
    changed = {key: value for key, value in changed.items() if value is not None}
    config = replace(config, derive=changed, budget={} if budget_macs is None else {"macs": budget_macs})
    values = config.to_dict()
    settings = {"derive": values["derive"], "budget": values["budget"], "posterior_sha256": run_dir.sha256("search/posterior.npz")}
    if not overwrite and run_dir.is_done_with("derive", settings):  # not derived again: a latency would be measured again
        say(f"derive: done already ({run_dir.file('genotype.json')})")
        return
    # Derived before anything is written or removed: a posterior that is over budget leaves the directory as it was.
    posterior = run_dir.read_posterior()
    derivation = derive(
        posterior,
        rule=None if own_rule else config.derive.rule,
        seed=config.derive.seed,
        budget=config.budget,
        measure_latency=_latency_measure(config.budget),
        samples=config.derive.samples,
        rank_by=config.derive.rank_by,
        score=_genotype_score(config, run_dir, say),
    )
    if run_dir.begin("derive", settings, overwrite).done:
        say(f"derive: done already ({run_dir.file('genotype.json')})")
        return
    uncertainty = describe(posterior, config.budget, config.derive.rank_by)
    write_json(run_dir.file("derive.json"), {**derivation.details, "uncertainty": uncertainty})
    run_dir.write_genotype(derivation.genotype)
    for line in (*_derivation_lines(derivation, config.budget), *_uncertainty_lines(uncertainty, config.budget)):
        say(line)


def _latency_measure(budget):
    """A function of a genotype to the milliseconds that its deployed network takes an image here; it imports TensorFlow when called."""

    def measure(genotype):
        import_tensorflow()
        from export.latency import deployed_latency_ms

        with quiet((1, 2)):  # converters print their progress
            return deployed_latency_ms(genotype, budget)

    return measure


def _genotype_score(config, run_dir, say):
    """A function of a genotype to its accuracy in the run's supernet; it imports TensorFlow, and reads the images, when first called."""

    @functools.cache
    def scorer():
        import_tensorflow()
        from sivdnas_tf.training.score import supernet_score

        return supernet_score(config, _datasets(config, say), run_dir)

    return lambda genotype: scorer()(genotype)


def _derivation_lines(derivation, budget):
    details = derivation.details
    for cell_type, cell in details["cells"].items():
        edges = derivation.genotype.cell(cell_type).edges
        shown = ", ".join(f"{edge.predecessor}->{edge.node} {edge.operation}" for edge in edges)
        n_edges = len(details["edges"])
        yield (
            f"derive: {cell_type} cell keeps {cell['n_operations']} of {n_edges * len(details['primitives'])} operations on "
            f"{cell['n_edges']} of {n_edges} edges: {shown}"
        )
    if "architecture_string" in details:
        yield f"derive: {details['architecture_string']}"
    cost = costs.Cost(**details["cost"])
    yield (
        f"derive: {costs.cost_in(cost, budget.convention):,} of {budget.macs:,.15g} {budget.convention}, {cost.params:,} params deployed "
        f"({budget.network}, {budget.channels} channels, {budget.cells} cells, {budget.resolution}x{budget.resolution})"
    )
    scores = [entry["score"] for entry in details.get("candidates", ()) if entry["score"] is not None]
    if scores:
        yield (
            f"derive: best of {len(scores)} within the budget, of {len(details['candidates'])}: accuracy {max(scores):.4f} in the "
            "supernet on the architecture half"
        )
    if details["latency"]:
        milliseconds = details["latency"]["ms"]
        yield f"derive: {milliseconds:,.15g} of {budget.latency_ms:,.15g} ms an image in {budget.latency_runtime} on this machine"
    if details["warning"]:
        yield f"derive: warning: {details['warning']}"


def _uncertainty_lines(uncertainty, budget):
    """What the posterior left open, in one line."""
    entropy = f"entropy {uncertainty['mean_entropy']:.2f} of {uncertainty['largest_entropy']:.2f} nats an edge"
    if uncertainty["expected_operations"] is None:
        yield f"derive: uncertainty: {entropy}"
        return
    interval = uncertainty["macs_interval"]
    shown = f"; {interval['probability']:.0%} of draws {interval['low']:,.0f} to {interval['high']:,.0f}" if interval else ""
    yield (
        f"derive: uncertainty: {entropy}; expected {uncertainty['expected_operations']:.1f} operations on "
        f"{uncertainty['expected_edges']:.1f} edges, {uncertainty['expected_macs']:,.0f} {budget.convention} "
        f"(standard deviation {uncertainty['macs_std']:,.0f}{shown})"
    )


def train(config, run_dir, genotype=None, overwrite=False, say=print):
    """Trains the run's genotype, or the given zoo name or file, which becomes the run's as the training begins."""
    converted = []
    given = None if genotype is None else registry.resolve(genotype, converted.append)
    if given is None:
        run_dir.require("derive")
        given = run_dir.read_genotype()
    elif run_dir.is_done("derive") and run_dir.read_genotype().sha256 != given.sha256:
        raise RunDirError(
            f"{run_dir.file('genotype.json')} is another genotype than --genotype. Expected another --workdir. Received: {genotype!r}"
        )
    costs.check_budget(given, config.budget)
    _check_config(config, run_dir, "train", overwrite)
    registry.say_converted(converted)
    say = _start(config, say)
    from sivdnas_tf.training.train import run_train

    run_train(config, given, _datasets(config, say), run_dir, overwrite, say, measure_latency=_latency_measure(config.budget))


def evaluate(run_dir, split="test", overwrite=False, say=print):
    """Measures the trained network on a split; returns the content of evaluation.json."""
    config, genotype = _read_trained(run_dir)
    import_tensorflow()
    from sivdnas_tf.training.evaluate import run_evaluate
    from sivdnas_tf.training.train import load_trained

    datasets = _datasets(config, say)
    settings = {"weights_sha256": run_dir.sha256("train/weights.weights.h5")}
    model = load_trained(config, genotype, datasets, run_dir)
    result = run_evaluate(model, datasets, run_dir, settings, split, overwrite, say)
    say(_evaluation_line(result))
    return result


def _read_trained(run_dir):
    """Configuration and genotype that the run's weights were made of."""
    run_dir.require("train")
    config, genotype = read_config(run_dir), run_dir.read_genotype()
    # Keras loads weights into another genotype's network without a word where the layers that they share have the same shapes.
    run_dir.check_consistent("train", {**config.stage_settings("train"), "genotype_sha256": genotype.sha256})
    return config, genotype


def predict(run_dir, images, top=1, say=print):
    """Prints path, label and probability of image files, separated by tabs: `top` lines an image, the most probable label first."""
    config, genotype = _read_trained(run_dir)
    description = read_description(run_dir)
    import_tensorflow()
    from sivdnas_tf.training.predict import predict_files
    from sivdnas_tf.training.train import load_trained

    model = load_trained(config, genotype, description, run_dir)
    for path, labels in zip(images, predict_files(model, description, images, top), strict=True):
        for label, probability in labels:
            say(f"{os.fsencode(path).decode(errors='replace')}\t{label}\t{probability:.4f}")


def _evaluation_line(result):
    top5 = "" if result["top5"] is None else f"  top-5 {result['top5']:.4f}"
    return f"evaluate: {result['split']} split, {result['images']} images: top-1 {result['top1']:.4f}{top5}  loss {result['loss']:.4f}"


def export(run_dir, formats=None, budget_macs=None, preprocessing=None, onnx_layout=None, overwrite=False, say=print):
    """Writes and checks the deployable artifacts; None takes the configuration's value."""
    run_dir.require("train")
    given = {"formats": formats, "preprocessing": preprocessing, "onnx_layout": onnx_layout}
    config = replace(
        read_config(run_dir),
        export={key: value for key, value in given.items() if value is not None},
        budget={} if budget_macs is None else {"macs": budget_macs},
    )
    import_tensorflow()
    from export.pipeline import artifact_lines, run_export

    manifest = run_export(config, run_dir.read_genotype(), _datasets(config, say), run_dir, overwrite, say)
    for line in artifact_lines(manifest):
        say(line)


def verify(manifest, say=print):
    """Runs every artifact of a manifest again and compares it with the stored outputs of the Keras model."""
    import_tensorflow()
    from export.verify import verify_manifest

    verify_manifest(manifest, say)


def report(run_dir, say=print):
    """Writes report.html."""
    from sivdnas_tf.report.page import write_report

    say(f"report: {write_report(run_dir)}")


def tune(config, run_dir, overwrite=False, say=print):
    """Runs trials of the configuration's hyperparameter space, and sums them up; a worker of Keras Tuner runs them for its chief."""
    role, space, converted = tuner_role(), check_tune(config), []
    genotype = registry.resolve(config.tune.genotype, converted.append) if config.tune.genotype else None
    settings = tune_settings(config, genotype)
    if role == "worker":
        wait_for_chief(run_dir, say)
    if not overwrite or role == "worker":  # what is there is the chief's to redo
        run_dir.check_consistent("tune", settings)
        if records.is_finished(run_dir, config.tune.max_trials):
            say(f"tune: done already ({run_dir.file('tune/best_config.py')})")
            return
    registry.say_converted(converted)
    import_tensorflow()
    from sivdnas_tf.tuning.trials import make_trial_input
    from sivdnas_tf.tuning.tuner import run_tune

    # Images that cannot be used are refused before the settings are on record; a chief needs none.
    trial_input = None if role == "chief" else make_trial_input(config, _datasets(config, say), genotype, _latency_measure)
    if role != "worker":
        run_dir.begin("tune", settings, overwrite)
        write_json(run_dir.file("tune/config.json"), config.to_dict())
    run_tune(config, space, run_dir, role, trial_input, say)
    if role == "worker":
        say("tune: no trial is left; the chief sums them up")
    else:
        records.finish(run_dir, config, space, say)


def dry_run(config, say=print):
    """Says what `run` would do and cost, reading the images but writing nothing."""
    check_searchable(config)
    import_tensorflow()
    from sivdnas_tf.data.datasets import steps_per_epoch

    datasets = _datasets(config, say)
    splits = (datasets.weights, datasets.architecture, datasets.holdout, datasets.test)
    say(f"data: {datasets.name}, {'x'.join(map(str, datasets.image_shape))}, {len(datasets.class_names)} classes")
    say("splits: " + ", ".join(f"{split.name} {len(split)}" for split in splits))
    say(_search_line(config, datasets))
    steps = steps_per_epoch(datasets.train, config.train.batch_size)
    say(f"train: {config.train.epochs} epochs of {steps} steps of {config.train.batch_size} images")
    dense = costs.cost_in(costs.deployed_cost(full_genotype(config.search.search_space), config.budget), config.budget.convention)
    say(f"deployed network: {dense:,} {config.budget.convention} with all that can be kept; budget {config.budget.macs:,.15g}")


def _search_line(config, datasets):
    """What the search would take, for `dry_run`."""
    if not get_method(config.search.method).trains_supernet:
        return f"search: method {config.search.method} trains no supernet"
    from sivdnas_tf.training.search import build_supernet, search_datasets, search_steps

    searched = search_datasets(config, datasets)
    steps = search_steps(config, searched)
    supernet = build_supernet(config, searched.image_shape, len(searched.class_names), steps)
    shape = "x".join(map(str, searched.image_shape))
    size = f"{config.search.epochs} epochs of {steps} steps of 2 x {config.search.batch_size} images of {shape}"
    return f"search: {size}, {supernet.count_params():,} params"


def read_config(run_dir):
    """The configuration in the run directory."""
    return Config.from_dict(read_json(run_dir.file("config.json")))


def _start(config, say):
    """Imports TensorFlow and connects to the other workers, if any, before anything is computed; only the chief then says anything."""
    import_tensorflow()
    from sivdnas_tf.training.distribution import is_chief, make_strategy

    with quiet():
        strategy = make_strategy(config.distribution.strategy)
    return say if is_chief(strategy) else _say_nothing


def _say_nothing(line):
    del line


def _check_config(config, run_dir, stage, overwrite):
    """Refuses a configuration where what is there was made with other settings of a stage that is not about to be redone."""
    redone = _DOWNSTREAM[stage] if overwrite else ()
    for other in ("search", "train"):
        if other not in redone:
            run_dir.check_consistent(other, config.stage_settings(other))


@functools.lru_cache(maxsize=1)
def _datasets_of(data_config, seed, say):
    from sivdnas_tf.data.datasets import load_datasets

    return load_datasets(data_config, seed, say)


def _datasets(config, say):
    # `run` calls one stage after the other on the same images.
    return _datasets_of(config.data, config.seed, say)
