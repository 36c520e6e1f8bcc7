"""The plots of a comparison, by name, each with its data.

Every function takes the runs that ended well, grouped by variant, so a plot never has to know
about failed runs. A variant keeps its colour and marker in all plots of a report. Next:
plots_curves.py (recall over training, entropy and exposures), plots_bars.py (relations, slots,
bits) and plots_cost.py (recall and loss against what a variant costs).
"""

from __future__ import annotations

from collections.abc import Mapping

from memory_layers.study.plots_bars import bits_plot, relation_plot, usage_plot
from memory_layers.study.plots_base import Groups, Plot, Style
from memory_layers.study.plots_cost import cost_plot
from memory_layers.study.plots_curves import entropy_plot, exposure_plot, history_plot

PLOT_NAMES = (
    "recall_over_tokens",
    "recall_over_flops",
    "recall_against_flops",
    "recall_against_parameters",
    "text_loss_against_flops",
    "recall_by_relation",
    "recall_by_entropy",
    "recall_by_exposures",
    "bits_per_parameter",
    "bits_per_active_parameter",
    "bits_per_train_flop",
    "slot_usage",
)


def draw_plots(groups: Groups, styles: Mapping[str, Style]) -> dict[str, Plot]:
    """Draw every plot the runs have data for.

    Args:
        groups: The finished runs of each variant, in the order of the legends.
        styles: The style of each variant.

    Returns:
        Plots by name, a subset of ``PLOT_NAMES`` in its order.
    """
    drawn = {
        "recall_over_tokens": history_plot(groups, styles, "tokens", "Training tokens"),
        "recall_over_flops": history_plot(groups, styles, "flops", "Training FLOPs"),
        "recall_against_flops": cost_plot(groups, styles, "flops_per_token", "question_heldout"),
        "recall_against_parameters": cost_plot(groups, styles, "params_total", "question_heldout"),
        "text_loss_against_flops": cost_plot(groups, styles, "flops_per_token", "text_nll"),
        "recall_by_relation": relation_plot(groups, styles),
        "recall_by_entropy": entropy_plot(groups, styles),
        "recall_by_exposures": exposure_plot(groups, styles),
        "bits_per_parameter": bits_plot(groups, styles, "bits_per_parameter"),
        "bits_per_active_parameter": bits_plot(groups, styles, "bits_per_active_parameter"),
        "bits_per_train_flop": bits_plot(groups, styles, "bits_per_train_flop"),
        "slot_usage": usage_plot(groups, styles),
    }
    return {name: plot for name in PLOT_NAMES if (plot := drawn[name]) is not None}
