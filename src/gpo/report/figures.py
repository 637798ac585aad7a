"""The plots of a run as SVG that stands in a page and takes the page's text colour."""

from __future__ import annotations

import io
import re
import warnings

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from gpo.report.plots import run_figures
from gpo.report.results import Results
from gpo.storage.directory import RunDirectory

INK = "#010203"  # drawn as this, then replaced by the page's colour
INKED = ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color", "xtick.color", "ytick.color")
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_figures(files: RunDirectory, results: Results) -> dict[str, Markup]:
    """The SVG elements of the plots that the run has data for, by name."""
    settings = {**dict.fromkeys(INKED, INK), "svg.fonttype": "none", "svg.hashsalt": "gpo"}
    with rc_context(settings):
        return {name: inline(figure) for name, figure in run_figures(files, results).items()}


def inline(figure: Figure) -> Markup:
    """A figure as an SVG element. Its texts are escaped by matplotlib."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasSVG(figure).print_svg(buffer, metadata=NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return Markup(svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1))
