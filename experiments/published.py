"""The paper's figures, to be set beside ours: top-1 %, the mean of 3 seeds and its spread.

Tables 2 and 5 of BALMS (arXiv 2007.10740), ResNet-32. No test asserts any of them.
"""

from typing import NamedTuple

DATASETS = ('cifar10', 'cifar100')
IMBALANCE_FACTORS = (200, 100, 10)


class Published(NamedTuple):
    """A figure of a table."""

    top1: float
    spread: float | None = None  # Over seeds; table 2 gives none.


# By method: CIFAR-10 at the three imbalance factors, then CIFAR-100.
_TABLE_5 = {
    'softmax': ('71.2 77.4 90.0 41.0 45.3 61.9', '0.3 0.8 0.2 0.3 0.3 0.1'),
    'balanced_softmax_quarter': ('71.6 78.4 90.5 41.9 46.4 62.6', '0.7 0.9 0.1 0.2 0.7 0.3'),
    'balanced_softmax': ('79.0 83.1 90.9 45.9 50.3 63.1', '0.8 0.4 0.4 0.3 0.3 0.2'),
    'balanced_softmax_quarter_decoupled': (
        '72.2 79.1 90.2 42.3 46.1 62.5',
        '0.1 0.2 0.0 0.0 0.1 0.0',
    ),
    'balanced_softmax_quarter_decoupled_meta_sampler': (
        '76.2 81.4 91.0 44.1 49.2 62.8',
        '0.4 0.1 0.1 0.2 0.1 0.2',
    ),
    'balanced_softmax_decoupled': ('78.6 83.7 91.2 45.1 50.4 63.4', '0.1 0.1 0.0 0.0 0.0 0.0'),
    'balanced_softmax_decoupled_cbs': ('80.6 84.8 91.2 42.0 47.4 62.3', '0.1 0.0 0.1 0.0 0.2 0.0'),
    'softmax_decoupled_meta_sampler': ('73.6 79.9 90.9 44.2 49.2 63.0', '0.2 0.4 0.1 0.1 0.1 0.0'),
    'meta_reweighter': ('79.2 84.1 91.2 45.3 50.8 63.5', '0.0 0.0 0.1 0.3 0.0 0.1'),
    'balms': ('81.5 84.9 91.3 45.5 50.8 63.0', '0.0 0.1 0.1 0.1 0.0 0.1'),
}
_TABLE_2 = {
    'inverse_frequency': '72.5 78.6 90.1 36.7 42.3 61.4',
    'softmax_cbs': '68.3 77.8 90.2 37.8 42.6 61.2',
    'focal': '71.8 77.1 90.3 40.2 43.8 60.0',
    'class_balanced_focal': '72.6 78.2 89.9 39.9 44.6 59.8',
    'ldam': '73.6 78.9 90.3 41.3 46.1 62.1',
    'equalization': '74.6 78.5 90.2 43.3 47.4 60.5',
    'softmax_decoupled_cbs': '76.6 82.0 91.0 44.5 50.0 63.3',
    'learnable_scales': '78.1 83.7 91.1 45.3 50.5 63.4',
}
METHODS = (*_TABLE_5, *_TABLE_2)


def of(method: str, dataset: str, imbalance_factor: float) -> Published | None:
    """What the paper gives for a row; None where it gives nothing.

    Args:
        method: of ``training.methods``.
        dataset: ``'cifar10'`` or ``'cifar100'``.
        imbalance_factor: n_max / n_min.
    """
    if dataset not in DATASETS or imbalance_factor not in IMBALANCE_FACTORS:
        return None
    column = 3 * DATASETS.index(dataset) + IMBALANCE_FACTORS.index(int(imbalance_factor))
    if method in _TABLE_5:
        means, spreads = (text.split() for text in _TABLE_5[method])
        return Published(float(means[column]), float(spreads[column]))
    if method in _TABLE_2:
        return Published(float(_TABLE_2[method].split()[column]))
    return None
