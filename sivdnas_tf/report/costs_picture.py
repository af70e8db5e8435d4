"""Where a network's multiply-adds are, as an SVG drawing."""

from sivdnas_tf.report.markup import KINDS, element, operation_kind, svg, text, text_width

_BAR_HEIGHT, _ROW, _BARS = 14.0, 20.0, 420.0
_OTHER = ("stem, preprocessing, classifier", "#5b6774")


def draw_costs(name, parts):
    """Draws a bar a place (stem, each cell, classifier) as long as its multiply-adds, in the colours of its kinds of operation.

    Args:
      name: of the genotype, for the title.
      parts: of `costs.network_parts`.

    Returns:
      One `<svg>` element as text.
    """
    places = {}
    for place, operation, cost in parts:
        kinds = places.setdefault(place, {})
        kinds[_kind(operation)] = kinds.get(_kind(operation), 0) + cost.macs
    longest = max(sum(kinds.values()) for kinds in places.values())
    left = 20 + max(text_width(place) for place in places)
    drawn = []
    for index, (place, kinds) in enumerate(places.items()):
        drawn += [text(10, _ROW * (index + 0.5) + 10, place), *_bar(place, kinds, left, _ROW * index + 13, longest)]
    used = [kind for kind in (*KINDS, None) if any(kinds.get(kind) for kinds in places.values())]
    top = _ROW * len(places) + 24
    for index, kind in enumerate(used):
        drawn.append(element("rect", x=10, y=top + _ROW * index, width=_BAR_HEIGHT, height=_BAR_HEIGHT, fill=_style(kind)[1]))
        drawn.append(text(32, top + _ROW * index + _BAR_HEIGHT / 2, _style(kind)[0]))
    total = sum(cost.macs for _, _, cost in parts)
    drawn.append(text(10, top + _ROW * len(used) + 10, f"{name}: {total:,} macs"))
    width = left + _BARS + 20 + text_width(f"{longest:,}")
    return svg(width, top + _ROW * (len(used) + 1) + 4, f"multiply-adds of {name}", *drawn)


def _kind(operation):
    return None if operation in ("stem", "classifier", "preprocess 0", "preprocess 1") else operation_kind(operation)


def _style(kind):
    return _OTHER if kind is None else KINDS[kind]


def _bar(place, kinds, left, top, longest):
    for kind in (*KINDS, None):
        macs = kinds.get(kind, 0)
        if macs:
            width = _BARS * macs / longest
            tip = element("title", f"{place}, {_style(kind)[0]}: {macs:,} macs")
            yield element("rect", tip, x=left, y=top, width=width, height=_BAR_HEIGHT, fill=_style(kind)[1])
            left += width
    yield text(left + 6, top + _BAR_HEIGHT / 2, f"{sum(kinds.values()):,}")
