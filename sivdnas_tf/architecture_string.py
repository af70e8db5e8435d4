"""NAS-Bench-201's way to write a cell: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|` (Dong and Yang 2020). Imports no TensorFlow.

A group in `|` for each node after the input, in order; in it an operation for each earlier node, with that node's number.
"""

from sivdnas_tf.errors import GenotypeError, nearest

_LONGEST = 1000


def format_architecture(edges):
    """The string of a cell.

    Args:
      edges: iterable of `(operation, predecessor, node)`, node-major.
    """
    groups = {}
    for operation, predecessor, node in edges:
        groups.setdefault(node, []).append(f"{operation}~{predecessor}|")
    return "+".join("|" + "".join(group) for group in groups.values())


def parse_architecture(text, edges, operations):
    """The operations of a cell from its string.

    Args:
      text: the string.
      edges: `(predecessor, node)` pairs that it must have, node-major.
      operations: names that it may use.

    Returns:
      A list of operations, one an edge.

    Raises:
      GenotypeError: for any other string.
    """
    expected = format_architecture(("op", *edge) for edge in edges)
    refusal = f"an architecture string has the form {expected}. Received: {text[:_LONGEST]!r}"
    groups = text.split("+") if len(text) <= _LONGEST else []
    entries, found = [], []
    for node, group in enumerate(groups, start=min(node for _, node in edges)):
        if len(group) < 2 or group[0] != "|" or group[-1] != "|":
            raise GenotypeError(refusal)
        for entry in group[1:-1].split("|"):
            operation, _, predecessor = entry.rpartition("~")
            entries.append(operation)
            found.append((predecessor, str(node)))
    if found != [(str(predecessor), str(node)) for predecessor, node in edges]:
        raise GenotypeError(refusal)
    for operation in entries:
        if operation not in operations:
            raise GenotypeError(
                f"unknown operation in an architecture string.{nearest(operation, operations)} "
                f"Expected one of {', '.join(operations)}. Received: {operation!r}"
            )
    return entries
