"""The page: what was asked, the answers, the figures, what does not work, how it was measured."""

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from balms_jax.report.html import document, embedded, table
from balms_jax.training.records import write_json
from experiments import kept
from experiments.laboratory import conclusions, figures, tables
from experiments.laboratory.conclusions import Parts

MACHINE = 'machine.json'
CHOSEN = {
    'estimator examples': 'examples (official)',
    'estimator classes': 'classes',
    'estimator score_leave_one_out': 'score_leave_one_out',
    'estimator expectation': 'expectation',
    'K = 8': 'classes, K = 8',
    'meta step every 16': 'classes, every 16 steps',
    'draws 24 steps stale': 'classes, 24 steps stale',
    'quarter meta batch': 'classes, quarter meta batch',
}


def note_run(folder: Path, part: str, machine: dict[str, str]) -> None:
    """Keeps that a part is finished, and on which machine it was measured."""
    path = folder / MACHINE
    found = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**found, part: machine})


def write(folder: Path, output: Path, names: Sequence[str]) -> Path:
    """Writes the page, and the numbers beside it.

    Args:
        folder: where the parts are; those that are not finished are left out.
        output: where to.
        names: of the parts.

    Returns:
        Where the page is.
    """
    output.mkdir(parents=True, exist_ok=True)
    machine = folder / MACHINE
    finished = json.loads(machine.read_text()) if machine.exists() else {}
    parts = {
        name: json.loads((folder / f'{name}.json').read_text())
        for name in names
        if name in finished
    }
    for name, part in parts.items():
        compact = json.dumps({**part, 'machine': finished[name]}, separators=(',', ':'))
        (output / f'{name}.json').write_text(compact + '\n')
    path = output / 'page.html'
    path.write_text(page(parts, finished))
    return path


def page(parts: Parts, machine: dict[str, Any]) -> str:
    """The whole page of the parts that there are."""
    sections: dict[str, Callable[[Parts], str]] = {
        'agreement': _agreement,
        'v_curve': _v_curve,
        'estimators': _estimators,
        'exact': _exact,
        'horizon': _horizon,
        'training': _training,
    }
    body = f'<p class="finding">{html.escape(conclusions.lead(parts))}</p>\n'
    advice = conclusions.advice(parts)
    if advice:
        body += '<h2>What to use when</h2>\n' + table(advice)
    body += ''.join(make(parts) for name, make in sections.items() if name in parts)
    failures = ''.join(f'<li>{html.escape(t)}</li>' for t in conclusions.does_not_work(parts))
    body += f'<h2>What does not work</h2>\n<ul>{failures}</ul>\n'
    body += '<h2>How it was measured</h2>\n' + _method(parts, machine)
    return document(
        'How good is each meta-gradient?',
        body,
        f'{kept.written_by()}. Every sentence with a number is computed from the files beside this '
        'page.',
    )


def _section(title: str, answer: str, *more: str) -> str:
    return f'<h2>{html.escape(title)}</h2>\n<p>{html.escape(answer)}</p>\n' + '\n'.join(more)


def _details(title: str, content: str) -> str:
    return (
        f'<details><summary>{html.escape(title)}</summary>'
        f'<div class="scroll">{content}</div></details>\n'
    )


def _agreement(parts: Parts) -> str:
    rows = parts['agreement']['rows']
    caption = (
        'Each dot is one optimizer (SGD, Nesterov momentum with decay, AdamW, clipping) at '
        'initialisation or after some steps; a bar is the median. All precisions start from the '
        'same parameters, which float32 holds, so that this is the error of the arithmetic alone. '
        'An error of exactly 0 is drawn at the left edge, 1 is dotted. bfloat16: parameters and ψ '
        'in float32, the network in bfloat16. Dots far to the right of their bar are AdamW at its '
        'first step.'
    )
    figure = embedded(figures.agreement(rows), caption, 'Errors of the modes by precision')
    numbers = table(tables.agreement_table(parts))
    return _section(
        'Do the modes agree, and in which precision?',
        conclusions.of_agreement(parts) + '; what rounding does to them is the same for all.',
        figure,
        _details('Errors in numbers', numbers),
    )


def _v_curve(parts: Parts) -> str:
    caption = (
        'Relative error of a difference along the exact u of SGD, after some steps of training. '
        'Markers: the default step of the precision. Left of the minimum rounding rules, right of '
        'it curvature, and in a ReLU network the kinks.'
    )
    figure = embedded(
        figures.v_curves(parts['v_curve']['rows']), caption, 'Error of differences by step'
    )
    numbers = table(tables.differences_table(parts))
    return _section(
        'How good is a finite difference?',
        conclusions.of_differences(parts),
        figure,
        _details('Errors in numbers', numbers),
    )


def _estimators(parts: Parts) -> str:
    part = parts['estimators']
    rows = {name: row for name, row in part['rows'].items() if 'estimator' in row}
    size, factor, classes = part['settings']['base']
    caption = (
        'Against the gradient of the meta loss after the expected update, one meta batch held. '
        f'Base: batch size {size}, imbalance factor {factor:g}, {classes} classes; one of them is '
        'varied at a time. Error of direction: the sine of the angle between mean and exact '
        'gradient, which is what a scale-free optimizer sees of a bias. Hollow: within two '
        'standard errors of 0, drawn at those.'
    )
    drawing, figure = figures.estimators(rows, part['settings']), ''
    if drawing is not None:
        figure = embedded(drawing, caption, 'Bias and noise of the estimators')
    note = (
        '<p class="note">Bias, scale, error of direction and spread are relative to the exact '
        'gradient; noise is spread over the length of the mean; ± is one standard error. The draw '
        f'alone is random. Features: {html.escape(part["settings"]["backbone"])}; the head after '
        f'{part["settings"]["warm_steps"]} steps of Balanced Softmax with a learned ψ.</p>'
    )
    return _section(
        'How does a draw get a gradient?',
        conclusions.of_estimators(parts),
        table(tables.estimator_table(parts)),
        note,
        figure,
    )


def _exact(parts: Parts) -> str:
    drawn = parts.get('estimators', {'rows': {}, 'settings': {'base': (0, 0, 0)}})
    rows = {name: row for name, row in drawn['rows'].items() if 'estimator' in row}
    exact = parts['exact']['rows']
    first = embedded(
        figures.temperature(exact, rows, drawn['settings']['base']),
        'The Gumbel estimators against their temperature: on a problem of seven examples, where '
        'moments are exact, and on real features. A low temperature makes the soft sample the hard '
        'one, whose gradient is rarely there; a high one forgets which was drawn.',
        'Scale, direction and noise by temperature',
    )
    second = embedded(
        figures.step_size(exact),
        'Bias of the estimators on the enumerable problem against the learning rate of its step '
        'of SGD, uneven rates. The score function and its relatives are unbiased to first order: '
        'their bias falls with the step. That of the Gumbel estimators does not.',
        'Bias by learning rate',
    )
    return (
        '<h2>What do temperature and the size of the step do?</h2>\n'
        f'<div class="figures">{first}{second}</div>\n'
    )


def _horizon(parts: Parts) -> str:
    rows = parts['horizon']['rows']
    caption = (
        'The gradient through K steps on the expected loss, against the implicit gradient at its '
        'minimum; and the noise of K-step gradients on drawn batches of 128, from within training. '
        f'At the minimum the gradient is {rows["implicit"]["stationarity"]:.0e} long; the residual '
        f'of the linear system is {rows["implicit"]["residual"]:.0e}.'
    )
    figure = embedded(figures.horizons(rows), caption, 'K-step gradients')
    return _section('How far ahead should it look?', conclusions.of_horizon(parts), figure)


def _training(parts: Parts) -> str:
    part = parts['training']
    rows, counts = part['rows'], part['settings']['counts']
    order = ('examples', 'classes', 'score_leave_one_out', 'systematic_examples', 'expectation')
    chosen = {name: title for name, title in CHOSEN.items() if f'softmax/{name}' in rows}
    pictures = [
        embedded(
            figures.accuracies(rows),
            'A linear head on cached features, a dot a seed. Every row differs from "estimator '
            'classes" in the one thing that it names; K = 4 and K = 8 take as many fewer steps of '
            'ψ, as "meta step every 4" does. Nothing was chosen by these accuracies.',
            'Accuracy of every training',
        ),
        embedded(
            figures.trajectories(rows, chosen),
            'Sampling rates σ(ψ) on the way, a line a seed: the rarest class solid, the largest '
            'dashed.',
            'Sampling rates over training',
        ),
        embedded(
            figures.final_rates(rows, counts, order),
            'Sampling rates at the last step by class, mean over seeds.',
            'Final sampling rates by class',
        ),
    ]
    numbers = table(tables.accuracy_table(parts))
    title = (
        'Accuracy in numbers, %, mean ± deviation over seeds; sampling rates of the largest → the '
        'rarest class'
    )
    details = _details(title, numbers)
    return _section(
        'What becomes of a training?', conclusions.of_training(parts), *pictures, details
    )


def _method(parts: Parts, machine: dict[str, Any]) -> str:
    lines = []
    for name, part in parts.items():
        settings = {k: v for k, v in part['settings'].items() if k != 'counts'}
        how = ', '.join(f'{key} {value}' for key, value in settings.items())
        where = ', '.join(f'{key} {value}' for key, value in machine.get(name, {}).items())
        lines.append({'part': name, 'settings': how, 'machine': where})
    command = 'python -m experiments.meta_gradients --data_dir data'
    text = (
        f'<p class="note"><code>{command}</code>. Agreement and differences: batches of 32 images, '
        'meta batches of 32, ten classes, ψ at random. Seeds are fixed. The exact gradient is '
        'jax.grad through the expected update over all training examples, in float64. One plain '
        'view of each image is cached, no augmented ones.</p>'
    )
    return table(lines) + text
