"""Sections of the report on how the search went: what looked wrong, and what its posterior leaves open."""

from sivdnas_tf.report.curves import Series, line_chart
from sivdnas_tf.report.markup import absent, element, escape, finite, number, table
from sivdnas_tf.report.run_files import as_dict, as_list, warmup_span

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#5b6774"
_CHARTS = (
    ("entropy of the posterior, nats an edge", (("mean_entropy", "mean over the edges", _BLUE, ""),)),
    (
        "multiply-adds of the deployed network",
        (
            ("expected_macs", "expected", _BLUE, ""),
            ("macs_high", "95 % of draws are below", _GREY, "6 3"),
            ("macs_low", "5 % of draws are below", _GREY, "2 2"),
        ),
    ),
    (
        "norm of the architecture's gradients",
        (
            ("mixing_gradient_norm", "w and phi", _BLUE, ""),
            ("dropout_rate_gradient_norm", "log dropout rates", _ORANGE, "6 3"),
        ),
    ),
    (
        "normal cell that would be derived, without a budget",
        (
            ("skip_share", "share of skip connections", _ORANGE, ""),
            ("weightless_share", "share of operations without weights", _BLUE, "6 3"),
        ),
    ),
)


def diagnosis(run):
    """What looked wrong in the search: at its end in boxes, and in a table by epochs."""
    if run.diagnosis is None:
        return absent("this search left no diagnosis" if "search" in run.done else run.missing("search"))
    epochs, findings = run.diagnosis.get("epochs"), [as_dict(entry) for entry in as_list(run.diagnosis.get("findings"))]
    if not findings:
        return element("p", f"Nothing was found in {number(epochs)} epochs.", class_="note")
    at_end = [entry for entry in findings if epochs in as_list(entry.get("epochs"))]
    boxes = [
        element("p", element("b", _text(entry, "name")), f": {_text(entry, 'seen')}; {_text(entry, 'advice')}.", class_="finding")
        for entry in at_end
    ]
    if not boxes:
        boxes = [element("p", f"Nothing of this was left after epoch {number(epochs)}.", class_="note")]
    rows = [(_text(entry, "name"), _ranges(entry.get("epochs")), _text(entry, "seen"), _text(entry, "advice")) for entry in findings]
    return "".join(boxes) + table(("finding", "epochs", "when last seen", "what to change"), rows)


def _text(entry, key):
    return escape(entry.get(key, ""))


def _ranges(epochs):
    """`4-7, 9` of a list of epochs in increasing order."""
    runs = []
    for epoch in [epoch for epoch in as_list(epochs) if isinstance(epoch, int)]:
        if runs and epoch == runs[-1][1] + 1:
            runs[-1][1] = epoch
        else:
            runs.append([epoch, epoch])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def uncertainty(run):
    """What the posterior leaves open: over the epochs, and at the end edge by edge."""
    parts = []
    shaded = warmup_span(run)
    epochs = tuple(record.get("epoch") for record in run.search)
    for title, lines in _CHARTS:
        series = [Series(name, epochs, tuple(record.get(key) for record in run.search), colour, dash) for key, name, colour, dash in lines]
        drawn = [one for one in series if any(one.points)]
        if drawn:
            parts.append(element("figure", line_chart(drawn, title=title, shaded=shaded)))
    at_end = _at_end(as_dict((run.derivation or {}).get("uncertainty")), as_list((run.derivation or {}).get("edges")))
    if not parts and not at_end:
        return absent("this run has no figures of it" if "search" in run.done else run.missing("search"))
    return element("div", *parts, class_="figures") + at_end


def _at_end(details, edges):
    """What derive.json says, empty where it says nothing."""
    if not details:
        return ""
    facts = [f"Entropy {_number(details, 'mean_entropy')} of {_number(details, 'largest_entropy')} nats an edge, in the mean"]
    if finite(details.get("expected_operations")) is not None:
        facts.append(f"expected: {_number(details, 'expected_operations')} operations on {_number(details, 'expected_edges')} edges")
        facts.append(f"{_whole(details, 'expected_macs')} multiply-adds, standard deviation {_whole(details, 'macs_std')}")
    interval = as_dict(details.get("macs_interval"))
    if interval:
        share = f"{100 * (finite(interval.get('probability')) or 0):.0f} % of {_number(interval, 'draws')} draws"
        facts.append(f"{share} between {_whole(interval, 'low')} and {_whole(interval, 'high')}")
    note = (
        "An edge's entropy is that of its gate and of its operations' gates together; of a method that ranks by weight, that of the "
        "softmax over its operations. 0 is decided; the largest possible is every gate at one half."
    )
    entropies = {cell_type: as_list(values) for cell_type, values in as_dict(details.get("edge_entropy")).items()}
    rows = [
        (escape(edge), *(number(values[index]) if index < len(values) else "" for values in entropies.values()))
        for index, edge in enumerate(edges)
    ]
    by_edge = table(("edge, entropy in nats", *(f"{cell_type} cell" for cell_type in entropies)), rows) if entropies else ""
    return element("p", "; ".join(facts) + ".") + element("p", note, class_="note") + by_edge


def _number(details, key):
    return number(details.get(key))


def _whole(details, key):
    """A number of multiply-adds, which may be of many digits: to the last one."""
    value = finite(details.get(key))
    return _number(details, key) if value is None else number(round(value))
