"""What do the features look like? Figure 4: t-SNE of the test set, by first stage.

Command   python -m experiments.feature_space --data_dir data [--scale cpu]
Scales    smoke, cpu and paper, as of experiments/ablation.py, whose runs it shares
Cost      cpu: that of three first stages that are not there yet, and two minutes; smoke: a minute
Ends in   experiments/results/feature_space/page.html
Measures  t-SNE (scikit-learn) of 100 test images a class; the share of a test image's five nearest
          neighbours in the full feature space that are of its class, and how far apart the class
          means lie beside the scatter within (Fisher's ratio), over all classes and the tail
Expected  features of Balanced Softmax keep tail classes together better than those of softmax;
          class-balanced sampling scatters the tail
Found     52.4 ± 0.7 % of a rarer class's neighbours are of it with CBS, 46.0 ± 1.3 % with Balanced
          Softmax, 42.3 ± 0.9 % with softmax (cpu, seeds 0 to 2)
"""

from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from balms_jax.report import Run
from balms_jax.report.comparison import Replicates, format_statistic
from balms_jax.report.figure_style import new_figure, plain, styled
from balms_jax.report.html import embedded
from balms_jax.training.inputs import feature_extractor
from balms_jax.training.stage_states import load_trained
from experiments import numbers, whole_runs
from experiments.whole_runs import Question

METHODS = ('softmax', 'softmax_cbs', 'balanced_softmax')
FEW = ('softmax', 'balanced_softmax')
PER_CLASS = 100  # test images of a class
NEIGHBOURS = 5


class Space(NamedTuple):
    """Features of some test images."""

    features: np.ndarray  # [examples, features]
    labels: np.ndarray  # [examples]


class Told(NamedTuple):
    """What of them is shown."""

    purity: np.ndarray  # [classes]
    fisher: np.ndarray  # [classes]
    places: np.ndarray  # by t-SNE, [examples, 2]
    labels: np.ndarray  # [examples]


QUESTION = Question(
    __doc__,
    'feature_space',
    'What do the features look like?',
    METHODS,
    FEW,
)


def main() -> None:
    """Runs the experiment."""
    options = whole_runs.options_of(QUESTION)
    runs = whole_runs.train(options, QUESTION)
    groups, _ = whole_runs.figures_of(runs)
    rows = [row(group) for group in groups]
    caption = (
        f't-SNE of the features of {PER_CLASS} test images a class (fewer where there are not as '
        'many), the first seed; colours are classes, listed from most to fewest training images.'
    )
    shown = {group.label: told_of(group.first) for group in groups}
    names = [plain(name) for name in runs[0].class_names]
    drawn = [embedded(maps(shown, names), caption, 't-SNE of features')]
    whole_runs.write_page(options, QUESTION, answer(groups), rows, drawn, runs)


def told_of(run: Run) -> Told:
    """What the features of a run are like, measured once."""

    def measure() -> dict[str, Any]:
        space = space_of(run)
        laid_out = TSNE(init='pca', perplexity=30, random_state=0).fit_transform(space.features)
        told = Told(neighbour_purity(space), fisher_ratio(space), laid_out, space.labels)
        return {name: np.round(values, 4).tolist() for name, values in told._asdict().items()}

    found = whole_runs.measured(run, 'feature_space', measure)
    return Told(**{name: np.asarray(values) for name, values in found.items()})


def space_of(run: Run) -> Space:
    """The features that a run's last network gives the first test images of each class."""
    trained = load_trained(run.path)
    source = trained.material.source
    places = np.concatenate(
        [np.flatnonzero(source.test_labels == j)[:PER_CLASS] for j in range(source.num_classes)]
    )
    extract = feature_extractor(trained.network, trained.state, trained.recipe, source)
    return Space(extract(source.test_images[places]), source.test_labels[places])


def neighbour_purity(space: Space) -> np.ndarray:
    """The share of each class's nearest neighbours, by cosine, that are of it, ``[classes]``."""
    near = NearestNeighbors(n_neighbors=NEIGHBOURS + 1, metric='cosine').fit(space.features)
    places = near.kneighbors(space.features, return_distance=False)[:, 1:]
    same = (space.labels[places] == space.labels[:, None]).mean(1)
    return np.array([same[space.labels == j].mean() for j in range(space.labels.max() + 1)])


def fisher_ratio(space: Space) -> np.ndarray:
    """Of each class, ``[classes]``: ‖μ_j − μ‖² over the mean ‖f − μ_j‖² of its features."""
    centre = space.features.mean(0)
    ratios = []
    for j in range(space.labels.max() + 1):
        own = space.features[space.labels == j]
        mean = own.mean(0)
        scatter = np.sum((own - mean) ** 2, 1).mean()
        ratios.append(np.sum((mean - centre) ** 2) / max(scatter, 1e-12))
    return np.array(ratios)


def tail_of(run: Run) -> np.ndarray:
    """The rarer half of the classes, ``[classes]``, bool."""
    ranks = np.argsort(np.argsort(-run.class_counts, kind='stable'))
    return np.asarray(ranks >= run.class_counts.size / 2)


def row(group: Replicates) -> dict[str, str]:
    """A first stage in numbers."""
    tail = tail_of(group.first)
    purities = np.stack([told_of(run).purity for run in group.runs])
    ratios = np.stack([told_of(run).fisher for run in group.runs])

    def told(values: np.ndarray, scale: float = 1, digits: int = 2) -> str:
        mean, spread = numbers.over_seeds(values.mean(1))
        return numbers.number(mean, spread, scale=scale, digits=digits)

    return {
        'features of': group.label,
        'seeds': numbers.seeds_of(group),
        'neighbours of the same class %': told(purities, scale=100, digits=1),
        'of the rarer half %': told(purities[:, tail], scale=100, digits=1),
        'Fisher ratio, all classes': told(ratios),
        'Fisher ratio, rarer half': told(ratios[:, tail]),
        'top-1 %': format_statistic(group, 'top1'),
    }


def answer(groups: list[Replicates]) -> str:
    """In words: whose features keep the rarer classes together, by either measure."""
    tail = tail_of(groups[0].first)

    def ordered(found: dict[str, float], form: str) -> str:
        labels = sorted(found, key=found.__getitem__, reverse=True)
        return ', '.join(f'{found[label]:{form}} with {label}' for label in labels)

    purity, fisher = (
        {
            group.label: float(np.mean([getattr(told_of(run), name)[tail] for run in group.runs]))
            for group in groups
        }
        for name in ('purity', 'fisher')
    )
    return (
        f'Of the {NEIGHBOURS} nearest neighbours of a test image of the rarer half of the classes, '
        f'of its own class are: {ordered(purity, ".1%")}. Fisher’s ratio of these classes: '
        f'{ordered(fisher, ".2f")}.'
    )


@styled
def maps(shown: dict[str, Told], names: list[str]) -> Figure:
    """A map for each first stage, a colour for each class."""
    drawing = new_figure((10.0, 10.0 / len(shown) + 0.5))
    colors = matplotlib.colormaps['tab10' if len(names) <= 10 else 'turbo']
    for place, (label, told) in enumerate(shown.items()):
        axes = drawing.add_subplot(1, len(shown), place + 1)
        for j, name in enumerate(names):
            shade = colors(j if len(names) <= 10 else j / (len(names) - 1))
            own = told.places[told.labels == j]
            axes.plot(own[:, 0], own[:, 1], '.', ms=3, color=shade, label=name)
        axes.set(title=label, xticks=[], yticks=[])
        axes.grid(False)
    if len(names) <= 10:
        handles, labels = drawing.axes[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc='outside lower center', ncols=10, markerscale=3)
    return drawing


if __name__ == '__main__':
    main()
