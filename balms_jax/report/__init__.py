"""The page of one or several runs, and the figures and tables that experiments share with it."""

from typing import TYPE_CHECKING, Any

from balms_jax.report.comparison import comparison_table, markdown_table
from balms_jax.report.detector_runs import DetectorRun, read_detector_run
from balms_jax.report.runs import Run, RunError, read_run

if TYPE_CHECKING:
    from balms_jax.report.page import write_report

__all__ = [
    'DetectorRun',
    'Run',
    'RunError',
    'comparison_table',
    'markdown_table',
    'read_detector_run',
    'read_run',
    'write_report',
]


def __getattr__(name: str) -> Any:
    # The page draws, with matplotlib. Python imports this file before the command can say that it
    # is missing, so the page comes when it is asked for.
    if name == 'write_report':
        from balms_jax.report.page import write_report

        return write_report
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
