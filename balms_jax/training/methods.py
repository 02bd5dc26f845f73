"""The methods of the paper, by name: which loss, which draws, what is learned, in which stage."""

import dataclasses
from dataclasses import dataclass

from balms_jax.training.recipe import ConfigError, Recipe


@dataclass(frozen=True)
class Method:
    """A row of the paper's tables."""

    summary: str
    tau: float  # of the loss whose classifier is tested
    decoupled: bool = False  # Stage 1 with plain softmax, then a fresh classifier.
    draws: str = 'shuffled'
    rebalancer: str = 'none'


METHODS: dict[str, Method] = {
    'softmax': Method('plain softmax, end to end', 0.0),
    'balanced_softmax': Method('Balanced Softmax, end to end', 1.0),
    'balanced_softmax_quarter': Method('the τ = 1/4 variant, end to end', 0.25),
    'softmax_cbs': Method(
        'plain softmax, class-balanced sampling, end to end', 0.0, False, 'class_balanced'
    ),
    'softmax_decoupled': Method('plain softmax, classifier retrained', 0.0, True),
    'softmax_decoupled_cbs': Method(
        'the same with class-balanced sampling (cRT)', 0.0, True, 'class_balanced'
    ),
    'softmax_decoupled_meta_sampler': Method(
        'the same with the Meta Sampler', 0.0, True, rebalancer='meta_sampler'
    ),
    'balanced_softmax_decoupled': Method('Balanced Softmax, classifier retrained', 1.0, True),
    'balanced_softmax_decoupled_cbs': Method(
        'the same with class-balanced sampling', 1.0, True, 'class_balanced'
    ),
    'balanced_softmax_quarter_decoupled': Method(
        'the τ = 1/4 variant, classifier retrained', 0.25, True
    ),
    'balanced_softmax_quarter_decoupled_meta_sampler': Method(
        'the same with the Meta Sampler', 0.25, True, rebalancer='meta_sampler'
    ),
    'meta_reweighter': Method(
        'Balanced Softmax and the Meta Reweighter, decoupled',
        1.0,
        True,
        rebalancer='meta_reweighter',
    ),
    'balms': Method(
        'Balanced Softmax and the Meta Sampler, decoupled', 1.0, True, rebalancer='meta_sampler'
    ),
    'balms_end_to_end': Method(
        'Balanced Softmax and the Meta Sampler in one stage', 1.0, rebalancer='meta_sampler'
    ),
}


def apply(method: str, base: Recipe) -> Recipe:
    """Turns a base recipe into that of a method.

    Args:
        method: one of ``METHODS``.
        base: a recipe whose two stages hold the optimization of each, and whose ``meta`` holds
            that of a rebalancer; what makes the method is filled in here.

    Returns:
        The method's recipe.

    Raises:
        ConfigError: if the method is unknown.
    """
    if method not in METHODS:
        raise ConfigError(f'method: got {method!r}, wanted one of {", ".join(METHODS)}')
    row = METHODS[method]
    tested, plain = (
        {'tau': row.tau, 'draws': row.draws, 'rebalancer': row.rebalancer},
        {'tau': 0.0, 'draws': 'shuffled', 'rebalancer': 'none'},
    )

    def fill(stage: str, settings: dict, **changes: object) -> dict:
        settings = dict(settings)
        meta = dataclasses.replace(getattr(base, stage).meta, rebalancer=settings.pop('rebalancer'))
        return {stage: dataclasses.replace(getattr(base, stage), meta=meta, **settings, **changes)}

    if row.decoupled:
        stages = fill('stage_1', plain) | fill('stage_2', tested, trains='classifier')
    else:
        stages = fill('stage_1', tested) | fill('stage_2', plain, trains='classifier', steps=0)
    return dataclasses.replace(base, method=method, **stages)
