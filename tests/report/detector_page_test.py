"""The page of detectors says what their run directories hold, in the frame of a classifier's."""

import html
import json
import re

import numpy as np
import pytest

from balms_jax import report
from balms_jax.report.__main__ import main
from balms_jax.report.comparison import group_runs, problem
from balms_jax.report.detector_page import ranking
from balms_jax.report.detector_runs import read_detector_run
from balms_jax.report.detector_sections import DetectorFigures
from balms_jax.report.findings import finding


def rows(page, kind='results'):
    """The texts of a table's rows by their first cell."""
    table = page.read_text().split(f'class="{kind}"')[1].split('</table>')[0]
    found = {}
    for row in table.split('<tr>')[1:]:
        texts = [
            html.unescape(re.sub('<small>.*?</small>|<[^>]*>', '', text)).replace('\u202f', ' ')
            for text in re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row)
        ]
        found[texts[0]] = texts[1:]
    return found


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_seeds_become_mean_and_sample_deviation(write_detector_run, tmp_path):
    # 0.20, 0.22, 0.27: mean 0.23; squared deviations 9 + 1 + 16 = 26 e-4, over 2: 0.0361.
    folders = [
        write_detector_run(tmp_path / f'run_{seed}', seed=seed, precision=value)
        for seed, value in enumerate((0.20, 0.22, 0.27))
    ]
    page = report.write_report(folders)
    assert page == tmp_path / 'report.html', 'by default where all runs lie'
    cells = rows(page)['BALMS']
    assert cells[:2] == ['3', '23.0 ± 3.6']
    assert cells[-2:] == ['159,488', 'the training images']
    assert 'Recipe: tiny.' in page.read_text()


def test_absent_frequency_group_is_none_and_not_zero(write_detector_run, tmp_path):
    # No category has at most ten images: a precision of 0 there would be a lie.
    page = report.write_report([write_detector_run(tmp_path / 'run', image_counts=(400, 60, 30))])
    columns = rows(page)
    place = columns['method'].index('APr%')
    assert columns['BALMS'][place] == 'none'
    assert 'None of the categories that are tested is rare.' in page.read_text()


def test_page_needs_nothing_from_outside_and_runs_nothing(write_detector_run, tmp_path):
    folders = [write_detector_run(tmp_path / name, name) for name in ('sigmoid', 'balms')]
    text = report.write_report(folders).read_text()
    sources = re.findall(r'<img[^>]* src="(.*?)"', text)
    # Pictures; precision by category, by group and over time; two of weights; balance; losses.
    assert len(sources) == 8
    assert all(source.startswith('data:image/svg+xml;base64,') for source in sources)
    assert not re.search(r'<(script|link|iframe|object|embed)\b', text)
    assert not re.search(r'(https?:)?//\w|url\(|@import', re.sub('base64,[^"]*', '', text))
    assert all(re.findall(r'<img alt="(.*?)"', text)), 'every figure has an alternative text'


def test_same_runs_give_the_same_bytes(write_detector_run, tmp_path):
    folder = write_detector_run(tmp_path / 'run')
    first = report.write_report([folder], tmp_path / 'first.html').read_bytes()
    assert main([str(folder), '--output', str(tmp_path / 'second.html')]) == 0
    assert (tmp_path / 'second.html').read_bytes() == first


def test_detectors_and_classifiers_do_not_share_a_page(write_detector_run, tmp_path, capsys):
    # AP and top-1 accuracy have no common table.
    folder = write_detector_run(tmp_path / 'detector')
    other = tmp_path / 'classifier'
    other.mkdir()
    (other / 'run.json').write_text('{"method": "balms"}')
    page = tmp_path / 'page.html'
    assert main([str(folder), str(other), '--output', str(page)]) == 2
    message = capsys.readouterr().err
    assert f'{folder} is of a detector and {other} is of a classifier' in message
    assert 'wanted runs of one kind' in message
    assert not page.exists()


def test_unfinished_run_says_so_and_uses_its_last_evaluation(write_detector_run, tmp_path):
    folder = write_detector_run(tmp_path / 'run', finished=False, precision=0.2)
    page = report.write_report([folder])
    assert 'unfinished at step 20 of 40 in stage_1' in page.read_text()
    cells = rows(page)['BALMS (unfinished)']
    assert cells[1] == '20.0'
    assert cells[7] == '–', 'AP of boxes comes at the end'


def test_recipes_that_differ_stand_in_the_table(write_detector_run, tmp_path):
    # Another recipe is another training: a reader must see it beside the numbers.
    folders = [write_detector_run(tmp_path / name, name) for name in ('sigmoid', 'balms')]
    change(folders[1] / 'run.json', recipe='paper')
    cells = rows(report.write_report(folders))
    assert [cells[name][-1] for name in ('method', 'Sigmoid', 'BALMS')] == [
        'recipe',
        'tiny',
        'paper',
    ]


def test_run_that_has_just_started_has_a_page(write_detector_run, tmp_path):
    folder = write_detector_run(tmp_path / 'run', finished=False)
    for name in ('metrics.jsonl', 'throughput.jsonl'):
        (folder / name).unlink()
    text = report.write_report([folder]).read_text()
    assert 'No evaluation has been recorded yet.' in text
    assert 'unfinished at step 0' in text


def test_detector_of_boxes_alone_is_told_as_such(write_detector_run, tmp_path):
    page = report.write_report([write_detector_run(tmp_path / 'run', has_masks=False)])
    assert 'an AP of boxes of' in page.read_text()
    assert 'AP ofboxes %' not in rows(page)['method'], 'the same numbers would stand twice'


def test_every_run_has_a_row_with_its_speed(write_detector_run, tmp_path):
    folders = [write_detector_run(tmp_path / f'run_{seed}', seed=seed) for seed in (3, 4)]
    text = report.write_report(folders).read_text().split('<h2>How it was run</h2>')[1]
    cells = [re.findall('<td[^>]*>(.*?)</td>', row) for row in text.split('<tr>')[2:4]]
    speed = ['60 steps', '30', '900', '1 x cpu', '0.10.2']
    assert cells == [['run_3', 'BALMS', '3', *speed], ['run_4', 'BALMS', '4', *speed]]
    assert '3 images' in text, 'what was left out of training'


def test_what_files_say_is_text_and_never_markup(write_detector_run, tmp_path):
    folder = write_detector_run(tmp_path / 'run')
    evil = '<img src=x onerror="alert(1)">'
    change(folder / 'run.json', dataset=evil, recipe=evil, device=evil, meta_set=evil)
    change(folder / 'run.json', category_names=[evil, '$x^$', '&', *'abc'], dropped={evil: 1})
    change(folder / 'run.json', replaced_images={evil: 2}, versions={'jax': evil})
    text = report.write_report([folder]).read_text()
    assert 'onerror=' in text
    assert '<img src=x' not in text


def test_finding_ranks_by_ap_and_names_the_rare(write_detector_run, tmp_path):
    values = {'sigmoid': (0.10, 0.11), 'balms': (0.20, 0.21)}
    folders = [
        write_detector_run(tmp_path / f'{method}_{seed}', method, seed, precision=value)
        for method, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    groups = group_runs([read_detector_run(folder) for folder in folders])
    text = finding(groups, ranking('masks'))
    assert 'BALMS reaches the highest AP of masks, 20.5 ± 0.7 % (mean of 2 seeds)' in text
    assert '10.0 points above Sigmoid (10.5 ± 0.7 %); for rare categories it is highest too' in text


def test_another_world_is_another_problem(write_detector_run, tmp_path):
    # Scenes with another tail must not share a ranking: the page has a part for each.
    tails = {'a': (400, 60, 5), 'b': (40, 20, 5)}
    made = [write_detector_run(tmp_path / k, image_counts=counts) for k, counts in tails.items()]
    one, other = (problem(read_detector_run(folder)) for folder in made)
    assert one != other


@pytest.mark.parametrize('same', [True, False])
def test_methods_are_pictured_on_the_same_images(write_detector_run, tmp_path, same):
    # Side by side, other images would pass for what a method did to these.
    folders = [write_detector_run(tmp_path / name, name) for name in ('sigmoid', 'balms')]
    if not same:
        with np.load(folders[0] / 'pictures.npz') as content:
            arrays = dict(content)
        arrays['images'] = arrays['images'] + 1
        np.savez_compressed(folders[0] / 'pictures.npz', **arrays)
    groups = group_runs([read_detector_run(folder) for folder in folders])
    drawing = DetectorFigures(groups, {group.label: '#000000' for group in groups})
    assert bool(drawing.pictures()) is same
