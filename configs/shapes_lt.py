"""Drawn scenes with a long tail: 36 categories of shapes, instance segmentation, no download.

Command   python -m balms_jax --config configs/shapes_lt.py:method=balms --workdir runs/shapes_balms
Arguments method (any of `python -m balms_jax --help`),
          recipe: cpu    images of 64 × 64, a Mask R-CNN of 8 to 64 channels, 3,000 steps of
                         4 images, then 1,000 for the class layer on cached regions
                  tiny   the same detector for 60 steps: to see that all works
Data      drawn: 400 to 2 objects of a category in training, 8 of each at test
"""

import dataclasses

from ml_collections import ConfigDict

from balms_jax.detection_training import methods, recipe
from balms_jax.training import arguments
from balms_jax.training.recipe import ConfigError, Records, to_config


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(argument, method='balms', recipe='cpu')
    bases = {'cpu': cpu, 'tiny': tiny}
    if given['recipe'] not in bases:
        raise ConfigError(f'recipe: got {given["recipe"]!r}, wanted one of {", ".join(bases)}')
    return to_config(methods.apply(given['method'], bases[given['recipe']]()))


def cpu() -> recipe.Recipe:
    # In LVIS the threshold of EQL spares rare and common categories; so here, of 1,000 images.
    loss = recipe.Loss(threshold=0.1)
    return recipe.Recipe(
        name='cpu',
        data=recipe.Data(
            height=64,
            width=64,
            shortest=(64,),
            shortest_at_test=64,
            most_objects=5,
            mask_size=28,
            workers=0,
        ),
        detector=recipe.Detector(
            depth=10,
            width=8,
            channels=16,
            box_features=64,
            agnostic_boxes=True,
            agnostic_masks=True,
            frozen_norm=False,
            frozen_groups=0,
            anchor_sizes=(12.0, 18.0, 26.0, 40.0, 60.0),
        ),
        draws=recipe.Draws(
            anchors=32,
            regions=16,
            region_fraction=0.5,
            proposals_per_level=40,
            proposals=24,
            test_proposals_per_level=40,
            test_proposals=24,
        ),
        stage_1=recipe.Stage(
            steps=3_000,
            batch_size=4,
            loss=loss,
            optimizer=recipe.Optimizer(
                name='adam',
                learning_rate=5e-3,
                weight_decay=0.0,
                warmup_steps=50,
                schedule='cosine',
                clip=5.0,
            ),
        ),
        stage_2=recipe.Stage(
            steps=1_000,
            batch_size=16,
            trains='classifier',
            regions='cached',
            views=2,
            loss=loss,
            optimizer=recipe.Optimizer(learning_rate=0.05, weight_decay=0.0, drops=(500, 818)),
            meta=recipe.Meta(batch_size=16),
        ),
        evaluation=recipe.Evaluation(detections=50, candidates=400, batch_size=16),
        records=Records(checkpoint_every=500, rates_every=10, keep=1),
    )


def tiny() -> recipe.Recipe:
    base = cpu()
    return dataclasses.replace(
        base,
        name='tiny',
        data=dataclasses.replace(base.data, head_count=40, imbalance_factor=20.0, test_count=1),
        stage_1=dataclasses.replace(base.stage_1, steps=60),
        stage_2=dataclasses.replace(
            base.stage_2,
            steps=60,
            views=1,
            optimizer=dataclasses.replace(base.stage_2.optimizer, drops=(30,)),
        ),
        evaluation=dataclasses.replace(base.evaluation, gradient_images=20, pictures=4),
        records=dataclasses.replace(base.records, checkpoint_every=20),
    )
