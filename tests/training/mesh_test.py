"""Where arrays live: that classes cut over devices are never put together."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from balms_jax import meta_gradients
from balms_jax.losses import balanced_softmax_cross_entropy_with_integer_labels
from balms_jax.training import mesh

CLASSES, FEATURES, BATCH = 1_000_000, 4, 16


def largest_array(compiled):
    """The most elements that an array of the compiled program has on one device."""
    shapes = re.findall(r'\b(?:f32|s32|u32|pred)\[([\d,]+)\]', compiled.as_text())
    return max(int(np.prod([int(size) for size in shape.split(',')])) for shape in shapes)


def test_a_million_classes_are_never_whole_on_a_device():
    """The loss, its gradient and its meta-gradient: logits [16, 10⁶] stay cut 2 × 4."""
    devices = mesh.data_mesh(8, class_shards=4)

    def arrays(shape, *spec, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(
            shape, dtype, sharding=NamedSharding(devices, PartitionSpec(*spec))
        )

    def losses(kernel, adjustment, batch):
        inputs, labels = batch
        logits = jax.lax.with_sharding_constraint(inputs @ kernel, mesh.by_class(devices, 2))
        return balanced_softmax_cross_entropy_with_integer_labels(logits, labels, adjustment)

    def train_loss(kernel, psi, batch):
        return losses(kernel, psi, batch).mean(), None

    def meta_loss(kernel, batch):
        return losses(kernel, jnp.zeros(CLASSES), batch).mean(), None

    optimizer = optax.sgd(0.1)
    step = meta_gradients.value_and_meta_grad(train_loss, meta_loss, optimizer)
    batch = (arrays((BATCH, FEATURES), 'data'), arrays((BATCH,), 'data', dtype=jnp.int32))
    kernel, psi = arrays((FEATURES, CLASSES), None, 'model'), arrays((CLASSES,), 'model')
    opt_state = jax.eval_shape(optimizer.init, kernel)
    compiled = jax.jit(step).lower(psi, kernel, opt_state, batch, batch).compile()
    assert largest_array(compiled) <= BATCH // 2 * CLASSES // 4
    assert 'all-gather' not in compiled.as_text()


def test_devices_that_cannot_share_the_classes_are_refused():
    """Some would have no classes, or no examples."""
    with pytest.raises(ValueError, match='class_shards: got 3, wanted a divisor of the 8 devices'):
        mesh.data_mesh(8, class_shards=3)
