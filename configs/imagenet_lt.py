"""ImageNet-LT with the size of its usual recipe, for planning a pod: no run reads it yet.

Command   python -m balms_jax.pod_plan --config configs/imagenet_lt.py:method=balms_end_to_end \
              --topology v5e:16x16 --output plan
Arguments method (any of `python -m balms_jax --help`), network (resnet10 to resnet152),
          batch_size (of the whole pod)
Data      1000 classes of 1280 to 5 images of 224 × 224 on a Pareto profile, which comes near the
          115,846 of the published list. The training job refuses it: it does not stream.
Recipe    90 epochs of batches of 4096, the learning rate of 0.1 for 256 scaled with the batch and
          warmed up over five epochs (Goyal et al., arXiv 1706.02677).
"""

from ml_collections import ConfigDict

from balms_jax.training import arguments, methods, recipe

EXAMPLES = 115_846


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(
        argument, method='balms_end_to_end', network='resnet50', batch_size=4096
    )
    size = given['batch_size']
    epoch = max(1, round(EXAMPLES / size))
    optimizer = recipe.Optimizer(
        learning_rate=0.1 * size / 256, warmup_from=0.1, warmup_steps=5 * epoch
    )
    stage = recipe.Stage(
        steps=90 * epoch,
        batch_size=size,
        features='recomputed',
        optimizer=optimizer,
        meta=recipe.Meta(batch_size=size, draws='class_balanced'),
    )
    base = recipe.Recipe(
        name='imagenet_lt',
        data=recipe.Data(
            name='imagenet_lt', profile='pareto', imbalance_factor=256.0, head_count=1280
        ),
        model=recipe.Model(name=given['network']),
        stage_1=stage,
        stage_2=stage,
        evaluation=recipe.Evaluation(batch_size=512),
    )
    return recipe.to_config(methods.apply(given['method'], base))
