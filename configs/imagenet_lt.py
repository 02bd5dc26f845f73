"""ImageNet-LT: 1000 classes, 115,846 training images from 1280 down to 5, streamed.

Command   python -m balms_jax --config configs/imagenet_lt.py:method=balms \
              --config.data.data_dir=FOLDER --workdir runs/imagenet_lt_balms
Plan      python -m balms_jax.pod_plan \
              --config configs/imagenet_lt.py:method=balms_end_to_end,network=resnet50 \
              --topology v5e:16x16 --output plan
Arguments method (any of `python -m balms_jax --help`), network, batch_size (of the whole pod),
          recipe: paper  the classifier for 10 epochs at 0.2
                  code   the released code's: 20 epochs at 0.5; ψ at 1e-3 and power 0.1, meta
                         batches of 1024
Data      FOLDER holds ImageNet_LT_train.txt and ImageNet_LT_test.txt of Liu et al. (arXiv
          1904.05160) and the folders train/ and val/ that they list
Recipe    ResNet-10, 90 epochs of batches of 512 at 0.2, a cosine; RandomResizedCrop of 224, flip,
          colour jitter. Other batch sizes scale the rate, larger ones are warmed up over five
          epochs (Goyal et al., arXiv 1706.02677). The meta set is the training set: the published
          one is the validation split. No epoch is picked; the last one is tested
"""

from ml_collections import ConfigDict

from balms_jax.training import arguments, methods, recipe

EXAMPLES = 115_846


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(
        argument, method='balms', network='resnet10', batch_size=512, recipe='paper'
    )
    if given['recipe'] not in ('paper', 'code'):
        raise recipe.ConfigError(f'recipe: got {given["recipe"]!r}, wanted paper or code')
    code, size = given['recipe'] == 'code', given['batch_size']
    epoch, scale = max(1, round(EXAMPLES / size)), size / 512
    meta = recipe.Meta(
        batch_size=1024 if code else size,
        draws='class_balanced',
        learning_rate=1e-3 if code else 0.01,
        initial_power=0.1 if code else 0.0,
    )
    base = recipe.Recipe(
        name=given['recipe'],
        data=recipe.Data(
            name='imagenet_lt',
            profile='given',
            augmentation='flip_jitter',
            files=recipe.Files(
                train='ImageNet_LT_train.txt',
                test='ImageNet_LT_test.txt',
                size=224,
                resize=256,
                crop='random_resized',
                streamed=True,
                workers=8,
            ),
        ),
        model=recipe.Model(name=given['network']),
        stage_1=recipe.Stage(
            steps=90 * epoch,
            batch_size=size,
            optimizer=recipe.Optimizer(
                learning_rate=0.2 * scale,
                warmup_from=0.2,
                warmup_steps=5 * epoch if scale > 1 else 0,
            ),
            meta=meta,
        ),
        stage_2=recipe.Stage(
            steps=(20 if code else 10) * epoch,
            batch_size=size,
            optimizer=recipe.Optimizer(learning_rate=(0.5 if code else 0.2) * scale),
            meta=meta,
        ),
        evaluation=recipe.Evaluation(every=10 * epoch, batch_size=512, gradient_examples=5),
        records=recipe.Records(checkpoint_every=epoch),
    )
    return recipe.to_config(methods.apply(given['method'], base))
