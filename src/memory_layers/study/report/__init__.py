"""Reports: what results.json holds as tables, plots and one HTML page.

Next: comparison.py and sweep.py, the two kinds of report; page.py, which writes both.
"""

from memory_layers.study.report.comparison import render_table, write_report
from memory_layers.study.report.guessing import tell_guessers
from memory_layers.study.report.sweep import render_scale_table, scale_rows, write_scale_report
from memory_layers.study.report.tables import markdown_table, percent
from memory_layers.study.summary import comparisons, summary_table

__all__ = [
    "comparisons", "markdown_table", "percent", "render_scale_table", "render_table",
    "scale_rows", "summary_table", "tell_guessers", "write_report", "write_scale_report",
]  # fmt: skip
