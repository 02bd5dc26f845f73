"""How long do the detector's training step and inference take beside torchvision's Mask R-CNN?

Command   python -m experiments.detector_cost --torch_python PYTHON [--depth 50] [--side 256]
          where PYTHON has torch and torchvision; on the device that JAX has by default, and with
          JAX_PLATFORMS=cpu on the CPU
Cost      ten minutes on two CPU cores
Ends in   a table
Measures  one training step (all five losses, SGD) and one inference up to boxes, scores and masks
          of regions, of the same network, image size, batch, proposals, regions and objects, random
          weights; by turns in one run, medians and quartiles of milliseconds, and of the ratio in
          each round; the floating-point operations of each, ours as the compiler counts them,
          torchvision's of convolutions and matrix products alone
Expected  XLA's convolutions on the CPU are slower than oneDNN's; on a GPU one compiled program
          spares the waiting between torchvision's many small ones
Found     on two CPU cores, at the defaults: training 6.3 s beside 2.9 s, 1.86 (1.71 to 2.06), with
          354 GFLOP beside 194, for ours computes masks in all of its 32 slots for foreground, of
          which random weights fill few; inference 1.8 s beside 2.0 s, 0.87 (0.86 to 0.92). On one
          H100, --side 800 --regions 512 --proposals 1000: training 29.4 ms beside 70.9 ms, 0.42
          (0.38 to 0.45); inference 9.1 ms beside 123.4 ms, 0.07 (0.07 to 0.09)
"""

import argparse
import json
import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.box
import rich.console
import rich.table

from balms_jax.detection import anchors, inference, networks, proposals, steps, targets

TORCH = Path(__file__).parent / 'costs' / 'torch_detector.py'
OBJECTS, DETECTIONS = 4, 50


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--torch_python', required=True, help='with torch and torchvision')
    parser.add_argument('--depth', type=int, default=50, choices=(18, 50, 101))
    parser.add_argument('--side', type=int, default=256, help='of the images, in pixels')
    parser.add_argument('--batch_size', type=int, default=2)
    parser.add_argument('--regions', type=int, default=128, help='of an image, in training')
    parser.add_argument('--proposals', type=int, default=200, help='of an image')
    parser.add_argument('--categories', type=int, default=90)
    parser.add_argument('--rounds', type=int, default=5)
    options = parser.parse_args()
    tasks, operations = ours(options)
    theirs = subprocess.Popen(
        [options.torch_python, str(TORCH)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert theirs.stdin is not None
    assert theirs.stdout is not None
    setting = {
        name: getattr(options, name)
        for name in ('depth', 'side', 'batch_size', 'regions', 'proposals', 'categories')
    } | {
        'device': 'cpu' if jax.default_backend() == 'cpu' else 'cuda',
        'objects': boxes(options.side).tolist(),
        'detections': DETECTIONS,
    }
    print(json.dumps(setting), file=theirs.stdin, flush=True)
    ready = theirs.stdout.readline().split(maxsplit=3)
    if ready[:1] != ['ready']:
        parser.exit(1, f'{options.torch_python}: torchvision did not take its first steps\n')
    their_operations = json.loads(ready[3])
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(options.rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            jax.block_until_ready(task())
            mine = time.perf_counter() - start
            print(name, file=theirs.stdin, flush=True)
            seconds[name].append((mine, float(theirs.stdout.readline())))
    theirs.stdin.close()
    theirs.wait()
    both = {name: (operations[name], their_operations[name]) for name in tasks}
    device = jax.devices()[0].device_kind
    title = f'{device}, jax {jax.__version__}, torch {ready[1]}, torchvision {ready[2]}'
    rich.console.Console(highlight=False, width=120).print(table(seconds, both, title))


def boxes(side: int) -> np.ndarray:
    """The objects of every image, ``[objects, 4]``, in pixels."""
    starts = np.arange(OBJECTS)[:, None] * np.array([[0.15, 0.1]]) * side
    return np.concatenate([starts, starts + 0.4 * side], 1).round().astype(np.float32)


def ours(
    options: argparse.Namespace,
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """A training step and an inference, compiled, and the operations that each takes."""
    side, size = options.side, options.batch_size
    architecture = networks.Architecture(
        options.categories, options.depth, background=True, frozen_norm=False, frozen_groups=0
    )
    layout = anchors.Layout((side, side))
    selection = proposals.Selection(options.proposals, options.proposals)
    draws = steps.Draws(regions=options.regions, selection=selection)

    def category_loss(logits: jax.Array, categories: jax.Array) -> jax.Array:
        labels = jnp.where(categories < 0, options.categories, categories)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)

    optimizer = optax.sgd(1e-4, momentum=0.9)
    losses_of = steps.make_losses(architecture, layout, category_loss, draws)
    step = jax.jit(steps.make_train_step(losses_of, optimizer), donate_argnums=0)
    limits = inference.Limits(DETECTIONS, 0.0)
    infer = jax.jit(
        inference.make_inference(architecture, layout, limits=limits, selection=selection)
    )
    corners = np.broadcast_to(boxes(side), (size, OBJECTS, 4))
    objects = targets.Objects(
        boxes=jnp.asarray(corners),
        categories=jnp.broadcast_to(jnp.arange(OBJECTS) % options.categories, (size, OBJECTS)),
        masks=jnp.ones((size, OBJECTS, 112, 112)),
        frames=jnp.asarray(corners),
        where=jnp.ones((size, OBJECTS), bool),
        crowd=jnp.zeros((size, OBJECTS), bool),
    )
    images = jax.random.normal(jax.random.key(0), (size, side, side, 3))
    batch = steps.Batch(images, jnp.full((size, 2), float(side)), objects)
    held = [steps.init_state(jax.random.key(1), architecture, optimizer, (side, side))]
    params, batch_stats = jax.tree.map(jnp.copy, (held[0].params, held[0].batch_stats))

    train_step = step.lower(held[0], batch)
    inference_step = infer.lower(params, batch_stats, images, batch.sizes)
    operations = {'train': _operations(train_step), 'infer': _operations(inference_step)}
    compiled_step, compiled_inference = train_step.compile(), inference_step.compile()

    def train() -> Any:
        held[0], losses = compiled_step(held[0], batch)
        return losses

    tasks = {
        'train': train,
        'infer': lambda: compiled_inference(params, batch_stats, images, batch.sizes),
    }
    for task in tasks.values():
        jax.block_until_ready(task())
    return tasks, operations


def _operations(lowered: jax.stages.Lowered) -> float:
    """As counted before the compiler chooses its algorithms; not on every device."""
    return float((lowered.cost_analysis() or {}).get('flops', math.nan))


def table(
    seconds: dict[str, list[tuple[float, float]]],
    operations: dict[str, tuple[float, float]],
    title: str,
) -> rich.table.Table:
    """Medians, with the quartiles of the rounds in brackets."""
    headings = ('task', 'ours, ms', 'torchvision, ms', 'ours / torchvision', 'GFLOP')
    shown = rich.table.Table(*headings, title=title, box=rich.box.SIMPLE)
    for name, rounds in seconds.items():
        mine, theirs = 1e3 * np.array(rounds).T
        cells = []
        for values, digits in ((mine, 1), (theirs, 1), (mine / theirs, 2)):
            low, middle, high = np.percentile(values, (25, 50, 75))
            cells.append(f'{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]')
        counted = ' / '.join(f'{each / 1e9:.0f}'.replace('nan', '–') for each in operations[name])
        shown.add_row(name, *cells, counted)
    return shown


if __name__ == '__main__':
    main()
