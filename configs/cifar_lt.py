"""CIFAR-10-LT and CIFAR-100-LT: the paper's recipe, the released code's, a strong, short ones.

Command   python -m balms_jax --config configs/cifar_lt.py:dataset=cifar10,method=balms \
              --config.data.data_dir=data --workdir runs/cifar10_balms
Arguments dataset (cifar10, cifar100), imbalance_factor (10, 100, 200),
          method (any of `python -m balms_jax --help`),
          recipe: paper  ResNet-32, 13,000 steps of 512, then 2,000 for the classifier
                  code   the released code's: no Nesterov, learning rate held for an epoch, 12,411
                         steps, meta set redrawn
                  strong ResNet-32 with a cosine classifier, mixup, 400 epochs of batches of 128
                  cpu    ResNet-20, 1,500 steps of 128, crop and flip: a short one for two CPU cores
                  short  ResNet-8 of width 8, 3,600 steps of 64: many methods on two CPU cores
Data      python -m balms_jax.data.sources cifar10 --data_dir data
"""

import dataclasses

from ml_collections import ConfigDict

from balms_jax.data import long_tail
from balms_jax.training import arguments, methods, recipe

CLASSES = {'cifar10': 10, 'cifar100': 100}


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(
        argument,
        dataset='cifar10',
        imbalance_factor=100.0,
        method='balanced_softmax',
        recipe='paper',
    )
    bases = {'paper': paper, 'code': code, 'strong': strong, 'cpu': cpu, 'short': short}
    if given['recipe'] not in bases:
        raise recipe.ConfigError(
            f'recipe: got {given["recipe"]!r}, wanted one of {", ".join(bases)}'
        )
    if given['dataset'] not in CLASSES:
        raise recipe.ConfigError(f'dataset: got {given["dataset"]!r}, wanted cifar10 or cifar100')
    base = bases[given['recipe']](given['dataset'], given['imbalance_factor'])
    return recipe.to_config(methods.apply(given['method'], base))


def paper(dataset: str, imbalance_factor: float) -> recipe.Recipe:
    meta = recipe.Meta(batch_size=512, draws='class_balanced')
    return recipe.Recipe(
        name='paper',
        data=recipe.Data(
            name=dataset,
            imbalance_factor=imbalance_factor,
            head_count=5000 if dataset == 'cifar10' else 500,
            augmentation='cifar',
        ),
        model=recipe.Model(name='resnet32', width=16),
        stage_1=recipe.Stage(
            steps=13_000,
            batch_size=512,
            optimizer=recipe.Optimizer(learning_rate=0.1, warmup_from=0.05, warmup_steps=800),
            meta=meta,
        ),
        stage_2=recipe.Stage(
            steps=2_000,
            batch_size=512,
            features='recomputed',
            optimizer=recipe.Optimizer(learning_rate=0.1),
            meta=meta,
        ),
        evaluation=recipe.Evaluation(every=1_000),
        records=recipe.Records(checkpoint_every=1_000),
    )


def code(dataset: str, imbalance_factor: float) -> recipe.Recipe:
    base = paper(dataset, imbalance_factor)
    epoch = steps_of_epoch(base, base.stage_1.batch_size)
    meta = dataclasses.replace(base.stage_1.meta, source='redraw', draws='stratified', b2=0.999)

    def without_nesterov(stage: recipe.Stage, steps: int, warmup_steps: int) -> recipe.Stage:
        optimizer = dataclasses.replace(
            stage.optimizer, nesterov=False, hold=epoch, warmup_steps=warmup_steps
        )
        return dataclasses.replace(stage, steps=steps, optimizer=optimizer, meta=meta)

    return dataclasses.replace(
        base,
        name='code',
        stage_1=without_nesterov(base.stage_1, 12_411, 800),
        stage_2=without_nesterov(base.stage_2, 2_000, 0),
    )


def steps_of_epoch(base: recipe.Recipe, batch_size: int) -> int:
    """How many batches the long tail makes, the last one begun."""
    data = base.data
    counts = long_tail.exponential_profile(
        data.head_count, CLASSES[data.name], data.imbalance_factor
    )
    return int(-(-counts.sum() // batch_size))


def strong(dataset: str, imbalance_factor: float) -> recipe.Recipe:
    base = paper(dataset, imbalance_factor)
    epoch = steps_of_epoch(base, 128)
    return dataclasses.replace(
        base,
        name='strong',
        model=dataclasses.replace(base.model, classifier='cosine', scale=30.0),
        stage_1=dataclasses.replace(
            base.stage_1,
            steps=400 * epoch,
            batch_size=128,
            mixup=0.4,
            optimizer=recipe.Optimizer(learning_rate=0.1, drops=(320 * epoch, 360 * epoch)),
        ),
        evaluation=recipe.Evaluation(every=20 * epoch),
        records=recipe.Records(checkpoint_every=20 * epoch),
    )


def cpu(dataset: str, imbalance_factor: float) -> recipe.Recipe:
    base = paper(dataset, imbalance_factor)
    meta = dataclasses.replace(base.stage_1.meta, batch_size=200, draws='stratified')
    return dataclasses.replace(
        base,
        name='cpu',
        data=dataclasses.replace(base.data, augmentation='crop_flip'),
        model=recipe.Model(name='resnet20', width=16),
        stage_1=dataclasses.replace(
            base.stage_1,
            steps=1_500,
            batch_size=128,
            optimizer=recipe.Optimizer(learning_rate=0.1, warmup_from=0.01, warmup_steps=200),
            meta=meta,
        ),
        stage_2=dataclasses.replace(
            base.stage_2,
            steps=2_000,
            batch_size=128,
            features='cached',
            views=8,
            optimizer=recipe.Optimizer(learning_rate=0.1),
            meta=meta,
        ),
        evaluation=recipe.Evaluation(every=500),
        records=recipe.Records(checkpoint_every=250),
    )


def short(dataset: str, imbalance_factor: float) -> recipe.Recipe:
    base = cpu(dataset, imbalance_factor)
    return dataclasses.replace(
        base,
        name='short',
        model=recipe.Model(name='resnet8', width=8),
        stage_1=dataclasses.replace(base.stage_1, steps=3_600, batch_size=64),
        stage_2=dataclasses.replace(base.stage_2, steps=1_000, views=4),
        evaluation=recipe.Evaluation(every=1_200),
        records=recipe.Records(checkpoint_every=600, keep=1, tensorboard=False),
    )
