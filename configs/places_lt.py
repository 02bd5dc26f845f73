"""Places-LT: 365 classes, 62,500 training images from 4980 down to 5, streamed.

Command   python -m balms_jax --config configs/places_lt.py:method=balms \
              --config.data.data_dir=FOLDER --config.model.weights=resnet152.npz \
              --workdir runs/places_lt_balms
Arguments method (any of `python -m balms_jax --help`), network,
          recipe: paper  the classifier at 0.01 with batches of 128
                  code   the released code's: 256 at 0.02; ψ at 1e-3 and power 0.3, meta batches
                         of 512
Data      FOLDER holds Places_LT_train.txt and Places_LT_test.txt of Liu et al. (arXiv 1904.05160)
          and the folders that they list
Weights   the network starts from those of ImageNet, which `python -m balms_jax.models.convert`
          makes of torchvision's; without the flag it starts from nothing
Recipe    ResNet-152; 30 epochs of batches of 256 at 0.01 for the whole network (how long it was
          fine-tuned is not published), then 10 for the classifier; RandomResizedCrop of 224, flip,
          colour jitter. No epoch is picked; the last one is tested
"""

from ml_collections import ConfigDict

from balms_jax.training import arguments, methods, recipe

EXAMPLES = 62_500


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(argument, method='balms', network='resnet152', recipe='paper')
    if given['recipe'] not in ('paper', 'code'):
        raise recipe.ConfigError(f'recipe: got {given["recipe"]!r}, wanted paper or code')
    code = given['recipe'] == 'code'
    size, rate = (256, 0.02) if code else (128, 0.01)
    meta = recipe.Meta(
        batch_size=512 if code else size,
        draws='class_balanced',
        learning_rate=1e-3 if code else 0.01,
        initial_power=0.3 if code else 0.0,
    )
    base = recipe.Recipe(
        name=given['recipe'],
        data=recipe.Data(
            name='places_lt',
            profile='given',
            augmentation='flip_jitter',
            files=recipe.Files(
                train='Places_LT_train.txt',
                test='Places_LT_test.txt',
                size=224,
                resize=256,
                crop='random_resized',
                streamed=True,
                workers=8,
            ),
        ),
        model=recipe.Model(name=given['network']),
        stage_1=recipe.Stage(
            steps=30 * round(EXAMPLES / 256),
            batch_size=256,
            optimizer=recipe.Optimizer(learning_rate=0.01),
            meta=meta,
        ),
        stage_2=recipe.Stage(
            steps=10 * round(EXAMPLES / size),
            batch_size=size,
            optimizer=recipe.Optimizer(learning_rate=rate),
            meta=meta,
        ),
        evaluation=recipe.Evaluation(
            every=5 * round(EXAMPLES / 256), batch_size=512, gradient_examples=5
        ),
        records=recipe.Records(checkpoint_every=round(EXAMPLES / 256)),
    )
    return recipe.to_config(methods.apply(given['method'], base))
