"""Digits with a long tail: the embedded data set, from nothing to a page in seconds.

Command   python -m balms_jax --config configs/digits_lt.py:method=balms --workdir runs/balms
Arguments method (any of `python -m balms_jax --help`), imbalance_factor
"""

from ml_collections import ConfigDict

from balms_jax.training import arguments, methods, recipe


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(argument, method='balanced_softmax', imbalance_factor=40.0)
    optimizer = recipe.Optimizer(learning_rate=0.05)
    base = recipe.Recipe(
        name='digits',
        data=recipe.Data(name='digits', imbalance_factor=given['imbalance_factor']),
        model=recipe.Model(name='digits_net', width=16),
        stage_1=recipe.Stage(
            steps=300,
            batch_size=64,
            optimizer=optimizer,
            meta=recipe.Meta(batch_size=80),
        ),
        stage_2=recipe.Stage(
            steps=300,
            batch_size=64,
            optimizer=optimizer,
            meta=recipe.Meta(batch_size=80),
        ),
        evaluation=recipe.Evaluation(every=50, test_priors=('uniform', 'train'), batch_size=250),
        records=recipe.Records(checkpoint_every=100),
    )
    return recipe.to_config(methods.apply(given['method'], base))
