"""Where do the decision boundaries go? Three overlapping clouds of 10,000, 100 and 1: Figure 5.

Command   python -m experiments.toy_boundaries [--scale cpu]
Scales    smoke 300 steps; cpu and paper 125,000, as in the paper
Cost      cpu: three minutes for five seeds on two busy CPU cores
Ends in   experiments/results/toy_boundaries/: page.html, boundaries.gif, numbers.json
Measures  a small network's accuracy on balanced fresh draws from the same clouds, and how much of
          the balanced test it labels other than the ideal rule (the nearest centre), on the way
Expected  softmax gives the head the tail's ground, and the more so the longer it trains;
          class-balanced sampling overfits the one point; Balanced Softmax comes nearest to the
          ideal; with class-balanced sampling on top the tail takes too much
Found     seeds 0 to 4: Balanced Softmax is best all the way, 83.4 ± 2.1 % after 2,500 steps where
          the ideal rule has 86 %, 65.1 ± 1.7 % after 125,000, for every variant but softmax wraps
          the single points in the end; with class-balanced sampling on top 69 to 59 %; softmax
          stays between 45 and 49 %, no worse the longer it trains
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from balms_jax import losses, priors, sampling
from balms_jax.report.figure_style import FAINT, WIDE, new_figure, styled
from balms_jax.report.html import document, embedded, table
from balms_jax.training.records import write_json
from experiments import kept
from experiments.comparison import console
from experiments.numbers import number, over_seeds

COUNTS = np.array([10_000, 100, 1])
CENTRES = 1.6 * np.array([[np.cos(a), np.sin(a)] for a in np.pi * np.array([1.17, -0.17, 0.5])])
# τ of the loss, and p of draws q ∝ n^p.
VARIANTS = {
    'softmax': (0.0, 1.0),
    'softmax + CBS': (0.0, 0.0),
    'Balanced Softmax': (1.0, 1.0),
    'Balanced Softmax + CBS': (1.0, 0.0),
}
COLORS = ('#0072b2', '#e69f00', '#d55e00')  # of the classes
LINES = ('#7a7a7a', '#332288', '#009e73', '#882255')  # of the variants
LIMIT, GRID = 4.5, 81
SHOWN = {'smoke': (100, 200, 300), 'cpu': (2_500, 5_000, 25_000, 125_000)}
FRAMES = 50
BATCH, RATE, MOMENTUM, WIDTH = 128, 0.05, 0.9, 64


class Outcome(NamedTuple):
    """What became of every variant, at every recorded step."""

    steps: np.ndarray  # [records]
    surfaces: np.ndarray  # predicted class, [variants, records, grid, grid]
    accuracies: np.ndarray  # by class on balanced draws, [variants, records, classes]
    agreement: np.ndarray  # with the ideal rule, on balanced draws, [variants, records]


def main() -> None:
    """Runs the experiment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--scale', choices=('smoke', 'cpu', 'paper'), default='cpu')
    parser.add_argument('--seeds', nargs='+', type=int)
    parser.add_argument('--output', type=Path, help=kept.HELP)
    options = parser.parse_args()
    shown = SHOWN['smoke' if options.scale == 'smoke' else 'cpu']
    options.seeds = options.seeds or ([0] if options.scale == 'smoke' else [0, 1, 2, 3, 4])
    found = [measure(clouds(seed), shown[-1], seed) for seed in options.seeds]
    options.output = kept.page_folder('toy_boundaries', options.scale, options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / 'numbers.json', kept.origin() | as_data(found, options.seeds))
    points = clouds(options.seeds[0])
    animate(found[0], points, options.output / 'boundaries.gif')
    page = options.output / 'page.html'
    page.write_text(written(found, points, shown, options.seeds))
    console.print(f'page: {page}', markup=False)


def as_data(found: Sequence[Outcome], seeds: Sequence[int]) -> dict[str, Any]:
    """What was measured, as data: by variant ``[seeds, records, …]``."""
    accuracies = np.stack([one.accuracies for one in found]).round(4)
    agreement = np.stack([one.agreement for one in found]).round(4)
    return {
        'seeds': list(seeds),
        'steps': found[0].steps.tolist(),
        'accuracies': {name: accuracies[:, i].tolist() for i, name in enumerate(VARIANTS)},
        'agreement': {name: agreement[:, i].tolist() for i, name in enumerate(VARIANTS)},
    }


def clouds(seed: int) -> np.ndarray:
    """The training points, sorted by class, ``[points, 2]``."""
    rng = np.random.default_rng(seed)
    drawn = [c + rng.normal(size=(n, 2)) for c, n in zip(CENTRES, COUNTS, strict=True)]
    drawn[-1] = CENTRES[-1:]  # The one point, at its centre: where it lies is not the question.
    return np.concatenate(drawn).astype(np.float32)


def balanced_test(seed: int, size: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """Fresh points, as many of each class; and their classes."""
    rng = np.random.default_rng(seed + 1)
    drawn = np.concatenate([c + rng.normal(size=(size, 2)) for c in CENTRES])
    return drawn.astype(np.float32), np.repeat(np.arange(len(CENTRES)), size)


def ideal(points: np.ndarray) -> np.ndarray:
    """The best rule for a balanced test: the nearest centre."""
    return np.linalg.norm(points[:, None] - CENTRES, axis=-1).argmin(-1)


def logits(params: Sequence[Any], points: jax.Array) -> jax.Array:
    """Of a network with two hidden layers."""
    *hidden, last = params
    for kernel, bias in hidden:
        points = jax.nn.relu(points @ kernel + bias)
    return points @ last[0] + last[1]


def initial(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """He's normal kernels, biases of 0."""
    sizes = (2, WIDTH, WIDTH, len(COUNTS))
    keys = jax.random.split(key, 3)
    return [
        (jax.random.normal(k, (a, b)) * np.sqrt(2 / a), jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def measure(points: np.ndarray, steps: int, seed: int) -> Outcome:
    """Trains all variants side by side, and looks at them on the way."""
    optimizer = optax.sgd(RATE, MOMENTUM)
    log_prior, inputs = priors.log_prior(COUNTS), jnp.asarray(points)
    every = steps // FRAMES
    axis = np.linspace(-LIMIT, LIMIT, GRID, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    test_points, test_labels = balanced_test(seed)
    looked_at = jnp.asarray(np.concatenate([grid, test_points]))

    def train(tau: jax.Array, probabilities: jax.Array) -> jax.Array:
        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            class_key, example_key = jax.random.split(key)
            classes = sampling.draw_classes(class_key, probabilities, BATCH)
            examples = sampling.examples_by_class(example_key, classes, COUNTS)

            def loss(params: Any) -> jax.Array:
                values = losses.balanced_softmax_cross_entropy_with_integer_labels(
                    logits(params, inputs[examples]), classes, log_prior, tau=tau
                )
                return values.mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        def chunk(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            carry, _ = jax.lax.scan(step, carry, jax.random.split(key, every))
            return carry, logits(carry[0], looked_at).argmax(-1)

        params = initial(jax.random.key(seed))
        keys = jax.random.split(jax.random.key(seed + 1), FRAMES)
        return jax.lax.scan(chunk, (params, optimizer.init(params)), keys)[1]

    taus, powers = (jnp.asarray(values) for values in zip(*VARIANTS.values(), strict=True))
    probabilities = jnp.stack([sampling.class_probabilities(COUNTS, float(p)) for p in powers])
    predicted = np.asarray(jax.jit(jax.vmap(train))(taus, probabilities))
    surfaces, tested = np.split(predicted, [len(grid)], axis=-1)
    hits = (tested == test_labels).reshape(*tested.shape[:2], len(COUNTS), -1)
    return Outcome(
        every * np.arange(1, FRAMES + 1),
        surfaces.reshape(*surfaces.shape[:2], GRID, GRID),
        hits.mean(-1),
        (tested == ideal(test_points)).mean(-1),
    )


def balanced_accuracy(found: Sequence[Outcome]) -> np.ndarray:
    """In percent, ``[seeds, variants, records]``."""
    return 100 * np.stack([one.accuracies for one in found]).mean(-1)


def answer(found: Sequence[Outcome]) -> str:
    """In words: the accuracies at the end, and who is nearest to the ideal rule."""
    test_points, labels = balanced_test(0)
    best = 100 * float((ideal(test_points) == labels).mean())
    accuracy, steps = balanced_accuracy(found), found[0].steps
    told = ', '.join(
        f'{name} {number(*over_seeds(accuracy[:, i, -1]), digits=1)} %'
        for i, name in enumerate(VARIANTS)
    )
    agreement = 100 * np.stack([one.agreement for one in found])[..., -1]
    at = int(agreement.mean(0).argmax())
    peak = int(accuracy[:, at].mean(0).argmax())
    return (
        f'On a balanced test, after {steps[-1]:,} steps: {told}; the ideal rule {best:.0f} %. '
        f'Nearest to the ideal rule is {list(VARIANTS)[at]}, which agrees with it on '
        f'{number(*over_seeds(agreement[:, at]), digits=1)} %; it was best after '
        f'{steps[peak]:,} steps, with {number(*over_seeds(accuracy[:, at, peak]), digits=1)} %.'
    )


def written(
    found: Sequence[Outcome], points: np.ndarray, shown: Sequence[int], seeds: Sequence[int]
) -> str:
    """The page."""
    accuracies = 100 * np.stack([one.accuracies for one in found])[:, :, -1]
    agreement = 100 * np.stack([one.agreement for one in found])[..., -1]
    rows = [
        {
            'method': name,
            **{
                f'{n:,} drawn from, %': number(*over_seeds(accuracies[:, i, j]), digits=0)
                for j, n in enumerate(COUNTS)
            },
            'balanced accuracy, %': number(*over_seeds(accuracies[:, i].mean(-1)), digits=1),
            'agrees with the ideal rule, %': number(*over_seeds(agreement[:, i]), digits=1),
        }
        for i, name in enumerate(VARIANTS)
    ]
    caption = (
        'Predicted class over the plane after more and more steps; dots are training points (100 '
        'of the largest class), crosses the centres. Dashed: the ideal boundaries. The first seed.'
    )
    body = f'<p class="finding">{answer(found)}</p>\n{table(rows)}<h2>Figures</h2>\n'
    body += embedded(surfaces(found[0], points, shown), caption, 'Decision surfaces over steps')
    over_time = (
        'Left: mean accuracy of the classes on fresh balanced draws. Right: the share of them that '
        'is labelled as by the ideal rule. Lines: the mean over seeds; shaded, from the lowest to '
        'the highest.'
    )
    body += embedded(over_steps(found), over_time, 'Accuracy over steps')
    footer = (
        f'{kept.written_by()}: seeds {", ".join(map(str, seeds))}, mean and standard deviation; '
        f'clouds of {", ".join(f"{n:,}" for n in COUNTS)} points, network 2-{WIDTH}-{WIDTH}-3, '
        f'batches of {BATCH}, SGD {RATE} with momentum {MOMENTUM}; <code>boundaries.gif</code> '
        'beside this page moves.'
    )
    return document('Decision boundaries of a toy', body, footer)


@styled
def surfaces(found: Outcome, points: np.ndarray, shown: Sequence[int]) -> Figure:
    """A row a variant, a column a step."""
    columns = [int(np.abs(found.steps - step).argmin()) for step in shown]
    drawing = new_figure((WIDE[0], 2.35 * len(VARIANTS)))
    grid = drawing.subplots(len(VARIANTS), len(columns), squeeze=False)
    for i, name in enumerate(VARIANTS):
        for j, column in enumerate(columns):
            surface(grid[i, j], found.surfaces[i, column], points)
            if not i:
                grid[i, j].set_title(f'{found.steps[column]:,} steps')
        grid[i, 0].set_ylabel(name)
    return drawing


def surface(axes: Axes, classes: np.ndarray, points: np.ndarray) -> None:
    """One plane: its predicted classes, the ideal boundaries, the training points."""
    axis = np.linspace(-LIMIT, LIMIT, GRID)
    axes.contourf(axis, axis, classes, levels=[-0.5, 0.5, 1.5, 2.5], colors=COLORS, alpha=0.25)
    plane = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    wanted = ideal(plane).reshape(GRID, GRID)
    for j in range(len(COUNTS)):
        axes.contour(
            axis, axis, wanted == j, levels=[0.5], colors=FAINT, linewidths=0.7, linestyles='--'
        )
    starts = np.cumsum(COUNTS) - COUNTS
    for start, count, color, size in zip(starts, COUNTS, COLORS, (3, 3, 30), strict=True):
        shown = points[start : start + min(count, 100)]
        axes.scatter(shown[:, 0], shown[:, 1], s=size, color=color, lw=0)
    axes.plot(*CENTRES.T, 'x', color='#2b2b2b', ms=4)
    axes.set_xlim(-LIMIT, LIMIT)
    axes.set_ylim(-LIMIT, LIMIT)
    axes.set_aspect('equal')
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])


@styled
def over_steps(found: Sequence[Outcome]) -> Figure:
    """Accuracy and agreement on the way."""
    drawing = new_figure(WIDE)
    left, right = drawing.subplots(1, 2)
    steps, agreement = found[0].steps, 100 * np.stack([one.agreement for one in found])
    for axes, values, heading in (
        (left, balanced_accuracy(found), 'balanced accuracy, %'),
        (right, agreement, 'agrees with the ideal rule, %'),
    ):
        for name, color, curves in zip(VARIANTS, LINES, values.swapaxes(0, 1), strict=False):
            axes.plot(steps, curves.mean(0), label=name, color=color)
            axes.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.15, lw=0)
        axes.set_ylabel(heading)
    for axes in (left, right):
        axes.set_xscale('log')
        axes.set_xlabel('step')
    left.legend()
    return drawing


@styled
def animate(found: Outcome, points: np.ndarray, path: Path) -> Figure:
    """The surfaces as they move, a frame a record."""
    drawing = new_figure((8.0, 2.4))
    panels = drawing.subplots(1, len(VARIANTS))
    writer = PillowWriter(fps=6)
    with writer.saving(drawing, path, dpi=70):
        for frame, step in enumerate(found.steps):
            for axes, name, classes in zip(panels, VARIANTS, found.surfaces[:, frame], strict=True):
                axes.clear()
                surface(axes, classes, points)
                axes.set_title(name)
            drawing.suptitle(f'{step:,} steps', fontsize=8.5)
            writer.grab_frame(facecolor='white')
    return drawing


if __name__ == '__main__':
    main()
