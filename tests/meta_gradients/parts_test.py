"""A step in micro-batches is the step of the whole batches, in the memory of one of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax import meta_gradients
from balms_jax.meta_gradients import parts as in_parts

pytestmark = pytest.mark.usefixtures('standard_promotion')

CLASSES, FEATURES, BATCH = 4, 5, 16
EXACT = ('reverse', 'forward_over_reverse', 'lean', 'per_example', 'ghost_product')
OPTIMIZERS = {
    'momentum': optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.3, 0.9, nesterov=True)),
    'clip_adam': optax.chain(optax.clip_by_global_norm(0.01), optax.adam(0.1)),
}


def losses(params, batch):
    inputs, labels = batch
    logits = jnp.tanh(inputs @ params['hidden']) @ params['kernel']
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels), inputs.sum()


def normalised(psi, batch, values):
    """Weights of mean 1 over the batch that read its losses: none can be had of a part alone."""
    return BATCH * jax.nn.softmax(psi[batch[1]] * (1 + values))


def adjusted(params, psi, batch):
    """A training loss that ψ enters through the logits, with a term without examples."""
    inputs, labels = batch
    logits = jnp.tanh(inputs @ params['hidden']) @ params['kernel'] + psi
    values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return values.mean() + psi[0] * jnp.sum(params['kernel'] ** 2), inputs.sum()


def meta_loss(params, batch):
    values, aux = losses(params, batch)
    return values.mean(), aux


WEIGHTED = meta_gradients.WeightedLosses(losses, normalised)


def take_step(train_loss, mode, optimizer, parts, carry=None, meta_loss=meta_loss):
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        'hidden': jax.random.normal(keys[0], (FEATURES, FEATURES)),
        'kernel': jax.random.normal(keys[1], (FEATURES, CLASSES)),
    }
    psi = jax.random.normal(keys[2], (CLASSES,))
    batch, meta_batch = (
        (jax.random.normal(key, (size, FEATURES)), jnp.arange(size) * 7 // 3 % CLASSES)
        for key, size in ((keys[3], BATCH), (keys[4], BATCH // 2))
    )
    step = meta_gradients.value_and_meta_grad(
        train_loss, meta_loss, optimizer, mode=mode, parts=parts
    )
    return jax.jit(step)(psi, params, optimizer.init(params), batch, meta_batch, carry)


def assert_alike(whole, parts, rtol, atol):
    for name in ('meta_loss', 'psi_grad', 'train_loss', 'params', 'opt_state', 'example_grads'):
        jax.tree.map(
            lambda a, b, n=name: np.testing.assert_allclose(a, b, rtol, atol, err_msg=n),
            getattr(whole, name),
            getattr(parts, name),
        )


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
@pytest.mark.parametrize('mode', EXACT)
def test_parts_give_the_step_of_the_whole_batch(mode, optimizer):
    """Every term is linear in the examples: g, ∇L_meta at θ̃, and the product along u.

    Where weights follow the whole batch's losses, a part's own mean would give another ψ-gradient.
    """
    whole, parts = (take_step(WEIGHTED, mode, OPTIMIZERS[optimizer], n) for n in (1, 4))
    assert_alike(whole, parts, 2e-4, 1e-6)
    assert (parts.example_grads is None) == (mode not in ('per_example', 'ghost_product'))
    np.testing.assert_allclose(parts.train_aux.sum(), whole.train_aux, rtol=1e-5)
    np.testing.assert_allclose(parts.meta_aux.sum(), whole.meta_aux, rtol=1e-5)


@pytest.mark.parametrize('mode', ['reverse', 'forward_over_reverse', 'lean'])
def test_parts_of_any_loss_that_is_a_mean_over_examples(mode):
    """ψ may enter in any way, terms without examples among them: each part has them whole."""
    whole, parts = (take_step(adjusted, mode, OPTIMIZERS['momentum'], n) for n in (1, 4))
    assert_alike(whole, parts, 2e-4, 1e-6)


@pytest.mark.parametrize('value', [jnp.nan, jnp.inf])
@pytest.mark.parametrize('mode', EXACT)
def test_what_an_aux_holds_changes_no_part(mode, value):
    """A mean over an absent class is NaN; it is shown beside the losses and is none of them."""

    def shown(loss):
        return lambda *inputs: (loss(*inputs)[0], value * jnp.ones_like(inputs[-1][0][0]))

    train_loss = meta_gradients.WeightedLosses(shown(losses), normalised)
    whole = take_step(WEIGHTED, mode, OPTIMIZERS['momentum'], 1)
    for train, meta in ((train_loss, meta_loss), (WEIGHTED, shown(meta_loss))):
        parts = take_step(train, mode, OPTIMIZERS['momentum'], 4, meta_loss=meta)
        assert_alike(whole, parts, 2e-4, 1e-6)


def test_a_difference_in_parts_holds_the_weights():
    """Weights that read the losses would move with θ, and the difference with them."""
    whole, parts = (
        take_step(WEIGHTED, mode, OPTIMIZERS['momentum'], n)
        for mode, n in (('reverse', 1), ('finite_difference', 4))
    )
    np.testing.assert_allclose(parts.psi_grad, whole.psi_grad, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize('mode', ['lean', 'per_example'])
def test_a_carry_goes_from_part_to_part(mode):
    """As running statistics do: x ← 0.5 x + mean, of the parts in turn, and the meta loss last."""

    def carried(params, batch, running):
        values, _ = losses(params, batch)
        return values, 0.5 * running + batch[0].mean()

    def meta(params, batch, running):
        values, _ = losses(params, batch)
        return values.mean() + running, running

    train_loss = meta_gradients.WeightedLosses(carried, normalised)
    out = take_step(train_loss, mode, OPTIMIZERS['momentum'], 4, jnp.float32(8), meta)
    inputs = jax.random.normal(jax.random.split(jax.random.key(0), 5)[3], (BATCH, FEATURES))
    wanted = 8.0
    for part in range(4):
        wanted = 0.5 * wanted + float(inputs[part::4].mean())
    np.testing.assert_allclose(out.train_aux, wanted, rtol=1e-5)
    np.testing.assert_allclose(out.meta_aux, np.full(4, wanted), rtol=1e-5)
    plain = take_step(WEIGHTED, mode, OPTIMIZERS['momentum'], 1)
    np.testing.assert_allclose(out.psi_grad, plain.psi_grad, rtol=2e-4, atol=1e-6)


def deep(params, batch):
    inputs, labels = batch
    x = inputs
    for kernel in params:
        x = jnp.tanh(x @ kernel)
    return optax.softmax_cross_entropy_with_integer_labels(x, labels), None


def compiled(mode, parts, weights):
    """A meta step of twelve layers on a batch whose activations are most of its memory."""
    shapes = [jax.ShapeDtypeStruct((16, 16), jnp.float32)] * 12
    batch = jax.ShapeDtypeStruct((4096, 16), jnp.float32), jax.ShapeDtypeStruct((4096,), jnp.int32)
    optimizer = optax.sgd(0.1)
    step = meta_gradients.value_and_meta_grad(
        meta_gradients.WeightedLosses(deep, weights),
        lambda params, batch: (deep(params, batch)[0].mean(), None),
        optimizer,
        mode=mode,
        parts=parts,
    )
    psi = jax.ShapeDtypeStruct((16,), jnp.float32)
    arguments = (psi, shapes, jax.eval_shape(optimizer.init, shapes), batch, batch)
    return jax.jit(step).lower(*arguments).compile()


def by_class(psi, batch, values):
    return jnp.exp(psi)[batch[1]]


@pytest.mark.parametrize('mode', EXACT)
def test_the_memory_is_that_of_a_part(mode):
    """That is what parts are for: no activation may outlive its micro-batch, in any mode."""
    whole, parts = (
        compiled(mode, n, by_class).memory_analysis().temp_size_in_bytes for n in (1, 4)
    )
    assert parts < 0.45 * whole, parts / whole


def test_weights_that_read_no_losses_cost_no_pass_for_them():
    """Most weights are of ψ and the draw alone; a forward pass more would be a tenth."""

    def flops(weights):
        return compiled('lean', 4, weights).cost_analysis()['flops']

    assert flops(lambda psi, batch, values: by_class(psi, batch, values) * values) > 1.05 * flops(
        by_class
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'parts': 0}, 'parts: got 0 for 1 steps, wanted a whole number of at least 1'),
        ({'parts': 2, 'steps': 3}, 'parts: got 2 for 3 steps, wanted'),
    ],
)
def test_parts_that_cannot_be_are_refused(options, message):
    """Several steps have a memory of their own kind."""
    with pytest.raises(ValueError, match=message):
        meta_gradients.value_and_meta_grad(WEIGHTED, meta_loss, optax.sgd(0.1), **options)


def test_a_batch_that_cannot_be_cut_is_refused_by_its_array():
    """Parts of unequal size have another mean than the whole."""
    batch = {'x': jnp.zeros((6, 2)), 'scale': jnp.zeros(())}
    with pytest.raises(ValueError, match=r"batch\['scale'\]: got shape \(\), wanted a leading"):
        in_parts.accumulate(lambda *_: ((), (), None), batch, 2)
    with pytest.raises(
        ValueError, match=r"batch\['x'\]: got shape \(6, 2\), wanted .* the 4 parts"
    ):
        in_parts.accumulate(lambda *_: ((), (), None), {'x': batch['x']}, 4)


def test_an_array_that_examples_share_is_refused():
    """A table that the examples index would be cut with them, and a part would read another row."""
    optimizer = optax.sgd(0.1)

    def loss(w, batch):
        return jnp.mean((w - batch['table'][batch['i']]) ** 2), None

    def whole(w, i):
        return jnp.mean((w - i) ** 2), None

    i, table, w = jnp.arange(8) % 4, jnp.arange(4.0), jnp.float32(1)
    shared = {'i': i, 'table': table}
    for train, meta, batches, name in (
        (loss, whole, (shared, i), 'batch'),
        (whole, loss, (i, shared), 'meta_batch'),
    ):
        step = meta_gradients.value_and_meta_grad(
            lambda w, psi, batch, train=train: train(w - psi, batch), meta, optimizer, parts=2
        )
        message = (
            rf"^{name}\['table'\]: got shape \(4,\), wanted a leading axis of 8, as {name}\['i'\]"
        )
        with pytest.raises(ValueError, match=message):
            step(w, w, optimizer.init(w), *batches)
