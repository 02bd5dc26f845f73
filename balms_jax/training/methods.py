"""The methods of the paper, by name: which loss, which draws, what is learned, in which stage."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from balms_jax.rebalancers import ONE_BY_ONE
from balms_jax.training.recipe import ConfigError, Loss, Recipe, Stage

PLAIN = Loss(tau=0.0)
QUARTER = Loss(tau=0.25)
BALANCED = Loss(tau=1.0)
CLASS_BALANCED = Loss(tau=0.0, class_weights='class_balanced')
LDAM = Loss('margin')
SLOWER = 0.1  # The learning rate of a second stage that goes on with all parameters.


@dataclass(frozen=True)
class Method:
    """A row of the paper's tables, or a relative."""

    summary: str
    loss: Loss  # of the stage whose network is tested
    second: str = ''  # what a second stage trains: classifier, scales or all; nothing: one stage
    first: Loss = PLAIN  # of the first stage where there are two
    first_draws: str = 'shuffled'
    draws: str = 'shuffled'
    rebalancer: str = 'none'
    mixup: float = 0.0
    post_hoc_tau: float = 0.0
    cosine_scale: float = 16.0  # where the classifier is a cosine one
    mixup_partners: str = 'batch'
    averaging: float = 0.0  # of the stage whose network is tested
    held_out: float = 0.0
    classifier: str = 'linear'
    test_classifier: str = 'trained'


METHODS: dict[str, Method] = {
    'softmax': Method('plain softmax, end to end', PLAIN),
    'balanced_softmax': Method('Balanced Softmax, end to end', BALANCED),
    'balanced_softmax_quarter': Method('the τ = 1/4 variant, end to end', QUARTER),
    'softmax_cbs': Method(
        'plain softmax, class-balanced sampling, end to end', PLAIN, draws='class_balanced'
    ),
    'softmax_decoupled': Method('plain softmax, classifier retrained', PLAIN, 'classifier'),
    'softmax_decoupled_cbs': Method(
        'the same with class-balanced sampling (cRT)', PLAIN, 'classifier', draws='class_balanced'
    ),
    'softmax_decoupled_meta_sampler': Method(
        'the same with the Meta Sampler', PLAIN, 'classifier', rebalancer='meta_sampler'
    ),
    'balanced_softmax_decoupled': Method(
        'Balanced Softmax, classifier retrained', BALANCED, 'classifier'
    ),
    'balanced_softmax_decoupled_cbs': Method(
        'the same with class-balanced sampling', BALANCED, 'classifier', draws='class_balanced'
    ),
    'balanced_softmax_quarter_decoupled': Method(
        'the τ = 1/4 variant, classifier retrained', QUARTER, 'classifier'
    ),
    'balanced_softmax_quarter_decoupled_meta_sampler': Method(
        'the same with the Meta Sampler', QUARTER, 'classifier', rebalancer='meta_sampler'
    ),
    'meta_reweighter': Method(
        'Balanced Softmax and the Meta Reweighter, decoupled',
        BALANCED,
        'classifier',
        rebalancer='meta_reweighter',
    ),
    'balms': Method(
        'Balanced Softmax and the Meta Sampler, decoupled',
        BALANCED,
        'classifier',
        rebalancer='meta_sampler',
    ),
    'balms_end_to_end': Method(
        'Balanced Softmax and the Meta Sampler in one stage', BALANCED, rebalancer='meta_sampler'
    ),
    'balanced_softmax_on_balanced_features': Method(
        'Balanced Softmax on features of Balanced Softmax', BALANCED, 'classifier', BALANCED
    ),
    'balanced_softmax_on_cbs_features': Method(
        'Balanced Softmax on features of class-balanced sampling',
        BALANCED,
        'classifier',
        first_draws='class_balanced',
    ),
    'post_hoc_adjustment': Method(
        'plain softmax, its logits adjusted at test', PLAIN, post_hoc_tau=1.0
    ),
    'inverse_frequency': Method(
        'losses weighted by inverse class frequency (CBW)',
        Loss(tau=0.0, class_weights='inverse_frequency'),
    ),
    'class_balanced': Method('losses weighted by the effective number of examples', CLASS_BALANCED),
    'focal': Method('focal loss', Loss('focal', gamma=1.0)),
    'class_balanced_focal': Method(
        'focal loss with class-balanced weights',
        Loss('focal', gamma=1.0, class_weights='class_balanced'),
    ),
    'class_balanced_focal_sigmoid': Method(
        'the same with one sigmoid a class, as first published',
        Loss('focal_sigmoid', gamma=0.5, class_weights='class_balanced'),
    ),
    'ldam': Method(
        'margins by class size, cosine classifier', LDAM, classifier='cosine', cosine_scale=30.0
    ),
    'ldam_drw': Method(
        'the same, class-balanced weights in a second stage (DRW)',
        Loss('margin', class_weights='class_balanced'),
        'all',
        LDAM,
        classifier='cosine',
        cosine_scale=30.0,
    ),
    'class_balanced_drw': Method(
        'plain softmax, class-balanced weights in a second stage', CLASS_BALANCED, 'all'
    ),
    'temperature': Method('class-dependent temperatures (CDT)', Loss('temperature', gamma=0.2)),
    'cost_sensitive': Method(
        'costs of confusions that follow the classes from epoch to epoch (CoSen)',
        Loss('cost_sensitive', tau=0.0),
        held_out=0.1,
    ),
    'equalization': Method('equalization loss (EQL)', Loss('equalization')),
    'learnable_scales': Method(
        'a scale for each class, learned with class-balanced sampling (LWS)',
        PLAIN,
        'scales',
        draws='class_balanced',
    ),
    'learned_adjustment': Method(
        'a logit adjustment learned by the meta-gradient',
        PLAIN,
        'classifier',
        rebalancer='learned_adjustment',
    ),
    'learning_to_reweight': Method(
        'every example weighed by its meta-gradient (L2RW)',
        PLAIN,
        'classifier',
        rebalancer='learning_to_reweight',
    ),
    'meta_weight_net': Method(
        'a network that weighs losses by their size',
        PLAIN,
        'classifier',
        rebalancer='meta_weight_net',
    ),
    'class_balanced_domain_adaptation': Method(
        'class-balanced weights and a correction for every example (Jamal et al.)',
        PLAIN,
        'all',
        rebalancer='class_balanced_domain_adaptation',
    ),
    'tau_normalized': Method(
        'plain softmax, its weights brought towards one length, τ chosen on held-out images',
        PLAIN,
        held_out=0.1,
        test_classifier='tau_normalized',
    ),
    'nearest_class_mean': Method(
        'plain softmax, the class of the nearest mean feature (NCM)',
        PLAIN,
        test_classifier='nearest_mean',
    ),
    'balanced_softmax_experts': Method(
        'three classifiers with τ of 0, 1 and 2, their logits averaged',
        BALANCED,
        classifier='experts',
    ),
    'balanced_softmax_averaged': Method(
        'Balanced Softmax, a moving average of the parameters tested (EMA)',
        BALANCED,
        averaging=0.999,
    ),
    'balanced_softmax_calibrated': Method(
        'Balanced Softmax, calibrated by a temperature chosen on held-out images',
        BALANCED,
        held_out=0.1,
    ),
    'bilateral_branch': Method(
        'two branches, for uniform and for reversed draws (BBN)',
        PLAIN,
        draws='bilateral',
        classifier='bilateral',
    ),
    'balanced_mixup': Method(
        'plain softmax, a little of a class-balanced batch mixed in',
        PLAIN,
        mixup=0.2,
        mixup_partners='class_balanced',
    ),
    'balanced_softmax_mixup': Method('Balanced Softmax on mixed images', BALANCED, mixup=0.4),
    'balanced_softmax_smoothing': Method(
        'Balanced Softmax with smoothed labels', Loss(tau=1.0, label_smoothing=0.1)
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
    tested: dict[str, Any] = {
        key: getattr(row, key) for key in ('loss', 'draws', 'mixup', 'mixup_partners', 'averaging')
    }
    meta: dict[str, Any] = {'rebalancer': row.rebalancer}
    if row.rebalancer in ONE_BY_ONE:
        meta['mode'] = 'per_example'

    def fill(stage: Stage, settings: dict[str, Any], **of_meta: Any) -> Stage:
        # A recipe may mix and average beside any method.
        recipes = {key: settings.get(key) or getattr(stage, key) for key in ('mixup', 'averaging')}
        settings = {**settings, **recipes}
        return dataclasses.replace(
            stage, meta=dataclasses.replace(stage.meta, **of_meta), **settings
        )

    if row.second:
        begun = {'loss': row.first, 'draws': row.first_draws}
        first = fill(base.stage_1, begun, rebalancer='none')
        second = fill(base.stage_2, {**tested, 'trains': row.second}, **meta)
    else:
        first = fill(base.stage_1, tested, **meta)
        untrained = {'loss': PLAIN, 'trains': 'classifier', 'steps': 0}
        second = fill(base.stage_2, untrained, rebalancer='none')
    if row.second == 'all':
        rate = SLOWER * second.optimizer.learning_rate
        slower = dataclasses.replace(second.optimizer, learning_rate=rate)
        second = dataclasses.replace(second, optimizer=slower)
    model, evaluation = base.model, base.evaluation
    if row.classifier != 'linear':
        model = dataclasses.replace(model, classifier=row.classifier, scale=row.cosine_scale)
    if row.post_hoc_tau:
        evaluation = dataclasses.replace(evaluation, post_hoc_tau=row.post_hoc_tau)
    evaluation = dataclasses.replace(evaluation, classifier=row.test_classifier)
    data = dataclasses.replace(base.data, held_out=max(base.data.held_out, row.held_out))
    return dataclasses.replace(
        base,
        method=method,
        data=data,
        model=model,
        evaluation=evaluation,
        stage_1=first,
        stage_2=second,
    )
