"""Part E: the answers in words, every number of them computed from the rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.laboratory.figures import LOSS_COLORS, named

Parts = Mapping[str, Mapping[str, Any]]  # by part: {'settings': …, 'rows': …}
INEXACT = 'finite_difference'
ONE_STEP = ('classes', 'score_leave_one_out', 'expectation')


def base_rows(parts: Parts, point: str = 'learned') -> dict[str, dict[str, Any]]:
    """The base case on real features, by estimator; at another point of training."""
    part = parts['estimators']
    size, factor, classes = part['settings']['base']
    wanted = {
        'batch_size': size,
        'imbalance_factor': factor,
        'classes': classes,
        'temperature': 1.0,
        'point': point,
    }
    return {
        row['estimator']: row
        for row in part['rows'].values()
        if all(row.get(key) == value for key, value in wanted.items())
    }


def of_agreement(parts: Parts) -> str:
    """How far the modes agree, in a sentence."""
    rows = parts['agreement']['rows']
    worst = max(
        cell['error']
        for name, row in rows.items()
        if '/float64/' in name and not name.endswith(INEXACT)
        for cell in row.values()
    )
    return f'In float64 all exact modes agree to {worst:.0e} at worst'


def of_differences(parts: Parts) -> str:
    """What a difference costs at its default step, in a sentence."""
    told = [
        f'{name.split("/")[0]} {row["error_at_default"]:.0e}'
        for name, row in parts['v_curve']['rows'].items()
        if name.endswith('float32/central')
    ]
    return f'A central difference at the default step errs in float32 by: {", ".join(told)}.'


def of_estimators(parts: Parts) -> str:
    """What each estimator costs."""
    rows = base_rows(parts)
    official, score, quiet = rows['examples'], rows['score'], _quietest(rows)
    told = [
        'The official estimator (examples, T = 1) gives '
        f'{official["scale"]:.0%} of the exact gradient along it; its mean is turned by '
        f'{_degrees(official["direction"])}, and one draw scatters by {official["noise"]:.2f} '
        f'times that mean. Least noise has {quiet}, {rows[quiet]["noise"]:.2f}.'
    ]
    tiny = base_rows(parts, 'tiny step')
    if tiny:
        told.append(
            'An independent draw turns the score function, too, by '
            f'{_degrees(score["direction"])}: the step that it takes is not the expected one. To '
            'first order, where steps are tiny, that is '
            f'{_degrees(tiny["score"]["direction"])} ± '
            f'{_degrees(tiny["score"].get("direction_error", 0))}, and '
            f'{_degrees(tiny["examples"]["direction"])} ± '
            f'{_degrees(tiny["examples"].get("direction_error", 0))} for the official one.'
        )
    if 'meta batch' in parts['estimators']['rows']:
        noise = parts['estimators']['rows']['meta batch']['noise']
        told.append(f'A random meta batch alone, with the update exact, has noise {noise:.2f}.')
    return ' '.join(told)


def _quietest(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return min(rows, key=lambda name: rows[name]['noise'])


def of_horizon(parts: Parts) -> str:
    """What more steps change."""
    rows = parts['horizon']['rows']
    # Of both places: a part may have been stopped before its longest horizons.
    ks = sorted(int(k) for (k,) in named(rows, 'training').keys() & named(rows, 'minimum').keys())
    first, last = ks[0], ks[-1]

    def cosine(where: str, k: int) -> str:
        return f'{rows[f"{where}/{k}"]["expected"]["cosine"]:.3f}'

    def noise(k: int) -> str:
        row = rows[f'training/{k}']
        return ', '.join(f'{name} {row[name]["noise"]:.2f}' for name in ONE_STEP)

    return (
        'The gradient of one step has cosine '
        f'{cosine("minimum", first)} with the implicit one at the minimum and '
        f'{cosine("training", first)} from within training; that of {last} steps '
        f'{cosine("minimum", last)} and {cosine("training", last)}, and '
        f'{rows[f"minimum/{last}"]["expected"]["norm"]:.1%} of its length from the minimum. '
        f'Noise at K = {first}: {noise(first)}; at K = {last}: {noise(last)}.'
    )


def of_training(parts: Parts) -> str:
    """What becomes of accuracy and of the rates."""
    rows = parts['training']['rows']
    told = []
    for loss in LOSS_COLORS:
        found = {name: row for (name,), row in named(rows, loss).items()}
        meta = {n: np.array(r['accuracy']) for n, r in found.items() if not n.startswith('no meta')}
        means = {name: values.mean() for name, values in meta.items()}
        seeds = np.sqrt(np.mean([values.var(ddof=1) for values in meta.values()]))
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        plain = ', '.join(
            f'{name[9:]} {np.mean(found[name]["accuracy"]):.1%}'
            for name in found
            if name.startswith('no meta')
        )
        told.append(
            f'With {loss} all {len(meta)} trainings that learn ψ end between {means[low]:.1%} '
            f'({low}) and {means[high]:.1%} ({high}), with a deviation of {100 * seeds:.2f} points '
            f'over seeds; without meta: {plain}.'
        )
        told.append(_rates_in_words(found, loss))
    return ' '.join(told)


def _rates_in_words(found: Mapping[str, Mapping[str, Any]], loss: str) -> str:
    ends = {
        name: (
            np.mean([values[-1] for values in row['rate_largest']]),
            np.mean([values[-1] for values in row['rate_rarest']]),
        )
        for name, row in found.items()
        if name in ('estimator examples', 'estimator classes', 'estimator expectation')
    }
    words = '; '.join(
        f'{name[10:]} {large:.2f} and {rare:.2f}' for name, (large, rare) in ends.items()
    )
    return f'Rates of the largest and the rarest class at the end: {words}.'


def advice(parts: Parts) -> list[dict[str, str]]:
    """What to use when, with the number that says so."""
    table = []
    if 'agreement' in parts:
        rows = parts['agreement']['rows']
        halves = [
            np.median([cell['error'] for cell in row.values()])
            for name, row in rows.items()
            if name.split('/')[1] == 'bfloat16' and not name.endswith(INEXACT)
        ]
        table.append(
            {
                'question': 'Which mode?',
                'use': 'any exact one, by cost: it makes no difference to the gradient',
                'because': of_agreement(parts),
            }
        )
        table.append(
            {
                'question': 'Which precision?',
                'use': 'float32 for the whole meta step, but for the first step of Adam',
                'because': 'computed in bfloat16 the gradient errs, in the median over '
                f'optimizers, by up to {max(halves):.0e}',
            }
        )
    if 'v_curve' in parts:
        steps = {
            name.split('/')[0]: (row['steps'][int(np.argmin(row['errors']))], min(row['errors']))
            for name, row in parts['v_curve']['rows'].items()
            if name.endswith('float32/central')
        }
        words = ', '.join(f'{name} {step:.0e} ({e:.0e})' for name, (step, e) in steps.items())
        table.append(
            {
                'question': 'Which step for a difference?',
                'use': 'the default, √ε; a tenth of it in a deep rectified network; float32',
                'because': f'best steps of central ones in float32, and their errors: {words}',
            }
        )
    if 'estimators' in parts:
        rows = base_rows(parts)
        unweighted = {n: r['noise'] for n, r in rows.items() if n != 'expectation'}
        unbiased = {n: v for n, v in unweighted.items() if n not in ('examples', 'classes')}
        best = min(unbiased, key=unbiased.__getitem__)
        quietest = _quietest(rows)
        table.append(
            {
                'question': 'Which estimator, if the real step must stay unweighted?',
                'use': best,
                'because': f'no bias to first order, and noise {unbiased[best]:.2f} against '
                f'{unweighted["examples"]:.2f} of the official one and '
                f'{unweighted["classes"]:.2f} of classes',
            }
        )
        table.append(
            {
                'question': 'Which estimator has the least noise?',
                'use': quietest,
                'because': f'noise {rows[quietest]["noise"]:.2f}'
                + (
                    '; it weighs the real step and draws all classes equally often'
                    if quietest == 'expectation'
                    else ''
                ),
            }
        )
        official = rows['examples']
        table.append(
            {
                'question': "What does the authors' estimator cost?",
                'use': 'examples, T = 1, to repeat published runs only',
                'because': f'it gives {official["scale"]:.0%} of the gradient, which Adam does not '
                f'see, and is turned by {_degrees(official["direction"])}, which it does; noise '
                f'{official["noise"]:.2f}; a random number for every example and draw',
            }
        )
    if 'training' in parts:
        table += _training_advice(parts['training']['rows'])
    return table


QUESTIONS = {
    'How many steps K?': ('K = 2', 'K = 4', 'K = 8', 'K = 8, rate of ψ × 8'),
    'How fresh must ψ be when a batch is drawn?': tuple(
        f'draws {n} steps stale' for n in (1, 8, 24)
    ),
    'How often a meta step?': (
        'meta step every 4',
        'meta step every 16',
        'meta step every 16, rate of ψ × 16',
    ),
    'How large a meta batch?': ('quarter meta batch',),
    'Is a finite difference enough?': ('mode finite_difference',),
}


def _training_advice(rows: Mapping[str, Any]) -> list[dict[str, str]]:
    """What differs from the base in accuracy by more than seeds do."""
    table = []
    for question, names in QUESTIONS.items():
        told, worse, measured = [], [], False
        for loss in LOSS_COLORS:
            found = {name: np.array(row['accuracy']) for (name,), row in named(rows, loss).items()}
            seeds = np.sqrt(np.mean([values.var(ddof=1) for values in found.values()]))
            base = found['estimator classes'].mean()
            doubt = 2 * seeds * np.sqrt(2 / 3)  # of a difference of two means of three
            changes = {name: found[name].mean() - base for name in names if name in found}
            measured |= bool(changes)
            worse += [f'{name} ({loss})' for name, d in changes.items() if d < -doubt]
            words = ', '.join(f'{name} {100 * change:+.1f}' for name, change in changes.items())
            told.append(f'{loss}: {words} (doubt {100 * doubt:.1f})')
        use = f'not {", ".join(worse)}' if worse else 'any: none was told to be worse'
        because = (
            'points of accuracy beside one fresh exact step a batch; below the doubt, two standard '
            f'errors over seeds, they say nothing; {"; ".join(told)}'
        )
        if measured:
            table.append({'question': question, 'use': use, 'because': because})
    return table


def does_not_work(parts: Parts) -> list[str]:
    """An honest list."""
    found = []
    if 'agreement' in parts:
        rows = parts['agreement']['rows']
        adam = {
            f'{name.split("/")[0]} in {precision}': row['initial, AdamW']['error']
            for name, row in rows.items()
            if name.endswith(('float32/reverse', 'bfloat16/reverse'))
            for precision in [name.split('/')[1]]
        }
        words = ', '.join(f'{name} {error:.0e}' for name, error in adam.items())
        found.append(
            "The gradient through Adam's first step: the step is nearly the sign of g, its "
            'derivative lives on the few entries where |g| is near ε, and rounding decides it. '
            f'Relative errors, by the precision of the computation: {words}.'
        )
    if 'v_curve' in parts:
        rows = {n: r for n, r in parts['v_curve']['rows'].items() if n.endswith('float32/central')}
        half = {
            name.split('/')[0]: row['error_at_default']
            for name, row in parts['v_curve']['rows'].items()
            if name.endswith('bfloat16/central')
        }
        words = ', '.join(f'{name} {error:.0%}' for name, error in half.items())
        worst = max(rows.items(), key=lambda item: _gain(item[1]))
        found.append(
            'The default step of a central difference is not the best for each problem: in '
            f'float32 it errs {_gain(worst[1]):.0f} times as much as the best step would for '
            f'{worst[0].split("/")[0]}.'
        )
        found.append(
            f'Central differences with bfloat16 computation, error at the default step: {words}.'
        )
    if 'estimators' in parts:
        rows = base_rows(parts)
        cosines = {name: row['one_cosine'] for name, row in rows.items()}
        found.append(
            'To trust a single draw: its mean cosine with the exact gradient is '
            f'{cosines["examples"]:.2f} for the official estimator, {max(cosines.values()):.2f} at '
            'best.'
        )
    if 'horizon' in parts:
        implicit = parts['horizon']['rows']['implicit']
        found.append(
            'No horizon within reach is that of the minimum: training ends '
            f'{implicit["distance"] / implicit["length"]:.0%} of its length away from it.'
        )
    if 'training' in parts:
        found.append(
            'Fewer steps of ψ at the same rate, be it K steps at once or a meta step every so '
            'often: with plain softmax ψ does not get where it has to go in time.'
        )
        found += _beaten(parts['training']['rows'])
        found.append(
            'Test accuracy as a judge of estimators: it tells apart trainings that learn ψ from '
            'those that do not, with plain softmax; hardly anything with Balanced Softmax.'
        )
    return found


def _beaten(rows: Mapping[str, Any]) -> list[str]:
    """What learns nothing and still does better."""
    told = []
    for loss in LOSS_COLORS:
        means = {n: np.mean(r['accuracy']) for (n,), r in named(rows, loss).items()}
        learned = max(value for name, value in means.items() if not name.startswith('no meta'))
        for name, value in means.items():
            if name.startswith('no meta') and value >= learned:
                told.append(
                    f'Learning ψ for the sake of accuracy with {loss}: {name[9:]} draws reach '
                    f'{value:.1%} without it, the best learned ones {learned:.1%}.'
                )
    return told


def _gain(row: Mapping[str, Any]) -> float:
    return float(row['error_at_default'] / min(row['errors']))


def lead(parts: Parts) -> str:
    """The answer in a paragraph."""
    told = []
    if 'agreement' in parts:
        told.append(of_agreement(parts) + ': the choice among them is one of cost.')
    if 'estimators' in parts:
        rows = base_rows(parts)
        official, quiet = rows['examples'], _quietest(rows)
        told.append(
            'What differs is how a draw gets a gradient. The official estimator gives '
            f'{official["scale"]:.0%} of the exact gradient, turned by '
            f'{_degrees(official["direction"])}, with noise {official["noise"]:.2f} times its '
            f'mean; {quiet} gives {rows[quiet]["scale"]:.0%}, turned by '
            f'{_degrees(rows[quiet]["direction"])}, with noise {rows[quiet]["noise"]:.2f}.'
        )
    if 'training' in parts:
        ranges = []
        for loss in LOSS_COLORS:
            found = named(parts['training']['rows'], loss)
            means = [100 * np.mean(r['accuracy']) for (n,), r in found.items() if n[:4] == 'esti']
            plain = 100 * np.mean(found['no meta, instance-balanced',]['accuracy'])
            ranges.append(
                f'{min(means):.1f} to {max(means):.1f} % with {loss} ({plain:.1f} without ψ)'
            )
        told.append(
            f'The accuracy of a trained head hardly tells the estimators apart: '
            f'{", ".join(ranges)}.'
        )
    return ' '.join(told)


def _degrees(sine: float) -> str:
    return f'{np.degrees(np.arcsin(np.clip(sine, 0, 1))):.1f}°'
