"""iNaturalist 2018: 8142 species, 437,513 training images from 1000 down to 2, streamed.

Command   python -m balms_jax --config configs/inaturalist_lt.py:method=balms \
              --config.data.data_dir=FOLDER --workdir runs/inaturalist_balms
Arguments method (any of `python -m balms_jax --help`), network, epochs, batch_size
Data      FOLDER holds train2018.json, val2018.json and the folder train_val2018/, as published
Recipe    ResNet-50, 90 epochs of batches of 512 at 0.2, a cosine, weight decay 1e-4;
          RandomResizedCrop of 224 and flip (Kang et al., arXiv 1910.09217); the classifier for 30
          epochs. The authors of Balanced Meta-Softmax have no recipe for it
"""

from ml_collections import ConfigDict

from balms_jax.training import arguments, methods, recipe

EXAMPLES = 437_513


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(argument, method='balms', network='resnet50', epochs=90, batch_size=512)
    size = given['batch_size']
    epoch, scale = max(1, round(EXAMPLES / size)), size / 512
    meta = recipe.Meta(batch_size=size, draws='class_balanced')
    base = recipe.Recipe(
        name='inaturalist',
        data=recipe.Data(
            name='inaturalist18',
            profile='given',
            augmentation='flip',
            files=recipe.Files(
                train='train2018.json',
                test='val2018.json',
                size=224,
                resize=256,
                crop='random_resized',
                streamed=True,
                workers=8,
            ),
        ),
        model=recipe.Model(name=given['network']),
        stage_1=recipe.Stage(
            steps=given['epochs'] * epoch,
            batch_size=size,
            optimizer=recipe.Optimizer(
                learning_rate=0.2 * scale,
                weight_decay=1e-4,
                warmup_from=0.2,
                warmup_steps=5 * epoch if scale > 1 else 0,
            ),
            meta=meta,
        ),
        stage_2=recipe.Stage(
            steps=30 * epoch,
            batch_size=size,
            optimizer=recipe.Optimizer(learning_rate=0.2 * scale, weight_decay=1e-4),
            meta=meta,
        ),
        evaluation=recipe.Evaluation(every=10 * epoch, batch_size=512, gradient_examples=1),
        records=recipe.Records(checkpoint_every=epoch),
    )
    return recipe.to_config(methods.apply(given['method'], base))
