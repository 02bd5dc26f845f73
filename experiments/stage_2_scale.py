"""How long does the second stage take on features of the size of ImageNet-LT's?

Command   python -m experiments.stage_2_scale [--epochs 10] [--modes forward_over_reverse lean]
Cost      two and a half minutes on two CPU cores with --modes forward_over_reverse
Data      features of the size of ResNet-10's, 512 numbers for each
          of about 115,846 images of 1000 classes on a Pareto profile:
          noise about a mean for each class, since only the size matters to the clock
Measures  seconds for the steps of the stage as the job takes them (the linear classifier, SGD, and
          for BALMS ψ through the update), after the first call has compiled them
Expected  under two minutes for ten epochs on two CPU cores
Found     ten epochs of 121,449 features in batches of 512: Balanced Softmax 24.8 s, BALMS 99.0 s
          (one run each, two CPU cores with nothing else to do)
"""

import argparse
import dataclasses
import time

import jax
import numpy as np
import rich.console
import rich.table

from balms_jax import models
from balms_jax.data import long_tail, resident
from balms_jax.training import job, learners, measures, methods, recipe, state, step_parts, steps
from configs import imagenet_lt

FEATURES, CLASSES = 512, 1000


def features(counts: np.ndarray) -> np.ndarray:
    """Noise about a mean for each class, ``[1, examples, features]``, sorted by class."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((CLASSES, FEATURES), np.float32)
    labels = np.repeat(np.arange(CLASSES), counts)
    noise = rng.standard_normal((len(labels), FEATURES), np.float32)
    return np.maximum(means[labels] + noise, 0)[None]


def seconds_of(method: str, counts: np.ndarray, inputs: jax.Array, epochs: int, mode: str) -> float:
    """Takes the steps of so many epochs.

    Args:
        method: whose second stage it is.
        counts: n.
        inputs: the features.
        epochs: how many.
        mode: of the meta-gradient.

    Returns:
        Seconds, without those of compilation.
    """
    wanted = recipe.read(imagenet_lt.get_config(f'method={method}'))
    meta = dataclasses.replace(wanted.stage_2.meta, mode=mode)
    stage = dataclasses.replace(wanted.stage_2, meta=meta)
    network = models.build('resnet10', CLASSES)
    rebalancer = learners.make_rebalancer(stage.meta, tuple(counts.tolist()))
    whole = tuple(counts.tolist())
    task = step_parts.Task(
        measures.stage_logits(network, stage, cached=True), resident.read_features, whole, whole
    )
    classifier = network.init_classifier(jax.random.key(0), inputs[0, :1])
    first = state.create(
        jax.random.key(1),
        {'classifier': classifier},
        {},
        {},
        learners.make_optimizer(stage.optimizer, stage.steps),
        rebalancer.psi if rebalancer else None,
        learners.make_psi_optimizer(stage.meta),
    )
    run = steps.compile_steps(steps.make_step(task, stage, rebalancer))
    calls = max(1, epochs * (len(inputs[0]) // stage.batch_size) // job.SCANNED_STEPS)
    current, _ = run(first, inputs, inputs, steps=job.SCANNED_STEPS)
    jax.block_until_ready(current)
    start = time.monotonic()
    for _ in range(calls):
        current, metrics = run(current, inputs, inputs, steps=job.SCANNED_STEPS)
    jax.block_until_ready(metrics)
    return time.monotonic() - start


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--methods', nargs='+', choices=methods.METHODS)
    parser.add_argument('--modes', nargs='+', default=['forward_over_reverse', 'ghost_product'])
    flags = parser.parse_args()
    counts = long_tail.pareto_profile(1280, CLASSES, 256.0)
    inputs = jax.numpy.asarray(features(counts))
    table = rich.table.Table('method', 'mode', 'seconds', 'images / s')
    for method in flags.methods or ('balanced_softmax_decoupled', 'balms'):
        for mode in flags.modes if method == 'balms' else ['none']:
            taken = seconds_of(method, counts, inputs, flags.epochs, mode)
            rate = flags.epochs * inputs.shape[1] / taken
            table.add_row(method, mode, f'{taken:.1f}', f'{rate:.0f}')
    rich.console.Console().print(table)


if __name__ == '__main__':
    main()
