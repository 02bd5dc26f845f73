r"""Any set of images with boxes and masks: annotations in the format of COCO or LVIS.

Command   python -m balms_jax --config configs/custom_detection.py:train=train.json,test=val.json \
              --config.data.data_dir=FOLDER --workdir runs/mine
Arguments train, test (JSON files within data_dir), images (the folder of their images), name, side
          (of the padded images, in pixels; a multiple of 64), depth (of the ResNet), width (of its
          stem), channels (of pyramid and mask head), steps, batch_size, lvis (whether an image is
          judged by the categories alone that are known to be there or not), method (any of
          `python -m balms_jax --help`)
Data      every image that is there and has an object
Recipe    from scratch: batch norm learns its statistics, and Adam at 1e-3 follows a cosine. With
          weights: --config.detector.weights=FILE, of a detector or of a classifier's backbone.
          Decoupled methods then fine-tune the class layer on cached regions for a third as long
"""

from ml_collections import ConfigDict

from balms_jax.detection.anchors import SIZES
from balms_jax.detection_training import methods, recipe
from balms_jax.training import arguments
from balms_jax.training.recipe import Records, to_config

USUAL_SIDE = 1024  # of images that the usual anchors of 32 to 512 pixels are for


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(
        argument,
        train='train.json',
        test='val.json',
        images='images',
        name='custom_detection',
        side=256,
        depth=18,
        width=32,
        channels=64,
        steps=3_000,
        batch_size=4,
        lvis=0,
        method='sigmoid',
    )
    side, steps = given['side'], given['steps']
    base = recipe.Recipe(
        name='custom',
        data=recipe.Data(
            name=given['name'],
            train=given['train'],
            test=given['test'],
            train_images=given['images'],
            test_images=given['images'],
            lvis=bool(given['lvis']),
            height=side,
            width=side,
            shortest=(round(0.75 * side), round(0.875 * side), side),
            shortest_at_test=side,
            mask_size=56,
        ),
        detector=recipe.Detector(
            depth=given['depth'],
            width=given['width'],
            channels=given['channels'],
            box_features=4 * given['channels'],
            agnostic_masks=True,
            frozen_norm=False,
            frozen_groups=0,
            anchor_sizes=tuple(size * side / USUAL_SIDE for size in SIZES),
        ),
        draws=recipe.Draws(
            anchors=64,
            regions=64,
            proposals_per_level=200,
            proposals=200,
            test_proposals_per_level=200,
            test_proposals=200,
        ),
        stage_1=recipe.Stage(
            steps=steps,
            batch_size=given['batch_size'],
            optimizer=recipe.Optimizer(
                name='adam',
                learning_rate=1e-3,
                weight_decay=0.0,
                warmup_steps=steps // 20,
                schedule='cosine',
                clip=5.0,
            ),
        ),
        stage_2=recipe.Stage(
            steps=steps // 3,
            batch_size=given['batch_size'],
            trains='classifier',
            regions='cached',
            views=2,
            optimizer=recipe.Optimizer(learning_rate=0.02, weight_decay=0.0, schedule='cosine'),
            meta=recipe.Meta(batch_size=given['batch_size']),
        ),
        evaluation=recipe.Evaluation(detections=100, every=max(steps // 5, 1)),
        records=Records(checkpoint_every=max(steps // 10, 1), rates_every=10, keep=1),
    )
    return to_config(methods.apply(given['method'], base))
