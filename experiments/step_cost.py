"""What does the Meta Sampler cost a training step? R4Q2 of the authors' reply.

Command   python -m experiments.step_cost [--model resnet32] [--batch_size 128] [--repetitions 10]
Cost      about five minutes on two CPU cores
Measures  one step of each kind, interleaved in one process: medians of the ratio to the plain step
          taken in the same round; FLOPs and temporary memory as the compiler counts them
Expected  8 forward passes' worth against 3: at most 2.67 times the FLOPs end to end
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from balms_jax import models
from balms_jax.data import resident
from balms_jax.training import state, steps
from balms_jax.training.recipe import Meta, Stage

CLASSES = 100
CLASS_COUNTS = tuple(int(500 * 100 ** (-j / (CLASSES - 1))) for j in range(CLASSES))


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--model', default='resnet32')
    parser.add_argument('--batch_size', type=int, default=128)
    parser.add_argument('--repetitions', type=int, default=10)
    parser.add_argument('--output', type=Path, help='a JSON file for the figures')
    options = parser.parse_args()
    rows = measure(options.model, options.batch_size, options.repetitions)
    table = rich.table.Table('step', 'against', 'time', '(quartiles)', 'FLOPs', 'temp memory', 'ms')
    for row in rows:
        table.add_row(
            row['step'],
            row['against'],
            f'{row["time"]:.3g}',
            f'{row["time_quartiles"][0]:.3g} to {row["time_quartiles"][1]:.3g}',
            f'{row["flops"]:.3g}',
            f'{row["memory"]:.3g}',
            f'{row["milliseconds"]:.3g}',
        )
    rich.console.Console(highlight=False, soft_wrap=True).print(table)
    if options.output:
        facts = {
            'model': options.model,
            'batch_size': options.batch_size,
            'meta_batch_size': options.batch_size,
            'classes': CLASSES,
            'repetitions': options.repetitions,
            'device': jax.devices()[0].device_kind,
            'jax': jax.__version__,
            'rows': rows,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(facts, indent=1) + '\n')


def measure(model: str, batch_size: int, repetitions: int) -> list[dict[str, Any]]:
    """Times and counts every kind of step, each as a ratio to its plain step."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {}
    for where in ('end to end', 'frozen backbone', 'cached features'):
        plain = f'plain, {where}'
        kinds[plain] = (plain, {'where': where})
        for mode in ('reverse', 'forward_over_reverse', 'finite_difference'):
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
