"""Digits and CIFAR come back as they were published; what is missing says how to get it.

The CIFARs here are tiny but real: archives in the published binary format, prepared by the
public command and read by the public function.
"""

import io
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request

import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds

from balms_jax.data import long_tail, sources, stream_draws, tfds_records
from balms_jax.data.decoding import CentreCrop
from balms_jax.data.image_files import ImageFiles
from balms_jax.data.streamed import Stream

CLASS_NAMES = {
    'cifar10': [f'animal_{j}' for j in range(10)],
    'cifar100': [f'thing_{j}' for j in range(100)],
}
TRAIN_COUNTS = {'cifar10': [4, 3, *[1] * 8], 'cifar100': [2, *[1] * 99]}
FILES = {
    'cifar10': (
        'cifar-10-batches-bin',
        [f'data_batch_{i}.bin' for i in range(1, 6)],
        'test_batch.bin',
    ),
    'cifar100': ('cifar-100-binary', ['train.bin'], 'test.bin'),
}


def random_split(name, split):
    rng = np.random.default_rng([len(name), len(split)])
    counts = TRAIN_COUNTS[name] if split == 'train' else [1] * len(CLASS_NAMES[name])
    labels = np.repeat(np.arange(len(counts)), counts)
    return rng.integers(256, size=(len(labels), 32, 32, 3), dtype=np.uint8), labels


def write_archive(path, name):
    """Writes the published layout: a byte a label (coarse before fine), then channels first."""

    def records(images, labels):
        coarse = [bytes([int(label) // 5]) if name == 'cifar100' else b'' for label in labels]
        return b''.join(
            c + bytes([int(label)]) + image.transpose(2, 0, 1).tobytes()
            for c, label, image in zip(coarse, labels, images, strict=True)
        )

    folder, train_files, test_file = FILES[name]
    images, labels = random_split(name, 'train')
    parts = np.array_split(np.arange(len(labels)), len(train_files))
    files = {f: records(images[p], labels[p]) for f, p in zip(train_files, parts, strict=True)}
    files[test_file] = records(*random_split(name, 'test'))
    names = '\n'.join(CLASS_NAMES[name]).encode() + b'\n\n'
    if name == 'cifar10':
        files['batches.meta.txt'] = names
    else:
        files['fine_label_names.txt'] = names
        files['coarse_label_names.txt'] = '\n'.join(f'group_{i}' for i in range(20)).encode()
    with tarfile.open(path, 'w:gz') as tar:
        for file, data in files.items():
            info = tarfile.TarInfo(f'{folder}/{file}')
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp('archives')
    return {name: str(write_archive(folder / f'{name}.tar.gz', name)) for name in CLASS_NAMES}


@pytest.fixture(scope='module')
def data_dir(archives, tmp_path_factory):
    folder = tmp_path_factory.mktemp('prepared')
    for name, archive in archives.items():
        sources.main([name, '--data_dir', str(folder), '--archive', archive])
    return folder


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError('Name or service not known')

    monkeypatch.setattr(urllib.request, 'urlopen', refuse)


def as_a_set(images, labels):
    return sorted(
        (int(label), image.tobytes()) for image, label in zip(images, labels, strict=True)
    )


def test_records_of_a_prepared_set_stand_in_for_files(data_dir):
    """Any set that TensorFlow Datasets prepared can be streamed: the same images, by class."""
    listed = tfds_records.read_tfds('cifar10', 'train', data_dir)
    images = ImageFiles(listed, CentreCrop(32, resize=32))
    source = sources.load('cifar10', data_dir)
    assert as_a_set(images[:], listed.labels) == as_a_set(source.train_images, source.train_labels)
    np.testing.assert_array_equal(listed.labels, np.sort(source.train_labels))
    assert listed.class_names == source.class_names
    draws = stream_draws.shuffled(0, 4, len(images))
    with Stream(images, draws, workers=1) as stream:  # The records are read in another process.
        np.testing.assert_array_equal(next(stream).images, images[draws(0)])


@pytest.mark.parametrize('name', ['cifar100', 'no_such_set'])
def test_records_that_are_not_prepared_are_named(name, tmp_path):
    """With the folder, and what would make it."""
    with pytest.raises(FileNotFoundError, match=f'{name}: no TensorFlow Datasets folder'):
        tfds_records.read_tfds(name, 'train', tmp_path)


@pytest.mark.parametrize('name', CLASS_NAMES)
def test_cifar_comes_back_as_it_was_published(name, data_dir):
    # Losslessly, every image with its own (fine) label, in whatever order TFDS shuffled them.
    source = sources.load(name, data_dir)
    assert source.train_images.dtype == source.test_images.dtype == np.uint8
    assert source.train_labels.dtype == source.test_labels.dtype == np.int32
    assert source.class_names == tuple(CLASS_NAMES[name])
    assert source.num_classes == len(source.class_names)
    assert as_a_set(source.train_images, source.train_labels) == as_a_set(
        *random_split(name, 'train')
    )
    assert as_a_set(source.test_images, source.test_labels) == as_a_set(*random_split(name, 'test'))


def test_loading_again_gives_the_same_order(data_dir):
    # A seeded subset is indices, so it is the same data only if the order is.
    first, again = (sources.load('cifar10', data_dir) for _ in range(2))
    assert sources.fingerprint(first.train_images) == sources.fingerprint(again.train_images)


def test_a_split_that_holds_too_little_is_refused_by_the_subset_not_the_source(data_dir):
    source = sources.load('cifar10', data_dir)
    profile = long_tail.exponential_profile(4, source.num_classes, 2)
    with pytest.raises(ValueError, match=r"class 2 \('animal_2'\) holds 1 examples"):
        long_tail.long_tailed_subset(source.train_labels, profile, 0, source.class_names)


@pytest.mark.parametrize('name', CLASS_NAMES)
def test_the_command_in_the_error_gets_the_data(name, archives, tmp_path):
    folder = tmp_path / 'my data'
    with pytest.raises(sources.DataNotFoundError, match='needs network') as error:
        sources.load(name, folder)
    assert not folder.exists()
    python, m, module, *arguments = shlex.split(str(error.value).splitlines()[-1])
    assert (python, m, module) == ('python', '-m', 'balms_jax.data.sources')
    sources.main([*arguments, '--archive', archives[name]])
    assert sources.load(name, folder).name == name


def test_an_existing_folder_without_the_set_is_named(tmp_path):
    (tmp_path / 'cifar10').mkdir()
    with pytest.raises(FileNotFoundError, match=f'^{tmp_path} holds no prepared cifar10'):
        sources.load('cifar10', tmp_path)


@pytest.mark.parametrize('download', [False, True])
def test_a_set_prepared_for_tensorflow_is_refused_with_the_way_out(data_dir, tmp_path, download):
    shutil.copytree(data_dir / 'cifar10', tmp_path / 'cifar10')
    (info,) = tmp_path.glob('cifar10/*/dataset_info.json')
    info.write_text(json.dumps(json.loads(info.read_text()) | {'fileFormat': 'tfrecord'}))
    with pytest.raises(sources.DataNotFoundError, match='holds cifar10 as tfrecord'):
        sources.load('cifar10', tmp_path, download)


def test_download_fetches_the_published_archive(archives, monkeypatch, tmp_path):
    urls = []

    def fetch(manager, url):
        urls.append(url)
        return archives['cifar10']

    monkeypatch.setattr(urllib.request, 'urlopen', lambda url, timeout: io.BytesIO())
    monkeypatch.setattr(tfds.download.DownloadManager, 'download', fetch)
    source = sources.load('cifar10', tmp_path, download=True)
    assert urls == ['https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz']
    assert source.class_names == tuple(CLASS_NAMES['cifar10'])


@pytest.mark.usefixtures('offline')
def test_download_without_network_fails_at_once(tmp_path):
    with pytest.raises(sources.DataNotFoundError, match=r'cannot be reached .* --archive'):
        sources.load('cifar10', tmp_path, download=True)
    with pytest.raises(SystemExit, match=r'^cifar10: https.* --archive'):
        sources.main(['cifar10', '--data_dir', str(tmp_path)])


@pytest.mark.usefixtures('offline')
def test_download_of_what_is_there_needs_no_network(data_dir):
    assert len(sources.load('cifar10', data_dir, download=True).train_labels) == 15


def test_digits_are_split_into_a_balanced_test_set_and_the_rest():
    # Nothing lost, nothing in both: together the splits are scikit-learn's 1,797 digits.
    source = sources.load('digits')
    np.testing.assert_array_equal(np.bincount(source.test_labels), [50] * 10)
    digits = sklearn.datasets.load_digits()
    published = np.round(digits.images * 255 / 16).astype(np.uint8)
    assert as_a_set(
        np.concatenate([source.train_images, source.test_images]),
        np.concatenate([source.train_labels, source.test_labels]),
    ) == as_a_set(published, digits.target)


def test_digits_test_set_never_changes():
    # Figures of different runs and releases compare only on the same test set.
    source = sources.load('digits')
    assert sources.fingerprint(source.test_images, source.test_labels) == '23c9a010bd8d1bf0'


def test_digits_mean_and_std_normalise_the_training_pool():
    source = sources.load('digits')
    normalised = (source.train_images / 255 - source.mean) / source.std
    assert normalised.mean() == pytest.approx(0, abs=1e-6)
    assert normalised.std() == pytest.approx(1, abs=1e-6)


def test_digits_need_no_tensorflow_datasets():
    code = (
        'import sys; from balms_jax.data import sources; sources.load("digits"); '
        'sys.exit("tensorflow_datasets" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'mnist', wanted one of digits, cifar10, cifar100"):
        sources.load('mnist')


def test_fingerprint_depends_on_values_types_shapes_and_order_alone():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    labels = np.array([0, 1], np.int32)
    changed = images.copy()
    changed[1, 2, 3] ^= 1
    digests = [
        sources.fingerprint(*arrays)
        for arrays in (
            (images, labels),
            (changed, labels),
            (images, labels[::-1]),
            (images, labels.astype(np.int64)),
            (images.reshape(2, 4, 3), labels),
            (labels, images),
            (images,),
        )
    ]
    assert len(set(digests)) == len(digests)
    strided = np.repeat(images, 2, axis=0)[::2]
    assert sources.fingerprint(strided, labels.copy()) == digests[0]
    assert len(digests[0]) == 16
