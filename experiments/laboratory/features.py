"""Features of real images, the long tails that are cut from them, and where they come from."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from balms_jax.data import long_tail, sources
from balms_jax.training import checks, job
from balms_jax.training.inputs import feature_extractor
from balms_jax.training.progress import Progress
from balms_jax.training.stage_states import load_trained
from configs import cifar_lt
from experiments.laboratory.ledger import CONSOLE

LARGEST_TAIL = 10.0  # The imbalance factor whose tail holds those of all larger ones.
HEADS = {'digits': 120, 'cifar10': 5000, 'cifar100': 500}


class Pool(NamedTuple):
    """Features of a data set, of those training examples that any tail here needs."""

    dataset: str
    backbone: str  # what made the features, in words
    labels: np.ndarray  # of all training examples, [examples]
    places: np.ndarray  # which of them have features, ascending, [kept]
    features: np.ndarray  # [kept, features]
    test_features: np.ndarray  # [test examples, features]
    test_labels: np.ndarray


class Tail(NamedTuple):
    """A long-tailed training set, sorted by class."""

    features: np.ndarray  # [examples, features], float32
    counts: np.ndarray  # n, [classes]

    @property
    def labels(self) -> np.ndarray:
        """The class of every example, ``[examples]``, int32."""
        return np.repeat(np.arange(self.counts.size, dtype=np.int32), self.counts)


def cut(pool: Pool, imbalance_factor: float, classes: int = 0) -> Tail:
    """The first classes of the pool, all by default, with an exponential profile."""
    classes = classes or int(pool.labels.max()) + 1
    counts = long_tail.exponential_profile(HEADS[pool.dataset], classes, imbalance_factor)
    places = _places(pool.labels, counts)
    return Tail(pool.features[np.searchsorted(pool.places, places)], counts)


def digits_pool() -> Pool:
    """The 64 pixels of scikit-learn's digits: no backbone and no download."""
    source = sources.load('digits')

    def pixels(images: np.ndarray) -> np.ndarray:
        return (images.reshape(len(images), -1) / 255).astype(np.float32)

    return Pool(
        'digits',
        'the pixels themselves',
        source.train_labels,
        np.arange(len(source.train_labels)),
        pixels(source.train_images[:]),
        pixels(source.test_images[:]),
        source.test_labels,
    )


def cifar_pool(dataset: str, run: Path, data_dir: str, folder: Path) -> Pool:
    """Features of a CIFAR by the first stage of a run, kept in the folder.

    Args:
        dataset: ``'cifar10'`` or ``'cifar100'``; the run may have been trained on the other.
        run: the run's directory; the last checkpoint of its first stage is taken.
        data_dir: of the prepared data.
        folder: where the features are cached.

    Returns:
        The pool; of CIFAR-100 without the test set, which the run's classes do not fit.
    """
    path = folder / f'features_{dataset}.npz'
    if not path.exists():
        CONSOLE.print(f'features of {dataset}')
        folder.mkdir(parents=True, exist_ok=True)
        pool = _extract(dataset, run, data_dir)
        np.savez(path, **pool._asdict())
    with np.load(path) as file:
        arrays = {name: file[name] for name in Pool._fields}
    return Pool(str(arrays.pop('dataset')), str(arrays.pop('backbone')), **arrays)


def train_backbone(workdir: Path, data_dir: str, steps: int) -> Path:
    """A softmax ResNet-8 on CIFAR-10-LT of imbalance factor 100, trained for a few steps."""
    config = cifar_lt.get_config(
        'dataset=cifar10,imbalance_factor=100,method=softmax,recipe=cpu'
    ).to_dict()
    config['data']['data_dir'] = data_dir
    config['model']['name'] = 'resnet8'
    config['stage_1']['steps'] = steps
    job.train(checks.from_config(config), workdir, config=config, progress=Progress())
    return workdir


def _places(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The examples of a tail of the first classes; a smaller one lies inside a larger one."""
    known = np.flatnonzero(labels < counts.size)
    return known[long_tail.long_tailed_subset(labels[known], counts, seed=0)]


def _extract(dataset: str, run: Path, data_dir: str) -> Pool:
    trained, _, network, current = load_trained(run, data_dir, 'stage_1')
    source = sources.load(dataset, data_dir)
    features = feature_extractor(network, current, trained, source)
    classes = source.num_classes
    factor = LARGEST_TAIL if dataset == trained.data.name else 100.0
    counts = long_tail.exponential_profile(HEADS[dataset], classes, factor)
    places = np.sort(_places(source.train_labels, counts))
    tested = source.test_images[: None if dataset == trained.data.name else 0]
    words = (
        f'{trained.model.name} trained by softmax on {trained.data.name} of imbalance factor '
        f'{trained.data.imbalance_factor:g}, step {int(current.step)} of {trained.stage_1.steps}'
    )
    return Pool(
        dataset,
        words,
        source.train_labels,
        places,
        features(source.train_images[places]),
        features(tested) if len(tested) else np.zeros((0, 64), np.float32),
        source.test_labels[: len(tested)],
    )
