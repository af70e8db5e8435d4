"""The sections of the report, each a function from `RunFiles` to HTML. What has not run is named; what a file lacks is left out."""

import json

from sivdnas_tf.report.curves import Series, heat_map, heat_map_over_time, line_chart
from sivdnas_tf.report.drawing import draw_cell
from sivdnas_tf.report.markup import absent, element, escape, finite, number, operation_style, table
from sivdnas_tf.report.run_files import as_dict, warmup_span
from sivdnas_tf.search_space import get_search_space

_BLUE, _ORANGE = "#0072b2", "#d55e00"
_COST_FIELDS = ("params", "macs", "macs_ptflops")
_ARTIFACT_FIELDS = ("format", "path", "bytes", "sha256", "max_abs_diff", "top1_agreement", "latency_ms")
_SHORT_HASH = 12


def summary(run):
    """The line under the title: accuracy, size, cost and budget, as far as they are known."""
    facts = []
    evaluation = run.evaluation or {}
    for key, label in (("top1", "top-1"), ("top5", "top-5")):
        if finite(evaluation.get(key)) is not None:
            facts.append(f"{escape(evaluation.get('split', ''))} {label} <b>{_percent(evaluation[key])}</b>")
    costs, budget = _cost(run), _budget(run)
    facts += [f"<b>{_millions(costs[key])}</b> {key}" for key in _COST_FIELDS[:2] if finite(costs.get(key)) is not None]
    limit, received = finite(budget.get("macs")), finite(costs.get(str(budget.get("convention", "macs"))))
    if limit is not None:
        verdict = "" if received is None else f": <b>{'within the budget' if received <= limit else 'over the budget'}</b>"
        facts.append(f"budget {_millions(limit)} {escape(budget.get('convention', 'macs'))}{verdict}")
    if run.evaluation is None:
        facts.append("test accuracy: not run")
    return element("p", " · ".join(facts), class_="summary")


def stages(run):
    """One row a stage: how far it came."""
    epochs = {name: as_dict(run.config.get(name)).get("epochs") for name in ("search", "train")}
    rows = [
        ("search", _progress(run, "search", run.search, epochs["search"])),
        ("derive", _derive_state(run)),
        ("train", _progress(run, "train", run.train, epochs["train"])),
        ("evaluate", "not run" if run.evaluation is None else f"finished, {number(run.evaluation.get('images'))} images"),
        ("export", "not run" if run.manifest is None else f"finished, {len(run.manifest['artifacts'])} artifacts"),
    ]
    return table(("stage", "state"), [(escape(stage), state) for stage, state in rows])


def _progress(run, stage, records, epochs):
    if stage in run.done:
        return f"finished, {len(records)} epochs"
    if records or stage in run.begun:
        return f"not finished: {len(records)} of {number(epochs)} epochs"
    return "not run"


def _derive_state(run):
    if run.derivation is None:
        return "not run" if run.genotype is None else "not run: the genotype was given"
    return f"finished, rule {escape(run.derivation.get('rule', 'unknown'))}"


def cells(run):
    """The drawings of the cells."""
    if run.genotype is None:
        return absent(run.missing("derive"))
    space = get_search_space(run.genotype.search_space)
    drawings = [
        _figure(
            draw_cell(run.genotype.cell(cell_type), f"{cell_type} cell of {run.genotype.name}", space.n_inputs),
            f"{cell_type.capitalize()} cell",
        )
        for cell_type in run.genotype.cell_types
    ]
    explanation = (
        "Read from left to right. A box with a number is a node: it adds all operations that enter it. The grey tag before an operation "
        "says where its edge comes from; operations beside one tag lie on one edge. "
        "The output c_{k} concatenates the nodes that enter it, or is the one that does."
    )
    string = run.genotype.architecture_string
    return element("p", escape(explanation), class_="note") + (element("code", escape(string)) if string else "") + "".join(drawings)


def keep_probabilities(run):
    """The posterior over the epochs and at the end."""
    if run.history is None:
        return absent(run.missing("search"))
    history = run.history
    note = f"After {len(history.epochs)} epochs; blue is rather kept, orange rather dropped, white is 0.5."
    if history.are_weights:
        note += " The method has no keep probabilities: the numbers of operations are the weights that an edge mixes them by."
    if run.genotype and run.derivation:
        note += " A frame marks what the derived cell has."
    return element("p", note, class_="note") + "".join(_keep_charts(run, cell_type) for cell_type in history.operations)


def _keep_charts(run, cell_type):
    history = run.history
    operations, edges = history.operations[cell_type], history.edge_probabilities[cell_type]
    series = []
    for index, primitive in enumerate(history.primitives):
        means = [sum(row[index] for row in epoch) / len(epoch) for epoch in operations]
        series.append(Series(primitive, tuple(history.epochs), tuple(means), *operation_style(primitive)))
    marked = {
        (history.edges.index(name), history.primitives.index(edge.operation))
        for edge in (run.genotype.cell(cell_type).edges if run.genotype and run.derivation else ())
        if (name := f"{edge.predecessor}->{edge.node}") in history.edges and edge.operation in history.primitives
    }
    last = f"after epoch {history.epochs[-1]:g}"
    drawings = (
        line_chart(series, title=f"{cell_type} cell: operations, mean over the edges", shaded=warmup_span(run)),
        heat_map_over_time(edges, history.epochs, history.edges, title=f"{cell_type} cell: edges"),
        heat_map(operations[-1], history.edges, history.primitives, title=f"{cell_type} cell: operations {last}", marked=marked),
    )
    return element("h3", f"{cell_type.capitalize()} cell") + _figures(*drawings)


def prior(run):
    """KL divergence and prior gap over the epochs."""
    if not run.search:
        return absent(run.missing("search"))
    charts = (("kl", "KL divergence"), ("prior_gap", "prior gap"))
    return _figures(*(_chart(run.search, ((key, key, _BLUE, ""),), title, warmup_span(run)) for key, title in charts))


def search_curves(run):
    """Loss and accuracy of the search, on the half of the weights and on that of the architecture."""
    if not run.search:
        return absent(run.missing("search"))
    return _curves(run.search, ("", "architecture_"), ("weights half", "architecture half"), warmup_span(run))


def train_curves(run):
    """Loss and accuracy of the training, on the training images and on the held-out ones."""
    if not run.train:
        return absent(run.missing("train"))
    return _curves(run.train, ("", "holdout_"), ("training images", "held-out images"), None)


def _curves(records, prefixes, names, shaded):
    drawings = []
    for quantity in ("loss", "accuracy"):
        lines = [
            (f"{prefix}{quantity}", name, colour, dash)
            for prefix, name, colour, dash in zip(prefixes, names, (_BLUE, _ORANGE), ("", "6 3"), strict=True)
        ]
        drawings.append(_chart(records, lines, quantity, shaded))
    return _figures(*drawings)


def _chart(records, lines, title, shaded):
    """A chart over the epochs; `lines` are `(key, name, colour, dash)`."""
    epochs = tuple(record.get("epoch") for record in records)
    series = [Series(name, epochs, tuple(record.get(key) for record in records), colour, dash) for key, name, colour, dash in lines]
    return line_chart(series, title=title, shaded=shaded)


def cost(run):
    """What the deployed network costs, and the budget it is held against."""
    details, model = run.derivation or {}, as_dict((run.manifest or {}).get("model"))
    costs = (
        ("deployed network, as derived", details.get("cost")),
        ("the same, had every keep probability of 0.5 and more been kept", details.get("mode_cost") if details.get("raised") else None),
        ("exported model", model),
    )
    rows = [
        (escape(label), *(number(value[key]) if key in value else "" for key in _COST_FIELDS))
        for label, value in costs
        if isinstance(value, dict) and any(key in value for key in _COST_FIELDS)
    ]
    if not rows:
        return absent(run.missing("derive"))
    budget = ", ".join(f"{escape(key)} {number(value)}" for key, value in _budget(run).items())
    note = (
        "For one image, without the auxiliary head. macs: multiply-adds of convolutions and dense layers. "
        f"macs_ptflops: the same with batch-norm, ReLU and pooling. Budget and deployed network: {budget}."
    )
    return table(("network", *_COST_FIELDS), rows) + element("p", note, class_="note")


def artifacts(run):
    """The table of exported artifacts, each checked in its own runtime."""
    if run.manifest is None:
        return absent(run.missing("export"))
    rows = [tuple(_artifact_cell(key, artifact.get(key)) for key in _ARTIFACT_FIELDS) for artifact in run.manifest["artifacts"]]
    model = as_dict(run.manifest.get("model"))
    facts = [f"{escape(key)} {number(value)}" for key, value in model.items() if isinstance(value, (str, int, float))]
    return table(_ARTIFACT_FIELDS, rows) + element("p", " · ".join(facts), class_="note")


def _artifact_cell(key, value):
    if key == "sha256" and isinstance(value, str):
        return element("code", escape(value[:_SHORT_HASH]), title=value)
    if isinstance(value, (dict, list)):
        return escape(json.dumps(value))
    return "not measured" if value is None else number(value)


def configuration(run):
    """The resolved configuration, folded away."""
    content = escape(json.dumps(run.config, indent=1, ensure_ascii=False))
    return element("details", element("summary", "config.json"), element("pre", content))


def _cost(run):
    """The deployed network's cost; where no derivation gave one, the exported model's."""
    for value in ((run.derivation or {}).get("cost"), (run.manifest or {}).get("model")):
        if isinstance(value, dict):
            return value
    return {}


def _budget(run):
    for value in ((run.derivation or {}).get("budget"), run.config.get("budget")):
        if isinstance(value, dict):
            return value
    return {}


def _figures(*drawings):
    return element("div", *(_figure(drawing) for drawing in drawings), class_="figures")


def _figure(drawing, caption=None):
    return element("figure", element("figcaption", escape(caption)) if caption else "", drawing)


def _percent(fraction):
    return f"{100 * fraction:.2f} %"


def _millions(value):
    return element("span", f"{value / 1e6:,.2f}M", title=number(value)) if value >= 1e6 else number(value)
