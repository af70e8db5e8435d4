"""A layered graph: items in columns, their order and their heights, so that lines cross little and run straight. No TensorFlow.

The second and third step of Sugiyama, Tagawa and Toda (1981): barycentres order each column, and each item then moves to the mean
height of what it is joined to, as far as the order and the smallest distances of its column allow.
"""

import bisect
import itertools

LABEL_HEIGHT = 19.0
LABEL_PITCH = 22.0  # between two operations of one edge
STRIPE = 4.0  # between the lines of two operations of one edge
_GROUP_GAP = 8.0  # between two edges into one node
_LANE_GAP = 9.0  # between two edges that run side by side
_BLOCK_GAP = 16.0  # between a node and what runs past it
_MIN_NODE_HEIGHT = 30.0
_SWEEPS = 12


class Item:
    """A node, or the lane in which an edge passes a column.

    Args:
      layer: index of its column.
      node: what it stands for; None for a lane.
      name: of the node, in the drawing.

    Attributes:
      inputs, outputs: `Link`s, from top to bottom once placed.
      y, height: of its middle, and its size, in pixels.
    """

    def __init__(self, layer, node=None, name=""):
        self.layer, self.node, self.name = layer, node, name
        self.inputs, self.outputs = [], []
        self.y = self.height = 0.0

    @property
    def is_lane(self):
        """Whether it is no node."""
        return self.node is None


class Link:
    """A piece of an edge between two neighbouring columns.

    Args:
      source, target: the `Item`s that it joins.
      operations: names of the edge's operations, empty for the concatenation.

    Attributes:
      start, end: heights at its two ends, relative to the middles of its items.
    """

    def __init__(self, source, target, operations):
        self.source, self.target, self.operations = source, target, operations
        self.start = self.end = 0.0
        source.outputs.append(self)
        target.inputs.append(self)

    @property
    def n_lines(self):
        """Number of lines: one an operation, one for the concatenation."""
        return max(1, len(self.operations))

    @property
    def in_height(self):
        """Height of the edge's labels before its node."""
        return LABEL_PITCH * (self.n_lines - 1) + LABEL_HEIGHT

    @property
    def lane_height(self):
        """Height of the lines where they run side by side."""
        return STRIPE * (self.n_lines - 1)


def order(layers):
    """Sorts each column so that few lines cross: barycentres in alternating directions, the best order seen wins.

    Args:
      layers: list of lists of `Item`s, from left to right; sorted in place, the first keeps its order.
    """
    best, best_crossings = None, None
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        for index in range(1, len(layers)) if forward else range(len(layers) - 2, 0, -1):  # the inputs keep their order
            neighbours = layers[index - 1 if forward else index + 1]
            position = {item: place for place, item in enumerate(neighbours)}
            layers[index].sort(key=lambda item, position=position, forward=forward: _barycentre(item, position, forward))
        crossings = sum(_crossings(left, right) for left, right in itertools.pairwise(layers))
        if best is None or crossings < best_crossings:
            best, best_crossings = [list(layer) for layer in layers], crossings
    layers[:] = best


def _barycentre(item, position, forward):
    """Mean place of the neighbours; an item without any keeps to the end."""
    places = [position[link.source] for link in item.inputs] if forward else [position[link.target] for link in item.outputs]
    return sum(places) / len(places) if places else len(position)


def _crossings(left, right):
    place = {item: index for index, item in enumerate(right)}
    seen, crossings = [], 0
    for item in left:
        ends = sorted(place[link.target] for link in item.outputs)
        crossings += sum(len(seen) - bisect.bisect_right(seen, end) for end in ends)
        for end in ends:
            bisect.insort(seen, end)
    return crossings


def _height(item):
    if item.is_lane:
        return item.inputs[0].lane_height
    into = sum(link.in_height for link in item.inputs) + _GROUP_GAP * (len(item.inputs) - 1)
    out = sum(link.lane_height for link in item.outputs) + _LANE_GAP * (len(item.outputs) - 1)
    return max(into, out + 2 * STRIPE, _MIN_NODE_HEIGHT)


def _separation(above, below):
    gap = _LANE_GAP if above.is_lane and below.is_lane else _BLOCK_GAP
    return above.height / 2 + gap + below.height / 2


def place_vertically(layers, top):
    """Sets heights and places: moves items towards what they are joined to, again and again, keeping order and distances.

    Args:
      layers: list of lists of `Item`s in their final order.
      top: the smallest y of an item's upper side.
    """
    for item in itertools.chain.from_iterable(layers):
        item.height = _height(item)
    for layer in layers:
        for above, below in itertools.pairwise(layer):
            below.y = above.y + _separation(above, below)
    for sweep in range(2 * _SWEEPS):
        _place_ports(layers)
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = [_wanted(item) for item in layer]
            for item, y in zip(layer, _separated(layer, wanted), strict=True):
                item.y = y
    _place_ports(layers)
    highest = min(item.y - item.height / 2 for layer in layers for item in layer)
    for layer in layers:
        for item in layer:
            item.y += top - highest


def _place_ports(layers):
    """Where on a node each line ends and starts: in the order of what is at the other end."""
    for layer in layers:
        for item in layer:
            item.inputs.sort(key=lambda link: link.source.y + link.start)
            item.outputs.sort(key=lambda link: link.target.y + link.end)
            if not item.is_lane:
                _spread([(link.in_height, link) for link in item.inputs], _GROUP_GAP, "end")
                _spread([(link.lane_height, link) for link in item.outputs], _LANE_GAP, "start")


def _spread(sized_links, gap, attribute):
    y = -(sum(size for size, _ in sized_links) + gap * (len(sized_links) - 1)) / 2
    for size, link in sized_links:
        setattr(link, attribute, y + size / 2)
        y += size + gap


def _wanted(item):
    """The height and the weight of an item's wish: a lane's is heavy, so that long lines run straight."""
    wishes = [link.source.y + link.start - link.end for link in item.inputs]
    wishes += [link.target.y + link.end - link.start for link in item.outputs]
    return (sum(wishes) / len(wishes) if wishes else item.y), (3.0 if item.is_lane else 1.0)


def _separated(layer, wanted):
    """The heights nearest to the wanted ones, in least squares, that keep order and distances: isotonic regression of what is left
    after subtracting the smallest distances (pool adjacent violators)."""
    offsets = [0.0]
    for above, below in itertools.pairwise(layer):
        offsets.append(offsets[-1] + _separation(above, below))
    pools = []  # [mean, weight, count]
    for (y, weight), offset in zip(wanted, offsets, strict=True):
        pools.append([y - offset, weight, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, weight, count = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + mean * weight) / (last[1] + weight)
            last[1] += weight
            last[2] += count
    level = [mean for mean, _, count in pools for _ in range(count)]
    return [y + offset for y, offset in zip(level, offsets, strict=True)]
