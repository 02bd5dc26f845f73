"""What does the Meta Sampler cost a training step? R4Q2 of the authors' reply.

Command   python -m experiments.step_cost [--model resnet32] [--batch_size 128] [--repetitions 10]
Cost      about ten minutes on two CPU cores
Ends in   experiments/results/step_cost/: figures.json and page.html
Measures  one step of each kind, interleaved in one process: medians of the ratio to the plain step
          taken in the same round; FLOPs and temporary memory as the compiler counts them
Found     end to end 2.1 times the time, 2.66 the FLOPs, 1.70 the memory; lean: 1.05 the memory
          at 2.99 times the FLOPs; stage 2 on cached features 2 ms against 370
Expected  8 forward passes' worth against 3: at most 2.67 times the FLOPs end to end
"""

import argparse
import dataclasses
import html
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
from matplotlib.figure import Figure

from balms_jax import meta_gradients, models
from balms_jax.data import resident
from balms_jax.report.figure_style import new_figure, styled
from balms_jax.report.html import document, embedded
from balms_jax.report.html import table as report_table
from balms_jax.training import state, steps
from balms_jax.training.recipe import Meta, Stage

CLASSES = 100
RESULTS = Path(__file__).parent / 'results' / 'step_cost'
CLASS_COUNTS = tuple(int(500 * 100 ** (-j / (CLASSES - 1))) for j in range(CLASSES))


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--model', default='resnet32')
    parser.add_argument('--batch_size', type=int, default=128)
    parser.add_argument('--repetitions', type=int, default=10)
    parser.add_argument('--output', type=Path, default=RESULTS, help='folder of the results')
    options = parser.parse_args()
    rows = measure(options.model, options.batch_size, options.repetitions)
    table = [
        {
            'step': row['step'],
            'ratio to': row['against'],
            'time': f'{row["time"]:.3g}',
            'quartiles': ' to '.join(f'{quartile:.3g}' for quartile in row['time_quartiles']),
            'FLOPs': f'{row["flops"]:.3g}',
            'temp memory': f'{row["memory"]:.3g}',
            'ms': f'{row["milliseconds"]:.3g}',
        }
        for row in rows
    ]
    console_table = rich.table.Table(*table[0], box=rich.box.SIMPLE)
    for line in table:
        console_table.add_row(*line.values())
    rich.console.Console(highlight=False, soft_wrap=True).print(console_table)
    facts = {
        'model': options.model,
        'batch size': options.batch_size,
        'meta batch size': options.batch_size,
        'classes': CLASSES,
        'repetitions': options.repetitions,
        'device': f'{jax.devices()[0].device_kind}, {os.cpu_count()} cores',
        'jax': jax.__version__,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / 'figures.json').write_text(
        json.dumps(facts | {'rows': rows}, indent=1) + '\n'
    )
    (options.output / 'page.html').write_text(page(facts, rows, table))


def page(facts: dict[str, Any], rows: list[dict[str, Any]], table: list[dict[str, str]]) -> str:
    """The page: what was asked, the answer, a figure, the table, how it was measured."""
    by_step = {row['step']: row for row in rows}
    exact = by_step['forward_over_reverse, end to end']
    cached = by_step['cached features against frozen backbone']
    answer = (
        f'An exact meta step end to end takes {exact["time"]:.2f} times a plain step, '
        f'{exact["flops"]:.2f} times its FLOPs and {exact["memory"]:.2f} times its temporary '
        f'memory. With cached features a meta step of stage 2 takes {cached["time"]:.2%} of a '
        'plain step through the frozen backbone.'
    )
    how = ', '.join(f'{name} {value}' for name, value in facts.items())
    caption = (
        'Each kind of step against the plain step of its place; grey whiskers are the quartiles of '
        'the ratio over rounds. The line at 8/3 is the floor of an exact step at equal batches end '
        'to end: 8 forward passes for 3.'
    )
    body = (
        f'<p class="finding">{html.escape(answer)}</p>\n'
        + embedded(cost_figure(rows), caption, 'Bars of time, FLOPs and memory ratios')
        + report_table(table)
        + f'<p class="note">{html.escape(how)}. Steps interleaved in one process; medians of the '
        'ratio to the plain step of the same round; FLOPs and temporary memory as the compiler '
        'counts them.</p>'
    )
    return document(
        'What the Meta Sampler costs', body, 'Written by <code>experiments/step_cost.py</code>.'
    )


@styled
def cost_figure(rows: list[dict[str, Any]]) -> Figure:
    """Ratios of time, FLOPs and memory of the steps that learn ψ."""
    shown = [row for row in rows if row['step'] != row['against'] and 'against' not in row['step']]
    drawing = new_figure((10.0, 0.42 * len(shown) + 1.4))
    axes = drawing.add_subplot()
    places = np.arange(len(shown))
    for offset, (name, color) in enumerate(
        {'time': '#d55e00', 'flops': '#0072b2', 'memory': '#7a7a7a'}.items()
    ):
        at = places + 0.26 * (offset - 1)
        axes.barh(at, [row[name] for row in shown], 0.24, color=color, label=name)
        if name == 'time':
            low, high = np.array([row['time_quartiles'] for row in shown]).T
            axes.hlines(at, low, high, color='#2b2b2b', lw=1)
    axes.axvline(8 / 3, color='#2b2b2b', lw=0.8, ls=':')
    axes.set_yticks(places, [row['step'] for row in shown])
    axes.invert_yaxis()
    axes.set_xlabel('ratio to the plain step')
    axes.legend()
    return drawing


def measure(model: str, batch_size: int, repetitions: int) -> list[dict[str, Any]]:
    """Times and counts every kind of step, each as a ratio to its plain step."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {}
    for where in ('end to end', 'frozen backbone', 'cached features'):
        plain = f'plain, {where}'
        kinds[plain] = (plain, {'where': where})
        for mode in meta_gradients.MODES:
            kinds[f'{mode}, {where}'] = (plain, {'where': where, 'mode': mode})
    kinds['cached features against frozen backbone'] = (
        'plain, frozen backbone',
        {'where': 'cached features', 'mode': 'forward_over_reverse'},
    )
    runs = {name: _compile(model, batch_size, **how) for name, (_, how) in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repetitions):
        for name, run in runs.items():
            seconds[name].append(run.seconds())
    rows = []
    for name, (plain, _) in kinds.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds[plain], strict=True)]
        rows.append(
            {
                'step': name,
                'against': plain,
                'time': statistics.median(ratios),
                'time_quartiles': np.quantile(ratios, [0.25, 0.75]).tolist(),
                'flops': runs[name].flops / runs[plain].flops,
                'memory': runs[name].memory / runs[plain].memory,
                'milliseconds': 1e3 * statistics.median(seconds[name]),
            }
        )
    return rows


@dataclasses.dataclass
class _Run:
    seconds: Callable[[], float]
    flops: float
    memory: int


def _compile(model: str, batch_size: int, *, where: str, mode: str = '') -> _Run:
    """One step of a kind, compiled for itself, on random images."""
    key = jax.random.key(0)
    network = models.build(model, CLASSES)
    images = np.random.default_rng(0).integers(0, 256, (sum(CLASS_COUNTS), 32, 32, 3), np.uint8)
    params, batch_stats = jax.jit(network.init)(key, np.zeros((1, 32, 32, 3), np.float32))
    end_to_end, cached = where == 'end to end', where == 'cached features'
    trained = params if end_to_end else {'classifier': params['classifier']}
    frozen = {} if end_to_end else {'backbone': params['backbone']}
    meta = Meta(rebalancer='meta_sampler' if mode else 'none', batch_size=batch_size)
    stage = Stage(
        steps=1000, batch_size=batch_size, meta=dataclasses.replace(meta, mode=mode or meta.mode)
    )

    def read_images(inputs: jax.Array, examples: jax.Array, key: jax.Array) -> jax.Array:
        del key
        return inputs[examples].astype(np.float32) / 128 - 1

    def logits(params: Any, stats: Any, inputs: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        if cached:
            return network.logits(params['classifier'], inputs), stats
        features, stats = network.features(params['backbone'], stats, inputs, end_to_end and train)
        return network.logits(params['classifier'], features), stats

    task = steps.Task(
        logits, resident.read_features if cached else read_images, CLASS_COUNTS, CLASS_COUNTS
    )
    rebalancer = steps.make_rebalancer(stage.meta, CLASS_COUNTS)
    current = state.create(
        key,
        trained,
        frozen,
        batch_stats,
        steps.make_optimizer(stage.optimizer, stage.steps),
        rebalancer.psi if rebalancer else None,
        steps.make_psi_optimizer(stage.meta),
    )
    inputs = jax.device_put(np.zeros((1, sum(CLASS_COUNTS), 64), np.float32) if cached else images)
    step = steps.make_step(task, stage, rebalancer)
    compiled = jax.jit(step).lower(current, inputs, inputs).compile()

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled(current, inputs, inputs))
        return time.perf_counter() - start

    seconds()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert cost is not None, 'the backend counts no FLOPs'
    assert memory is not None, 'the backend counts no memory'
    return _Run(seconds, cost['flops'], memory.temp_size_in_bytes)


if __name__ == '__main__':
    main()
