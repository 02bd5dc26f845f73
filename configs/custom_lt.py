"""Any set of image files with a long tail: lists of "path label", iNaturalist's JSON, or folders.

Command   python -m balms_jax --config configs/custom_lt.py:train=train.txt,test=test.txt \
              --config.data.data_dir=FOLDER --workdir runs/mine
Arguments train, test (lists, or folders of one folder a class, within data_dir; or
          tfds:NAME:SPLIT of a TensorFlow Datasets folder), name, size (of an image, in pixels),
          network, width (0: the network's own), epochs, examples (about how many make one),
          batch_size, method (any of `python -m balms_jax --help`)
Data      every image that is there; they are decoded once into memory. Where they do not fit:
          --config.data.files.streamed --config.data.files.crop=random_resized
Recipe    SGD of batch_size with 0.1 · batch_size / 256 after a warm-up, then a cosine; decoupled
          methods train a classifier on cached features for half as many epochs
"""

from ml_collections import ConfigDict

from balms_jax.training import arguments, methods, recipe


def get_config(argument: str = '') -> ConfigDict:
    given = arguments.parse(
        argument,
        train='train.txt',
        test='test.txt',
        name='custom_lt',
        size=64,
        network='resnet10',
        width=0,
        examples=20_000,
        epochs=30,
        batch_size=128,
        method='balanced_softmax',
    )
    size, batch = given['size'], given['batch_size']
    epoch = max(1, given['examples'] // batch)
    meta = recipe.Meta(batch_size=batch, draws='class_balanced')
    rate = 0.1 * batch / 256
    base = recipe.Recipe(
        name='custom',
        data=recipe.Data(
            name=given['name'],
            profile='given',
            augmentation='crop_flip',
            files=recipe.Files(
                train=given['train'], test=given['test'], size=size, resize=round(size * 8 / 7)
            ),
        ),
        model=recipe.Model(name=given['network'], width=given['width']),
        stage_1=recipe.Stage(
            steps=given['epochs'] * epoch,
            batch_size=batch,
            optimizer=recipe.Optimizer(
                learning_rate=rate, warmup_from=rate / 10, warmup_steps=epoch
            ),
            meta=meta,
        ),
        stage_2=recipe.Stage(
            steps=given['epochs'] * epoch // 2,
            batch_size=batch,
            views=4,
            optimizer=recipe.Optimizer(learning_rate=rate),
            meta=meta,
        ),
        evaluation=recipe.Evaluation(every=5 * epoch, batch_size=256),
        records=recipe.Records(checkpoint_every=epoch, keep=1),
    )
    return recipe.to_config(methods.apply(given['method'], base))
