"""Where the page of an experiment goes: beside the code what is kept, apart what only tries it."""

from pathlib import Path

RESULTS = Path(__file__).parent / 'results'
HELP = 'of the page; if not given experiments/results/…, runs/smoke/… of the smoke scale'


def page_folder(name: str, scale: str, given: Path | None) -> Path:
    """The folder of an experiment's page and numbers.

    Args:
        name: of the experiment.
        scale: ``'smoke'`` is not kept; ``'paper'`` does not take the place of ``'cpu'``.
        given: on the command line; goes before all else.
    """
    if given is not None:
        return given
    if scale == 'smoke':
        return Path('runs') / 'smoke' / name
    return RESULTS / (name if scale == 'cpu' else f'{name}_{scale}')
