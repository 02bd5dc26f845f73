r"""LVIS: instance segmentation of 1,230 (v0.5) or 1,203 (v1) categories.

Command   python -m balms_jax --config configs/lvis.py:method=balms \
              --config.data.data_dir=FOLDER --config.detector.weights=resnet50.npz \
              --workdir runs/lvis_balms
Plan      python -m balms_jax.pod_plan --config configs/lvis.py:method=balms --topology v5e:4x4
Arguments method (any of `python -m balms_jax --help`), version (v0.5, v1),
          recipe: paper  batches of 8 at 0.01, ψ at 0.001
                  code   the released code's: batches of 16 at 0.02, ψ at 0.01; the meta loss is the
                         stage's own
          side: of the padded images, in pixels: 1344 holds all that is resized to a shorter side of
          800 and a longer one of up to 1333; 1024 has 0.6 of its pixels
Data      FOLDER holds lvis_v0.5_train.json and lvis_v0.5_val.json, or those of v1, and COCO's
          folders train2017/ and val2017/
Weights   resnet50.npz: torchvision's ImageNet weights, by python -m balms_jax.models.convert
Recipe    Mask R-CNN with ResNet-50 and a feature pyramid, one sigmoid a category. 90,000 steps with
          repeat factors, drops at 60,000 and 80,000; then the class layer alone goes on for 22,000
          steps, drops at 11,000 and 18,000, on fresh regions of every step. Images are drawn with a
          shorter side of 640 to 800 pixels and mirrored. 300 detections, from a score of 1e-4 on
"""

from ml_collections import ConfigDict

from balms_jax.detection_training import methods, recipe
from balms_jax.training import arguments
from balms_jax.training.recipe import ConfigError, Records, to_config

VERSIONS = {'v0.5': ('train2017', 'val2017'), 'v1': ('', '')}  # The names of v1 have the folder.


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(argument, method='balms', version='v0.5', recipe='paper', side=1344)
    for name, wanted in {'version': VERSIONS, 'recipe': ('paper', 'code')}.items():
        if given[name] not in wanted:
            raise ConfigError(f'{name}: got {given[name]!r}, wanted one of {", ".join(wanted)}')
    version, code = given['version'], given['recipe'] == 'code'
    train_images, test_images = VERSIONS[version]
    size, rate = (16, 0.02) if code else (8, 0.01)
    base = recipe.Recipe(
        name=given['recipe'],
        data=recipe.Data(
            name=f'lvis_{version}',
            train=f'lvis_{version}_train.json',
            test=f'lvis_{version}_val.json',
            train_images=train_images,
            test_images=test_images,
            height=given['side'],
            width=given['side'],
            shortest=(640, 672, 704, 736, 768, 800),
            most_objects=300,
            workers=8,
        ),
        stage_1=recipe.Stage(
            steps=90_000,
            batch_size=size,
            optimizer=recipe.Optimizer(
                learning_rate=rate, warmup_steps=1_000, drops=(60_000, 80_000)
            ),
        ),
        stage_2=recipe.Stage(
            steps=22_000,
            batch_size=size,
            trains='classifier',
            optimizer=recipe.Optimizer(learning_rate=rate, drops=(11_000, 18_000)),
            meta=recipe.Meta(
                batch_size=size,
                learning_rate=0.01 if code else 0.001,
                loss='same' if code else 'sigmoid',
            ),
        ),
        evaluation=recipe.Evaluation(every=30_000),
        records=Records(checkpoint_every=1_000, rates_every=100),
    )
    return to_config(methods.apply(given['method'], base))
