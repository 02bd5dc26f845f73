"""A file of a network's weights, and a network that starts from one."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

PyTree = Any
_PARTS = ('backbone', 'batch_stats', 'classifier')


class WeightsError(ValueError):
    """Weights that cannot be read, or are not those of the network; the message names them."""


class Weights(NamedTuple):
    """The weights of a network, as nested dictionaries of arrays."""

    network: str  # its name in NETWORKS
    backbone: PyTree
    batch_stats: PyTree
    classifier: PyTree  # {} if none is kept


def save(path: Path | str, weights: Weights) -> None:
    """Writes weights to a ``.npz`` file: one array a name, as ``backbone/Conv_0/kernel``.

    Args:
        path: where to.
        weights: what to write.

    Raises:
        OSError: if it cannot be written.
    """
    write(path, weights.network, {part: getattr(weights, part) for part in _PARTS})


def load(path: Path | str) -> Weights:
    """Reads what :func:`save` wrote. Nothing in the file is executed.

    Args:
        path: of the file.

    Returns:
        The weights.

    Raises:
        WeightsError: if there is no such file, or it is none of these.
    """
    try:
        return nested(*read(path))
    except WeightsError as error:
        raise WeightsError(f'model.weights: {error}') from error


def write(path: Path | str, network: str, tree: PyTree) -> None:
    """Writes a network's arrays to a ``.npz`` file, by the paths that :func:`flatten` gives.

    Args:
        path: where to.
        network: its name.
        tree: nested dictionaries of arrays of any shape.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f'{folder}/a.npz', 'resnet10', {'backbone': {'Conv_0': np.ones(2)}})
        ...     read(f'{folder}/a.npz')
        ('resnet10', {'backbone/Conv_0': array([1., 1.])})
    """
    arrays = {'network': np.asarray(network), **flatten(tree)}
    with open(path, 'wb') as file:  # Given a name, savez may add an ending to it.
        np.savez(file, **arrays)


def read(path: Path | str) -> tuple[str, dict[str, np.ndarray]]:
    """Reads what :func:`write` wrote. Nothing in the file is executed.

    Args:
        path: of the file.

    Returns:
        The network's name, and its arrays by their path.

    Raises:
        WeightsError: if there is no such file, or it is none of these.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        network = str(arrays.pop('network'))
    except (AttributeError, EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f'{path} is no file of weights ({error}); python -m balms_jax.models.convert makes one'
        ) from error
    return network, arrays


def nested(network: str, arrays: dict[str, np.ndarray]) -> Weights:
    """Weights of a network from arrays by their path, as :func:`flatten` gives it."""
    trees = unflatten(arrays)
    return Weights(network, *(trees.get(part, {}) for part in _PARTS))


def fingerprint(weights: Weights) -> str:
    """Sixteen hexadecimal digits that tell weights apart, whatever file they are in.

    Args:
        weights: arrays of any shape.

    Returns:
        16 characters of 0-9a-f: the head of the SHA-256 of all names, types, shapes and values.
    """
    digest = hashlib.sha256(weights.network.encode())
    for part in _PARTS:
        for name, array in sorted(flatten({part: getattr(weights, part)}).items()):
            digest.update(f'{name} {array.dtype.str} {array.shape}'.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def check(weights: Weights, params: PyTree, batch_stats: PyTree) -> str:
    """Whether a network can start from weights.

    Args:
        weights: to start from.
        params: the network's own, or their shapes: ``{'backbone': …, 'classifier': …}``.
        batch_stats: the same of its statistics.

    Returns:
        A sentence if the classifier does not fit and is left out, else nothing.

    Raises:
        WeightsError: naming what is missing, not known, or of another shape.
    """
    of_backbone = {'backbone': params['backbone'], 'batch_stats': batch_stats}
    wrong = differences(
        flatten({'backbone': weights.backbone, 'batch_stats': weights.batch_stats}),
        {key: np.shape(leaf) for key, leaf in flatten(of_backbone).items()},
    )
    if wrong:
        raise WeightsError(f'model.weights: {wrong}')
    own = {key: np.shape(leaf) for key, leaf in flatten(params['classifier']).items()}
    if not weights.classifier:
        return 'model.weights: hold no classifier: it starts afresh'
    if unlike := differences(flatten(weights.classifier), own):
        return f'model.weights: their classifier is left out, and starts afresh: {unlike}'
    return ''


def start(weights: Weights, params: PyTree, batch_stats: PyTree) -> tuple[PyTree, PyTree]:
    """Puts weights in the place of a network's own.

    Args:
        weights: to start from.
        params: fresh ones, ``{'backbone': …, 'classifier': …}``.
        batch_stats: fresh ones.

    Returns:
        Parameters, with the classifier of ``params`` if that of the weights does not fit, and
        statistics.

    Raises:
        WeightsError: as :func:`check`.
    """
    classifier = params['classifier']
    if not check(weights, params, batch_stats):
        classifier = weights.classifier
    loaded = {'backbone': weights.backbone, 'classifier': classifier}
    # In the structure and the types of the network's own.
    return jax.tree.map(
        lambda own, new: jnp.asarray(new, own.dtype),
        (params, batch_stats),
        (loaded, weights.batch_stats),
    )


def differences(found: dict[str, Any], wanted: dict[str, tuple[int, ...]]) -> str:
    """Names what arrays lack, have too much, or have in another shape.

    Args:
        found: arrays by name.
        wanted: shapes by name.

    Returns:
        At most five names of each kind; empty if all is as wanted.

    Example:
        >>> differences({'a': np.zeros(2), 'b': np.zeros(3)}, {'a': (2, 1), 'c': (1,)})
        'missing: c; not known: b; of another shape: a (2,), wanted (2, 1)'
    """
    unlike = [
        f'{name} {np.shape(found[name])}, wanted {shape}'
        for name, shape in wanted.items()
        if name in found and np.shape(found[name]) != shape
    ]
    kinds = {
        'missing': [name for name in wanted if name not in found],
        'not known': [name for name in found if name not in wanted],
        'of another shape': unlike,
    }
    return '; '.join(f'{kind}: {_some(names)}' for kind, names in kinds.items() if names)


def flatten(tree: PyTree) -> dict[str, Any]:
    """Leaves of nested dictionaries by their path.

    Example:
        >>> flatten({'Conv_0': {'kernel': 1}})
        {'Conv_0/kernel': 1}
    """
    return traverse_util.flatten_dict(tree, sep='/')


def unflatten(leaves: dict[str, Any]) -> PyTree:
    """Nested dictionaries of leaves by their path: undoes :func:`flatten`.

    Example:
        >>> unflatten({'Conv_0/kernel': 1})
        {'Conv_0': {'kernel': 1}}
    """
    return traverse_util.unflatten_dict(leaves, sep='/')


def _some(names: list[str], most: int = 5) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more
