"""The command writes files that start a network, and says which file and key it could not read."""

import jax
import numpy as np
import pytest

from balms_jax.detection import networks
from balms_jax.models import convert, detector_weights
from balms_jax.models.torchvision_detectors import to_torchvision

TINY = networks.Architecture(5, depth=10, width=4, channels=8, box_features=16, background=True)


def random_detector():
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(networks.build(TINY).init, jax.random.key(0), images)
    random = np.random.default_rng(0)
    params, stats = jax.tree.map(
        lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes
    )
    return detector_weights.DetectorWeights('maskrcnn_resnet10_fpn', True, params, stats)


def converted(theirs, ours, *more):
    return convert.main([str(theirs), str(ours), '--network', 'maskrcnn_resnet10_fpn', *more])


def test_a_detector_is_converted(tmp_path, capsys, standard_promotion):
    # The whole way from a file in torchvision's layout to a file of ours, without torch.
    numpy_format = pytest.importorskip('safetensors.numpy')
    wanted = random_detector()
    theirs, ours = tmp_path / 'theirs.safetensors', tmp_path / 'ours.npz'
    numpy_format.save_file(to_torchvision(wanted), theirs)
    assert converted(theirs, ours) == 0
    assert 'of 5 categories and the background' in capsys.readouterr().out
    found = detector_weights.load(ours)
    assert found[:2] == wanted[:2]
    jax.tree.map(np.testing.assert_array_equal, found[2:], wanted[2:])
    # The flag reaches the norms' scales: variances of 0.5 to 1.5 make up for 1 by much.
    assert converted(theirs, ours, '--epsilon', '1') == 0
    assert 'epsilon of its norms: 1' in capsys.readouterr().out
    scale = detector_weights.load(ours).params['backbone']['BatchNorm_0']['scale']
    assert (scale < 0.9 * wanted.params['backbone']['BatchNorm_0']['scale']).all()


def test_file_and_key_of_a_mistake_are_named(tmp_path, capsys, standard_promotion):
    # Of a list of files one must know which; of 300 keys too.
    numpy_format = pytest.importorskip('safetensors.numpy')
    theirs, ours = tmp_path / 'theirs.safetensors', tmp_path / 'ours.npz'
    state_dict = to_torchvision(random_detector())
    del state_dict['rpn.head.bbox_pred.bias']
    numpy_format.save_file(state_dict, theirs)
    assert converted(theirs, ours) == 1
    said = capsys.readouterr().err
    assert f'{theirs}: maskrcnn_resnet10_fpn: missing: rpn.head.bbox_pred.bias' in said
    theirs.write_bytes(b'no weights')
    assert converted(theirs, ours) == 1
    assert f'{theirs}: cannot be read' in capsys.readouterr().err
    assert not ours.exists()


@pytest.mark.parametrize('arguments', [['--network=resnet10', '--epsilon=0'], ['--epsilon=-1']])
def test_an_epsilon_that_means_nothing_is_refused(tmp_path, arguments, capsys):
    # Before the file, which may be large, is read. A classifier's norms have the usual one.
    network = ['--network=maskrcnn_resnet10_fpn', *arguments]
    with pytest.raises(SystemExit):
        convert.main([str(tmp_path / 'absent.pth'), str(tmp_path / 'ours.npz'), *network])
    assert 'epsilon: got' in capsys.readouterr().err


def test_a_checkpoint_of_torch_is_read_without_running_code(tmp_path, capsys):
    # torch refuses what is no array; the message names the file and is one line.
    torch = pytest.importorskip('torch')
    theirs, ours = tmp_path / 'theirs.pth', tmp_path / 'ours.npz'
    torch.save({'model': {'a': torch.ones(2)}, 'args': convert.Path('x')}, theirs)
    assert converted(theirs, ours) == 1
    assert capsys.readouterr().err.startswith(f'WeightsError: {theirs}: cannot be read')
    torch.save({'epoch': 3}, theirs)
    assert converted(theirs, ours) == 1
    assert f"{theirs}: epoch: got <class 'int'>, wanted a tensor" in capsys.readouterr().err
