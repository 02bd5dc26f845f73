"""The page of one or several runs, and the figures and tables that experiments share with it."""

from balms_jax.report.comparison import comparison_table, markdown_table
from balms_jax.report.page import write_report
from balms_jax.report.runs import Run, RunError, read_run

__all__ = [
    'Run',
    'RunError',
    'comparison_table',
    'markdown_table',
    'read_run',
    'write_report',
]
