"""The plots of a comparison by their place in the report. Its template has what they say.

A plot takes the runs that ended well, grouped by variant, so that it does not have to know about
failed runs. Next: curves.py, bars.py and cost.py, which draw them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from memory_layers.study.metrics import BITS
from memory_layers.study.plots.bars import bits_plot, relation_plot, usage_plot
from memory_layers.study.plots.cost import cost_plot
from memory_layers.study.plots.curves import entropy_plot, exposure_plot, history_plot, loss_plot
from memory_layers.study.plots.drawing import Plot, Styles
from memory_layers.study.summary import Groups

# Draws one plot, or returns None where the runs have no data for it.
Draw = Callable[[Groups, Styles], Plot | None]

PLOTS: Mapping[str, Mapping[str, Draw]] = MappingProxyType(
    {
        "What it gives for what it costs": {
            "recall_against_flops": partial(
                cost_plot, cost="flops_per_token", gain="question_heldout"
            ),
            "recall_against_parameters": partial(
                cost_plot, cost="params_total", gain="question_heldout"
            ),
            "text_loss_against_flops": partial(cost_plot, cost="flops_per_token", gain="text_nll"),
        },
        "Over training": {
            "recall_over_tokens": partial(history_plot, key="tokens"),
            "recall_over_flops": partial(history_plot, key="flops"),
            "recall_over_seconds": partial(history_plot, key="seconds"),
            "loss_over_tokens": loss_plot,
        },
        "Which facts are recalled": {
            "recall_by_entropy": entropy_plot,
            "recall_by_exposures": exposure_plot,
            "recall_by_relation": relation_plot,
        },
        "Knowledge in bits": {key: partial(bits_plot, key=key) for key in BITS},
        "Use of the memory": {"slot_usage": usage_plot},
    }
)
PLOT_NAMES = tuple(name for plots in PLOTS.values() for name in plots)


def draw_plots(groups: Groups, styles: Styles) -> dict[str, dict[str, Plot]]:
    """Draw every plot that the runs have data for.

    Args:
        groups: The finished runs of each variant, in the order of the legends.
        styles: The style of each variant.

    Returns:
        Plots by section and name.
    """
    return {
        section: {
            name: plot for name, draw in plots.items() if (plot := draw(groups, styles)) is not None
        }
        for section, plots in PLOTS.items()
    }
