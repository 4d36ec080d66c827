"""What the report's plots share: colours that follow the reader's light or dark setting, bare axes,
and SVG that can stand inside a page.

matplotlib draws with stand-in colours; in the SVG each is replaced by a CSS variable of the
template.
"""

from __future__ import annotations

import hashlib
import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#0000a0", "#0000a1", "#0000a2"
ID_COLOUR, OOD_COLOUR, GENERATED_COLOUR = "#0000a3", "#0000a4", "#0000a5"
MODEL_COLOURS = ("#0000b0", "#0000b1", "#0000b2", "#0000b3", "#0000b4")
BACKGROUND = "#0000c0"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ID_COLOUR: "var(--id)",
    OOD_COLOUR: "var(--ood)",
    GENERATED_COLOUR: "var(--generated)",
    BACKGROUND: "var(--bg)",
    **{colour: f"var(--model-{index})" for index, colour in enumerate(MODEL_COLOURS)},
}
"""The CSS variable of each stand-in colour."""


def percent(share: float) -> str:
    """A share as a percentage with one decimal, without the sign."""
    return f"{100 * share:.1f}"


def drawn_limits(*sets: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Bounds that hold at least 99 % of each set; what lies beyond is drawn at the bounds."""
    ends = [np.quantile(values, [0.005, 0.995]) for values in sets]
    low, high = float(min(end[0] for end in ends)), float(max(end[1] for end in ends))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def hairline_figure(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A transparent figure in inches, outside pyplot's global state, with hairline axes."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    panels = list(figure.subplots(rows, 1, squeeze=False).flat)
    for axes in panels:
        axes.patch.set_visible(False)
        axes.locator_params(nbins=6)
        axes.tick_params(colors=MUTED, labelsize=8, length=3, width=0.6, color=LINE)
        axes.xaxis.label.set(color=MUTED, fontsize=8.5)
        axes.yaxis.label.set(color=MUTED, fontsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=LINE, linewidth=0.8)
    return figure, panels


def inline_svg(figure: Figure, label: str) -> Markup:
    """The figure as inline SVG: real text in the page's font, CSS variables for colours, and ids of
    its own."""
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    prefix = f"p{hashlib.sha256(label.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}", svg)
    view = re.search(r'viewBox="[\d. -]*"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r'(?<= d=")[^"]*', _rounded_path, body)
    head = Markup('<svg class="plot" role="img" aria-label="{}" ').format(label)
    return (
        head + Markup(f"{view.group() if view else ''}>") + Markup(re.sub(r"\s*\n\s*", " ", body))
    )


def _rounded_path(path: re.Match[str]) -> str:
    """A path's numbers with two decimals: a hundredth of a point is less than any screen shows."""
    return re.sub(r"(\.\d\d)\d+", r"\1", path.group())
