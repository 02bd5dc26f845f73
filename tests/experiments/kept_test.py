"""Trying an experiment must not replace its kept results."""

from pathlib import Path

from experiments.kept import RESULTS, page_folder


def test_only_the_cpu_scale_goes_where_the_kept_page_is(tmp_path):
    """A newcomer's smoke run would otherwise leave a changed checkout and a worse page."""
    assert page_folder('ablation', 'cpu', None) == RESULTS / 'ablation'
    assert RESULTS not in page_folder('ablation', 'smoke', None).parents
    assert page_folder('ablation', 'paper', None) == RESULTS / 'ablation_paper'
    assert page_folder('ablation', 'cpu', tmp_path) == Path(tmp_path)
