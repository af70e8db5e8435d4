"""The section of the report on what a derivation kept and dropped, and why (derive.json)."""

import collections

from sivdnas_tf.report.markup import absent, element, escape, number, probability, table
from sivdnas_tf.report.run_files import as_dict, as_list
from sivdnas_tf.search_space import CELL_TYPES

_DERIVATION_FACTS = {"method": "method", "rule": "rule", "seed": "seed", "threshold": "threshold", "epoch": "posterior after epoch"}
_REASONS = (
    "Numbers are keep probabilities. Below threshold: the probability is. Gate 0: so it was drawn. Edge dropped: the operation "
    "would have been kept, but its edge was not. No operation left: the edge would have been kept, but none of its operations was. "
    "Outranked: an edge of this search space has one operation, and it is another one. "
    "Restored: its node would have had no operation at all, and got back its most probable one."
)
_OUTRANKED = (
    "Numbers of operations are what the rule ranks by. Outranked: another operation of the edge ranks higher, or, in the DARTS space, two "
    "other edges of the node do, each by its best operation. Edge dropped: the best operation of an edge that was outranked."
)


def dropped(run):
    """What the derivation kept and dropped, with probabilities and reasons; its warning first."""
    if run.derivation is None:
        return absent(run.missing("derive"))
    details = run.derivation
    parts = []
    if details.get("warning"):
        parts.append(element("p", f"<b>Warning:</b> {escape(details['warning'])}", class_="warning", role="alert"))
    facts = [f"{label} {number(details[key])}" for key, label in _DERIVATION_FACTS.items() if details.get(key) is not None]
    parts.append(element("p", " · ".join(facts)) + element("p", _OUTRANKED if details.get("rule") == "darts" else _REASONS, class_="note"))
    described = as_dict(details.get("cells"))
    for cell_type in CELL_TYPES:
        if isinstance(described.get(cell_type), dict):
            parts.append(_dropped_table(cell_type, described[cell_type], details))
    return "".join(parts)


def _dropped_table(cell_type, described, details):
    edges, primitives = ([str(name) for name in as_list(details.get(key))] for key in ("edges", "primitives"))
    ranks = details.get("rule") == "darts" and "ranking" in described
    keep = _keep_probabilities(described, "ranking" if ranks else "operation_keep_probability", edges, primitives)
    kept, restored, lost = (_by_edge(described.get(key)) for key in ("kept", "restored", "dropped"))
    rows = []
    for edge in edges:
        marks = {operation: " (restored)" for operation, _ in restored.get(edge, [])}
        names = [_named(edge, operation, keep) + marks.get(operation, "") for operation, _ in kept.get(edge, [])]
        rows.append((escape(edge), probability(keep.get((edge, None))), ", ".join(names), _reasons(edge, lost.get(edge, []), keep)))
    heading = (
        f"{cell_type.capitalize()} cell: {number(described.get('n_operations'))} of {len(edges) * len(primitives)} operations kept, "
        f"on {number(described.get('n_edges'))} of {len(edges)} edges"
    )
    edge_by_edge = table(("edge", "keep probability", "kept", "dropped, and why"), rows)
    details = element("details", element("summary", "Edge by edge"), edge_by_edge)
    return element("h3", heading) + element("p", _dropped_counts(lost, restored)) + details


def _dropped_counts(lost, restored):
    """`Operations dropped: 61 below threshold, 21 edge dropped. Edges dropped: 7 below threshold. Restored: …`"""
    entries = [entry for group in lost.values() for entry in group]
    sentences = []
    for what, chosen in (
        ("Operations", [reason for operation, reason in entries if operation is not None]),
        ("Edges", [reason for operation, reason in entries if operation is None]),
    ):
        counts = ", ".join(f"{count} {escape(reason)}" for reason, count in collections.Counter(chosen).items())
        sentences.append(f"{what} dropped: {counts or 'none'}.")
    names = [f"{escape(operation)} on {escape(edge)}" for edge, group in restored.items() for operation, _ in group]
    return " ".join(sentences) + (f" Restored: {', '.join(names)}." if names else "")


def _keep_probabilities(described, field, edges, primitives):
    """`(edge, operation)` -> `field`, keep probability or what rule "darts" ranked by, and `(edge, None)` -> that of the edge itself."""
    keep = dict(zip(((edge, None) for edge in edges), as_list(described.get("edge_keep_probability")), strict=False))
    for edge, row in zip(edges, as_list(described.get(field)), strict=False):
        keep.update(zip(((edge, primitive) for primitive in primitives), as_list(row), strict=False))
    return keep


def _by_edge(entries):
    """Edge -> list of `(operation or None, reason)`, all strings, from a list of objects."""
    grouped = {}
    for entry in map(as_dict, as_list(entries)):
        edge, operation, reason = (None if entry.get(key) is None else str(entry[key]) for key in ("edge", "operation", "reason"))
        if edge is not None:
            grouped.setdefault(edge, []).append((operation, reason or "no reason given"))
    return grouped


def _named(edge, operation, keep):
    return f"{escape(operation)}&nbsp;{probability(keep.get((edge, operation)))}"


def _reasons(edge, entries, keep):
    """`below threshold: max_pool_3x3 0.312, …`, a line a reason; an entry without an operation is the edge itself."""
    by_reason = {}
    for operation, reason in entries:
        by_reason.setdefault(reason, []).append("<b>the whole edge</b>" if operation is None else _named(edge, operation, keep))
    lines = [f"{escape(reason)}: {', '.join(names)}" for reason, names in by_reason.items()]
    return "<br>".join(lines)
