"""A run small enough to be repeated many times."""

import dataclasses

import pytest

from balms_jax.training import methods, recipe


@pytest.fixture
def small_recipe():
    """Gives a method's recipe on digits-LT with a few steps; the batch fits eight devices."""

    def make(method='balms', *, steps=12, devices=1, **changes):
        stage = recipe.Stage(
            steps=steps,
            batch_size=16,
            optimizer=recipe.Optimizer(learning_rate=0.05, warmup_steps=2),
            meta=recipe.Meta(batch_size=16),
        )
        base = recipe.Recipe(
            name='test',
            devices=devices,
            data=recipe.Data(name='digits', imbalance_factor=20.0),
            model=recipe.Model(name='digits_net', width=4),
            stage_1=stage,
            stage_2=stage,
            evaluation=recipe.Evaluation(batch_size=250, every=8, test_priors=('uniform', 'train')),
            records=recipe.Records(checkpoint_every=5, rates_every=2, tensorboard=False),
        )
        return dataclasses.replace(methods.apply(method, base), **changes)

    return make
