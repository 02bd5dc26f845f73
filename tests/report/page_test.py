"""The page says what the run directories hold, and nothing they do not hold."""

import html
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from balms_jax import report
from balms_jax.report import comparison, runs
from balms_jax.report.__main__ import main
from balms_jax.report.findings import finding as finding_of

# How each synthetic method behaves: final gain for rare classes, gradient-weight exponent.
BEHAVIOUR = {'softmax': (0.0, 0.0), 'balanced_softmax': (0.3, -0.8), 'balms': (0.4, -1.0)}


def write_run(
    folder: Path,
    method: str = 'balms',
    seed: int = 0,
    class_counts: tuple[int, ...] = (500, 90, 5),
    *,
    finished: bool = True,
    top1: float | None = None,
    steps: tuple[int, int] = (60, 20),
    dataset: str = 'cifar10',
) -> Path:
    """A run directory such as the training job writes, with made-up yet plausible numbers."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, len(method)])
    counts = np.array(class_counts)
    classes = len(counts)
    gain, exponent = BEHAVIOUR[method]
    rarity = 1 - np.log(counts) / np.log(counts.max())
    accuracy = 0.92 - (0.75 - gain) * rarity + 0.03 * rng.standard_normal(classes)
    accuracy = np.clip(accuracy, 0.02, 0.99)
    groups = {
        'many': counts > 100,
        'medium': (counts >= 20) & (counts <= 100),
        'few': counts < 20,
    }

    def evaluate(progress: float) -> dict:
        now = accuracy * (1 - 0.8 * math.exp(-5 * progress))
        marginal = now.mean() / classes + (counts / counts.sum()) ** (0.5 - gain) * (1 - now.mean())
        slope = exponent * (1 - math.exp(-3 * progress))
        weights = counts**slope * np.exp(0.1 * rng.standard_normal(classes))
        return {
            'top1': top1 if top1 is not None and progress == 1 else now.mean(),
            **{k: float(now[mask].mean()) if mask.any() else None for k, mask in groups.items()},
            'negative_log_likelihood': 2.2 - 1.7 * now.mean(),
            'expected_calibration_error': 0.05 + 0.1 * (1 - gain) * progress,
            'per_class_accuracy': [*now],
            'marginal_likelihood': [*(marginal / marginal.sum())],
            'gradient_weights': [None, *weights[1:]] if progress < 0.1 else [*weights],
            'gradient_weight_exponent': slope,
        }

    lines = []
    stages = [('stage_1', steps[0])] + [('stage_2', steps[1])] * (method != 'softmax')
    total = sum(length for _, length in stages)
    done = 0
    for stage, length in stages:
        meta = method == 'balms' and stage == 'stage_2'
        for step in range(1, length + 1 if finished else length // 2 + 1):
            progress = (done + step) / total
            place = {'stage': stage, 'step': step}
            noise = math.exp(0.15 * rng.standard_normal())
            loss = {'loss': (2.2 * math.exp(-4 * progress) + 0.15) * noise, 'learning_rate': 0.05}
            lines.append({'kind': 'train', **place, **loss})
            if meta:
                lines[-1]['meta_loss'] = (0.8 * math.exp(-progress) + 0.2) * noise
            if step % max(length // 20, 1) == 0:
                lines.append({'kind': 'evaluation', **place, **evaluate(progress)})
            if meta and step % max(length // 50, 1) == 0:
                rates = 1 / (1 + np.exp(-2.5 * step / length * (rarity - 0.4)))
                draw = counts * rates / (counts * rates).sum()
                values = {'sampling_rates': [*rates], 'class_probabilities': [*draw]}
                lines.append({'kind': 'rates', **place, **values})
        done += length
        if not finished:
            break
    tests = 1000
    confusion = np.outer(1 - accuracy, counts / counts.sum()) * tests
    confusion[np.diag_indices(classes)] += accuracy * tests
    confidence = (np.arange(15) + 0.5) / 15
    final = {
        **evaluate(1.0),
        'confusion_matrix': confusion.round().astype(int).tolist(),
        'reliability': {
            'confidence': [*confidence],
            'accuracy': [*(confidence**1.3 * (0.85 + 0.2 * gain))],
            'count': [0, *np.round(100 * confidence[1:] ** 2)],
        },
    }
    facts = {
        'method': method,
        'dataset': dataset,
        'imbalance_factor': float(counts.max() / counts.min()),
        'profile': 'exponential',
        'seed': seed,
        'recipe': 'paper',
        'parameter_count': 464154,
        'class_counts': counts.tolist(),
        'class_names': [f'c{index}' for index in range(classes)],
        'meta_set': 'training set, stratified, with replacement' if method == 'balms' else None,
        'selection_rule': 'last epoch',
        'device': '8 x cpu',
        'versions': {'jax': '0.10.2'},
        'stages': [{'name': n, 'steps': length, 'batch_size': 512} for n, length in stages],
    }
    config = {'method': method, 'seed': seed, 'optimizer': {'name': 'sgd', 'momentum': 0.9}}
    (folder / 'run.json').write_text(json.dumps(facts))
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    if finished:
        other = {name: value for name, value in final.items() if 'matrix' not in name}
        evaluation = {'uniform': final, 'training set': other}
        (folder / 'evaluation.json').write_text(json.dumps(evaluation))
    return folder


def cells(page: Path, row: str) -> list[str]:
    """The texts of the results table's row that starts with the label."""
    table = page.read_text().split('class="results"')[1].split('</table>')[0]
    (found,) = [r for r in table.split('<tr>') if re.search(f'</span>{re.escape(row)}<', r)]
    texts = re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', found)
    return [html.unescape(re.sub('<[^>]*>', '', text)).replace('\u202f', ' ') for text in texts]


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_seeds_become_mean_and_sample_deviation(tmp_path):
    # 0.80, 0.82, 0.87: mean 0.83; squared deviations 9 + 1 + 16 = 26 e-4, over 2: 0.0361.
    for seed, top1 in enumerate((0.80, 0.82, 0.87)):
        write_run(tmp_path / f'run_{seed}', seed=seed, top1=top1)
    page = report.write_report([tmp_path / f'run_{seed}' for seed in range(3)])
    assert cells(page, 'BALMS')[1:3] == ['3', '83.0 ± 3.6']
    (row,) = comparison.comparison_table([runs.read_run(tmp_path / f'run_{s}') for s in range(3)])
    assert row['top-1 %'] == '83.0 ± 3.6'
    assert row['seeds'] == '0, 1, 2'
    assert row['parameters'] == '464,154'


def test_one_seed_has_no_deviation(tmp_path):
    # A deviation of one value does not exist; 0 would claim certainty.
    run = runs.read_run(write_run(tmp_path / 'run', top1=0.8))
    assert comparison.comparison_table([run])[0]['top-1 %'] == '80.0'


def test_absent_shot_group_is_none_and_not_zero(tmp_path):
    # No class has fewer than 20 images: an accuracy of 0 there would be a lie.
    run = write_run(tmp_path / 'run', class_counts=(500, 90, 30))
    page = report.write_report([run])
    assert cells(page, 'BALMS')[5] == 'none'
    assert 'no class with fewer than 20 training images' in page.read_text()
    assert comparison.comparison_table([runs.read_run(run)])[0]['few %'] == 'none'


def test_value_that_was_not_recorded_is_a_dash(tmp_path):
    run = write_run(tmp_path / 'run')
    evaluation = json.loads((run / 'evaluation.json').read_text())
    evaluation['uniform']['negative_log_likelihood'] = None
    (run / 'evaluation.json').write_text(json.dumps(evaluation))
    assert comparison.comparison_table([runs.read_run(run)])[0]['NLL'] == '–'


def test_gradient_weights_that_are_not_known_are_a_dash_and_in_no_figure(tmp_path):
    # An exponent of 0 would say that the method leaves the imbalance as it is.
    members = [write_run(tmp_path / method, method) for method in ('softmax', 'balms')]
    unknown = {'gradient_weights': None, 'gradient_weight_exponent': None}
    for line in (lines := read_lines(members[0] / 'metrics.jsonl')):
        line.update(unknown if line['kind'] == 'evaluation' else {})
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (members[0] / 'metrics.jsonl').write_text(text)
    evaluation = json.loads((members[0] / 'evaluation.json').read_text())
    evaluation['uniform'] |= unknown
    change(members[0] / 'evaluation.json', **evaluation)
    page = report.write_report(members, tmp_path / 'page.html')
    assert cells(page, 'Softmax')[8] == '–'
    assert cells(page, 'BALMS')[8] != '–'
    assert 'of other methods it was not measured (–)' in page.read_text()
    assert 'alt="Gradient-weight exponent over training for BALMS."' in page.read_text()
    assert 'alt="Effective gradient weights against class counts for BALMS."' in page.read_text()


def test_a_repeated_seed_is_no_second_seed(tmp_path):
    # Two runs of one seed agree by construction; their spread says nothing about seeds.
    members = [write_run(tmp_path / name, seed=0) for name in ('a', 'b')]
    groups = comparison.group_runs([runs.read_run(run) for run in members])
    assert [group.label for group in groups] == ['BALMS (a)', 'BALMS (b)']
    # The same directory twice is one run, whichever way it is spelt.
    page = report.write_report([members[0], tmp_path / 'b' / '..' / 'a'])
    assert cells(page, 'BALMS')[1] == '1'


def test_another_config_is_another_row(tmp_path):
    # A sweep over the learning rate must not be averaged as if it were seeds.
    members = [write_run(tmp_path / str(seed), seed=seed) for seed in range(3)]
    change(members[2] / 'config.json', learning_rate=0.3)
    groups = comparison.group_runs([runs.read_run(run) for run in members])
    assert [len(group.runs) for group in groups] == [2, 1]


def test_page_needs_nothing_from_outside_and_runs_nothing(tmp_path):
    page = report.write_report(
        [write_run(tmp_path / method, method) for method in ('softmax', 'balms')]
    )
    text = page.read_text()
    assert text.count('<img') >= 10
    assert all(source.startswith('data:image/svg+xml;base64,') for source in images(text))
    assert not re.search(r'<(script|link|iframe|object|embed)\b', text)
    assert not re.search(r'(https?:)?//\w|url\(|@import', re.sub('base64,[^"]*', '', text))
    assert all(re.findall(r'<img alt="(.*?)"', text)), 'every figure has an alternative text'


def images(text: str) -> list[str]:
    return re.findall(r'<img[^>]* src="(.*?)"', text)


def test_same_runs_give_the_same_bytes(tmp_path):
    # In a fresh process too: hash seeds, dates and identifiers must leave no trace.
    run = write_run(tmp_path / 'run')
    first = report.write_report([run], tmp_path / 'first.html').read_bytes()
    arguments = ['-m', 'balms_jax.report', str(run), '--output', str(tmp_path / 'second.html')]
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    assert (tmp_path / 'second.html').read_bytes() == first


def test_three_runs_of_100_classes_stay_small(tmp_path):
    counts = tuple(int(500 * 100 ** (-j / 99)) for j in range(100))
    folders = [write_run(tmp_path / m, m, class_counts=counts) for m in BEHAVIOUR]
    page = report.write_report(folders)
    assert page == tmp_path / 'report.html', 'by default where all runs lie'
    assert page.stat().st_size < 4e6


def test_what_files_say_is_text_and_never_markup(tmp_path):
    run = write_run(tmp_path / 'run')
    evil = '<img src=x onerror="alert(1)">'
    change(run / 'run.json', dataset=evil, recipe=evil, device=evil, meta_set=evil, profile=evil)
    change(run / 'run.json', class_names=[evil, '$x^$', '&'], versions={evil: evil})
    change(run / 'config.json', **{evil: evil})
    text = report.write_report([run]).read_text()
    assert 'onerror=' in text
    assert '<img src=x' not in text


def test_images_that_training_did_without_are_told(tmp_path):
    """Who reads the page alone should not take the set for whole; other pages have no such row."""
    run = write_run(tmp_path / 'run')
    assert 'left out' not in report.write_report([run]).read_text().split('<table class="facts"')[1]
    missing, replaced = {'train': 3, 'test': 1}, {'a.jpg': 2, 'b.jpg': 5}
    change(run / 'run.json', missing_images=missing, replaced_images=replaced)
    told = report.write_report([run]).read_text().split('<table class="facts"')[1]
    assert '3 of the training set, 1 of the test set' in told
    assert '2, 7 times in all' in told


def test_unfinished_run_says_so_and_uses_its_last_evaluation(tmp_path):
    run = write_run(tmp_path / 'run', finished=False)
    text = report.write_report([run]).read_text()
    last = runs.read_run(run).metrics['evaluation'][-1]
    assert 'unfinished at step 30 of 60 in stage_1' in text
    assert cells(run / 'report.html', 'BALMS (unfinished)')[2] == f'{100 * last["top1"]:.1f}'


def test_run_that_has_just_started_has_a_page(tmp_path):
    run = write_run(tmp_path / 'run', finished=False)
    (run / 'metrics.jsonl').unlink()
    text = report.write_report([run]).read_text()
    assert 'No evaluation has been recorded yet.' in text
    assert 'unfinished at step 0' in text


def test_half_written_last_line_is_dropped(tmp_path):
    # A killed run leaves it behind; everything before it is whole.
    run = write_run(tmp_path / 'run', finished=False)
    whole = runs.read_run(run).metrics
    with open(run / 'metrics.jsonl', 'a') as file:
        file.write('{"kind": "train", "stage": "stage_1", "st')
    assert repr(runs.read_run(run).metrics) == repr(whole)


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path):
    run = write_run(tmp_path / 'run', finished=False)
    with open(run / 'metrics.jsonl', 'a') as file:
        line = {'kind': 'train', 'stage': 'stage_1', 'step': 30, 'loss': 7.0}
        file.write(json.dumps(line) + '\n')
    steps, losses = runs.read_run(run).series('train', 'loss')
    assert steps.tolist() == [*range(1, 31)]
    assert losses[-1] == 7.0


def test_steps_of_later_stages_follow_the_earlier_ones(tmp_path):
    steps, _ = runs.read_run(write_run(tmp_path / 'run')).series('rates', 'sampling_rates')
    assert steps.tolist() == [*range(61, 81)]


def test_start_of_a_stage_does_not_replace_the_end_of_the_last(tmp_path):
    # A fresh classifier is evaluated at step 0, after as many steps as the stage before it.
    run = write_run(tmp_path / 'run')
    with open(run / 'metrics.jsonl', 'a') as file:
        line = {'kind': 'evaluation', 'stage': 'stage_2', 'step': 0, 'top1': 0.1}
        file.write(json.dumps(line) + '\n')
    first, second = runs.read_run(run).series_by_stage('evaluation', 'top1')
    assert first[0][-1] == second[0][0] == 60
    assert first[1][-1] > second[1][0] == 0.1


@pytest.mark.parametrize(
    ('file', 'text', 'complaint'),
    [
        ('run.json', None, r'not a run directory: it has no run\.json'),
        ('run.json', '{"method": "balms"', r'run\.json: broken JSON: .* line 1'),
        ('run.json', '{"method": "balms"}', r'run\.json: dataset: got None, wanted str'),
        ('run.json', '[]', r'run\.json: got a list, wanted an object'),
        ('run.json', 'with versions', r'run\.json: versions: got \[\], wanted .*dict'),
        ('config.json', None, r'config\.json: missing'),
        ('evaluation.json', '{"top1": 0.8}', r"evaluation\.json: lacks 'uniform'"),
        ('evaluation.json', '{"uniform": {"top1": "a"}}', r'uniform: top1: wanted a number'),
        (
            'evaluation.json',
            '{"uniform": {"per_class_accuracy": [0.1, 0.2]}}',
            r'per_class_accuracy: got shape \[2\], wanted 3 numbers',
        ),
        ('metrics.jsonl', '{"kind": \n', r'metrics\.jsonl, line 1: broken JSON'),
        (
            'metrics.jsonl',
            '{"kind": "train", "stage": "stage_9", "step": 1}\n',
            r"metrics\.jsonl, line 1: stage 'stage_9' is not one of run\.json",
        ),
    ],
)
def test_broken_run_is_refused_with_its_file_named(tmp_path, capsys, file, text, complaint):
    run = write_run(tmp_path / 'run')
    if text == 'with versions':
        change(run / file, versions=[])
    elif text is None:
        (run / file).unlink()
    else:
        (run / file).write_text(text)
    page = tmp_path / 'page.html'
    page.write_text('an earlier page')
    assert main([str(run), '--output', str(page)]) == 2
    message = capsys.readouterr().err
    assert re.search(complaint, message)
    assert str(run) in message
    assert message.count('\n') == 1
    assert page.read_text() == 'an earlier page'
    assert {path.name for path in tmp_path.iterdir()} == {'run', 'page.html'}


def test_missing_output_folder_is_one_line(tmp_path, capsys):
    run = write_run(tmp_path / 'run')
    assert main([str(run), '--output', str(tmp_path / 'absent' / 'page.html')]) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_finding_says_when_the_schedules_differ(tmp_path):
    """A longer training is not a better method: the headline must not hide it."""
    made = []
    for method, steps in (('softmax', 300), ('balanced_softmax', 3000)):
        folder = write_run(tmp_path / method, method, 0)
        config = json.loads((folder / 'config.json').read_text())
        config['stage_1'] = {'steps': steps, 'batch_size': 64}
        (folder / 'config.json').write_text(json.dumps(config))
        made.append(runs.read_run(folder))
    text = finding_of(comparison.group_runs(made))
    assert 'Mind that the runs also differ in stage_1.steps.' in text
    same = finding_of(comparison.group_runs(made[:1] * 1))
    assert 'differ' not in same


def finding(folder: Path, top1: dict[str, list[float]]) -> str:
    """The sentence for runs with these accuracies by method."""
    made = [
        runs.read_run(write_run(folder / f'{method}_{seed}', method, seed, top1=value))
        for method, values in top1.items()
        for seed, value in enumerate(values)
    ]
    return finding_of(comparison.group_runs(made))


def test_finding_names_the_best_and_the_next(tmp_path):
    top1 = {'softmax': [0.70, 0.71], 'balms': [0.80, 0.81], 'balanced_softmax': [0.75, 0.76]}
    text = finding(tmp_path, top1)
    assert 'BALMS reaches the highest top-1 accuracy, 80.5 ± 0.7 % (mean of 2 seeds)' in text
    assert '5.0 points above Balanced Softmax (75.5 ± 0.7 %)' in text
    assert 'seeds do not tell' not in text


def test_finding_does_not_make_more_of_a_difference_than_the_seeds_do(tmp_path):
    # Differences of −1 and 3 points: 1, with a standard error of 2.
    text = finding(tmp_path / 'two', {'softmax': [0.68, 0.72], 'balms': [0.67, 0.75]})
    assert 'which seeds do not tell from 0' in text
    # Of 1 and 1.1 points, however far the seeds are apart: they move both methods alike.
    text = finding(tmp_path / 'alike', {'softmax': [0.68, 0.72], 'balms': [0.69, 0.731]})
    assert 'seeds do not tell' not in text
    # Of 1 and 1.2: two standard errors are 0.2, but two seeds tell as little as 12.7 of them.
    text = finding(tmp_path / 'two_seeds', {'softmax': [0.68, 0.72], 'balms': [0.69, 0.732]})
    assert 'which seeds do not tell from 0' in text
    text = finding(tmp_path / 'one', {'softmax': [0.70], 'balms': [0.71]})
    assert 'one seed does not tell' in text


def test_data_sets_do_not_share_a_figure_or_a_ranking(tmp_path):
    cifar = write_run(tmp_path / 'cifar', top1=0.5)
    digits = write_run(tmp_path / 'digits', dataset='digits', class_counts=(90, 9), top1=0.9)
    text = report.write_report([cifar, digits]).read_text()
    assert text.count('class="finding"') == 2
    assert 'highest' not in text
    rows = comparison.comparison_table([runs.read_run(cifar), runs.read_run(digits)])
    assert [row['data set'].split(',')[0] for row in rows] == ['CIFAR-10-LT', 'digits-LT']


def test_markdown_table_has_a_line_a_row():
    text = comparison.markdown_table([{'method': 'a|b', 'top-1 %': '80.0'}])
    assert text == '| method | top-1 % |\n| --- | --- |\n| a¦b | 80.0 |\n'
