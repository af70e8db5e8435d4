"""Small pieces that every part of the report is written with: escaped elements, numbers, and the colour of an operation."""

import html
import math
import re

from sivdnas_tf.search_space import EVALUATION_OPERATIONS

SVG_NAMESPACE = "http://www.w3.org/2000/svg"
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
# Widest advance of a character of FONT, as a share of the font size: what a box around a text is sized by.
CHARACTER_WIDTH = 0.62

# What XML 1.0 forbids. A name from a stranger's JSON may hold it, lone surrogates included, which UTF-8 cannot encode.
_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# Kind of operation -> label and colour (after Okabe and Ito, told apart by colour-blind readers too).
KINDS = {
    "separable": ("separable convolution", "#0072b2"),
    "dilated": ("dilated separable convolution", "#d55e00"),
    "factorized": ("7x1 and 1x7 convolution", "#a07800"),
    "full": ("full convolution", "#4a56c0"),
    "pooling": ("pooling", "#00805d"),
    "skip": ("skip connection", "#a2447c"),
    "none": ("none (adds nothing)", "#8a8a8a"),
}
_PREFIXES = {"sep_conv": "separable", "dil_conv": "dilated", "conv_": "factorized", "nor_conv": "full", "skip": "skip", "none": "none"}


def operation_kind(operation):
    """The key of `KINDS` for an operation of `EVALUATION_OPERATIONS`."""
    return next((kind for prefix, kind in _PREFIXES.items() if operation.startswith(prefix)), "pooling")


def operation_style(operation):
    """Colour and dash pattern of a primitive's line: the colour of its kind, a pattern for each primitive of that kind."""
    kind = operation_kind(operation)
    siblings = [name for name in EVALUATION_OPERATIONS if operation_kind(name) == kind]
    index = siblings.index(operation) if operation in siblings else len(siblings)
    return KINDS[kind][1], ("", "6 3", "2 2")[index % 3]


def escape(value):
    """`value` as text that is safe in HTML and in XML, inside attributes too."""
    return html.escape(_FORBIDDEN.sub("\ufffd", str(value)))


def element(tag, *children, **attributes):
    """One element as text.

    Args:
      tag: the name, e.g. "rect".
      *children: markup, already escaped.
      **attributes: values of any type, escaped here; None leaves an attribute out. `class_` is `class`, `stroke_width` is
        `stroke-width`, `viewBox` stays as it is.
    """
    pairs = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None)
    start = "".join(f' {name}="{escape(_rounded(value))}"' for name, value in pairs)
    return f"<{tag}{start}>{''.join(children)}</{tag}>"


def svg(width, height, title, *children):
    """A whole drawing, `width` x `height` pixels, with `title` for screen readers."""
    return element(
        "svg",
        element("title", escape(title)),
        *children,
        xmlns=SVG_NAMESPACE,
        width=math.ceil(width),
        height=math.ceil(height),
        viewBox=f"0 0 {math.ceil(width)} {math.ceil(height)}",
        role="img",
        aria_label=title,
        font_family=FONT,
        font_size=11,
    )


def text(x, y, content, **attributes):
    """A text of a drawing whose middle line is at `y`."""
    return element("text", escape(content), x=x, y=y, dominant_baseline="central", **attributes)


def text_width(content, font_size=11):
    """Pixels that `content` takes at most in `FONT`."""
    return CHARACTER_WIDTH * font_size * len(content)


def finite(value):
    """`value` as a float, or None where it is no finite number: what a file may hold in place of one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:  # JSON's integers have any length
        return None
    return value if math.isfinite(value) else None


def number(value):
    """A number for a table: integers with thousands separators, others to four significant digits; anything else as it is."""
    if isinstance(value, bool) or finite(value) is None:
        return escape("none" if value is None else value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def probability(value):
    """A probability for a table, to three decimals; a dash where there is none."""
    return "-" if finite(value) is None else f"{value:.3f}"


def table(header, rows, class_=None):
    """A table that scrolls where it is too wide.

    Args:
      header: names of the columns, escaped here.
      rows: iterable of rows of markup, already escaped.
      class_: of the table, or None.
    """
    head = element("tr", *(element("th", escape(name)) for name in header))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    return element("div", element("table", element("thead", head), element("tbody", *body), class_=class_), class_="wide")


def absent(message):
    """The line that stands where a section has nothing to show."""
    return element("p", escape(message), class_="absent")


def _rounded(value):
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
