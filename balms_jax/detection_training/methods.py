"""The detector's methods, by name: which loss in which stage, and what is learned."""

import dataclasses
from dataclasses import dataclass

from balms_jax.detection_training.recipe import Recipe, with_loss
from balms_jax.training.recipe import ConfigError


@dataclass(frozen=True)
class Method:
    """A row of the paper's Table 4, or a relative."""

    summary: str
    loss: str  # of the stage whose detector is tested
    decoupled: bool = False  # Whether a second stage fine-tunes the class layer alone.
    rebalancer: str = 'none'


METHODS = {
    'sigmoid': Method('one sigmoid a category, one stage', 'sigmoid'),
    'softmax': Method('a softmax with background, one stage', 'softmax'),
    'focal': Method('sigmoid focal loss, one stage', 'focal'),
    'class_balanced': Method(
        'foreground weighed by effective numbers, one stage', 'class_balanced'
    ),
    'equalization': Method('equalization loss (EQL), one stage', 'equalization'),
    'seesaw': Method('Seesaw loss, one stage', 'seesaw'),
    'balanced_sigmoid': Method('balanced sigmoid, one stage', 'balanced_sigmoid'),
    'sigmoid_decoupled': Method('sigmoid, class layer fine-tuned', 'sigmoid', True),
    'equalization_decoupled': Method('EQL for the class layer alone', 'equalization', True),
    'balanced_sigmoid_decoupled': Method(
        'balanced sigmoid for the class layer alone', 'balanced_sigmoid', True
    ),
    'sigmoid_meta_reweighter': Method(
        'sigmoid and the Meta Reweighter for the class layer', 'sigmoid', True, 'meta_reweighter'
    ),
    'balms': Method(
        'balanced sigmoid and the Meta Reweighter for the class layer',
        'balanced_sigmoid',
        True,
        'meta_reweighter',
    ),
}


def apply(name: str, base: Recipe) -> Recipe:
    """Makes a recipe of a method.

    Args:
        name: one of :data:`METHODS`.
        base: with both stages as two-stage training has them; one-stage methods drop the second.

    Returns:
        The recipe. Where there are two stages, the first is trained with the plain sigmoid loss.

    Raises:
        ConfigError: for an unknown method.
    """
    if name not in METHODS:
        raise ConfigError(f'method: got {name!r}, wanted one of {", ".join(METHODS)}')
    method = METHODS[name]
    recipe = dataclasses.replace(base, method=name)
    if not method.decoupled:
        one = dataclasses.replace(recipe, stage_2=dataclasses.replace(base.stage_2, steps=0))
        return with_loss(one, 'stage_1', method.loss)
    meta = dataclasses.replace(base.stage_2.meta, rebalancer=method.rebalancer)
    stage_2 = dataclasses.replace(base.stage_2, trains='classifier', meta=meta)
    two = dataclasses.replace(recipe, stage_2=stage_2)
    return with_loss(with_loss(two, 'stage_1', 'sigmoid'), 'stage_2', method.loss)
