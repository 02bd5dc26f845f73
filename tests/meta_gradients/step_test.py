"""The exact modes are one derivative computed in different orders; the closed form says which."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax import losses, meta_gradients, models, priors, rebalancers

pytestmark = pytest.mark.usefixtures('standard_promotion')

CLASSES, FEATURES, BATCH = 4, 5, 12
COUNTS = np.array([40, 20, 8, 2])
EXACT = ('reverse', 'forward_over_reverse', 'lean', 'per_example', 'ghost_product')
SEVERAL_STEPS = ('reverse', 'forward_over_reverse', 'lean', 'finite_difference')


def network(params, inputs):
    hidden = jnp.tanh(inputs @ params['hidden'])
    return hidden @ params['kernel'] + params['bias'][None, :]


def example_losses(params, batch):
    inputs, draw = batch
    log_prior = priors.log_prior(COUNTS.astype(np.float64))
    return losses.balanced_softmax_cross_entropy_with_integer_labels(
        network(params, inputs), draw.classes, log_prior
    ), inputs.sum()


def train_loss_of(rebalancer):
    return meta_gradients.WeightedLosses(
        example_losses, lambda psi, batch, values: rebalancer.weights(psi, batch[1], values)
    )


def meta_loss(params, batch):
    inputs, labels = batch
    values = optax.softmax_cross_entropy_with_integer_labels(network(params, inputs), labels)
    return values.mean(), labels.sum()


def problem(rebalancer, seed=0):
    keys = jax.random.split(jax.random.key(seed), 7)
    params = {
        'hidden': jax.random.normal(keys[0], (FEATURES, FEATURES)),
        'kernel': jax.random.normal(keys[1], (FEATURES, CLASSES)),
        'bias': jax.random.normal(keys[2], (CLASSES,)),
    }
    psi = jax.random.normal(keys[3], (CLASSES,))
    batch = (
        jax.random.normal(keys[4], (BATCH, FEATURES)),
        rebalancer.draw(keys[5], psi, BATCH),
    )
    meta_batch = (
        jax.random.normal(keys[6], (BATCH, FEATURES)),
        jnp.arange(BATCH, dtype=jnp.int32) % CLASSES,
    )
    return psi, params, batch, meta_batch


def frozen_hidden(optimizer):
    return optax.multi_transform(
        {'train': optimizer, 'freeze': optax.set_to_zero()},
        {'hidden': 'freeze', 'kernel': 'train', 'bias': 'train'},
    )


OPTIMIZERS = {
    'sgd': optax.sgd(0.3),
    'momentum': optax.sgd(0.3, 0.9),
    'nesterov': optax.sgd(0.3, 0.9, nesterov=True),
    'weight_decay': optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.3, 0.9)),
    'schedule': optax.sgd(optax.cosine_decay_schedule(0.3, 10), 0.9),
    'adam': optax.adam(0.1),
    'adamw': optax.adamw(0.1, weight_decay=0.1),
    'clip': optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(0.3)),
    'clip_adam': optax.chain(optax.clip_by_global_norm(0.01), optax.adam(0.1)),
    'rmsprop': optax.rmsprop(0.1),
    'adagrad': optax.adagrad(0.1),
    'adabelief': optax.adabelief(0.1),
    'nadam': optax.nadam(0.1),
    'radam': optax.radam(0.1),
    'yogi': optax.yogi(0.1),
    'novograd': optax.novograd(0.1),
    'lamb': optax.lamb(0.1),
    'lars': optax.lars(0.1),
    'muon': optax.contrib.muon(0.1),
    'adadelta': optax.adadelta(0.1),
    'adaptive_clip': optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.3)),
    'centralised': optax.chain(optax.centralize(), optax.sgd(0.3, 0.9)),
    'normalised': optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.3)),
    'masked_decay': optax.chain(
        optax.masked(
            optax.add_decayed_weights(0.1), {'hidden': True, 'kernel': True, 'bias': False}
        ),
        optax.sgd(0.3, 0.9),
    ),
    'noisy': optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.3)),
    'averaged': optax.chain(optax.adam(0.1), optax.ema(0.9)),
    'apply_if_finite': optax.apply_if_finite(optax.adam(0.1), 3),
    'frozen': frozen_hidden(optax.sgd(0.3, 0.9)),
    'frozen_adam': frozen_hidden(optax.adam(0.1)),
}
REBALANCERS = {
    'meta_sampler': rebalancers.meta_sampler(COUNTS),
    'meta_sampler_examples': rebalancers.meta_sampler(COUNTS, estimator='examples'),
    'meta_reweighter': rebalancers.meta_reweighter(COUNTS),
}


TRAIN_LOSS = train_loss_of(REBALANCERS['meta_sampler'])


def take_step(mode, optimizer, rebalancer, warm_steps=0):
    psi, params, batch, meta_batch = problem(rebalancer)
    loss = train_loss_of(rebalancer)
    step = meta_gradients.value_and_meta_grad(loss, meta_loss, optimizer, mode=mode)
    if warm_steps:
        step = jax.jit(step)
    out = step(psi, params, optimizer.init(params), batch, meta_batch)
    for _ in range(warm_steps):
        out = step(psi, out.params, out.opt_state, batch, meta_batch)
    return out


def reference(optimizer, rebalancer):
    """Differentiates the whole step by jax.grad, as one would write it without this module."""
    psi, params, batch, meta_batch = problem(rebalancer)
    opt_state = optimizer.init(params)

    def through_the_step(psi):
        grads = jax.grad(lambda p: train_loss_of(rebalancer)(p, psi, batch)[0])(params)
        updates, _ = optimizer.update(grads, opt_state, params)
        return meta_loss(optax.apply_updates(params, updates), meta_batch)[0]

    return jax.grad(through_the_step)(psi)


@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_exact_modes_equal_grad_through_the_written_out_step(optimizer):
    """They are the same derivative: only rounding may tell them apart, for any transformation.

    Operation by operation: compiled, Adam's first step, whose derivative nearly cancels, moves by
    1e-11 with any change of the program, as it does with the last bit of θ.
    """
    with jax.enable_x64(True):
        rebalancer = REBALANCERS['meta_sampler']
        wanted = reference(OPTIMIZERS[optimizer], rebalancer)
        assert np.linalg.norm(wanted) > 0
        for mode in EXACT:
            psi_grad = take_step(mode, OPTIMIZERS[optimizer], rebalancer).psi_grad
            assert np.linalg.norm(psi_grad - wanted) < 1e-12 * np.linalg.norm(wanted), mode


@pytest.mark.parametrize('name', REBALANCERS)
def test_exact_modes_agree_for_every_rebalancer_after_some_steps(name):
    """With momentum in the optimizer's state the update is no longer the first one."""
    with jax.enable_x64(True):
        outs = [
            take_step(mode, OPTIMIZERS['nesterov'], REBALANCERS[name], warm_steps=3)
            for mode in EXACT
        ]
        for out in outs[1:]:
            np.testing.assert_allclose(out.psi_grad, outs[0].psi_grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize('mode', meta_gradients.MODES)
@pytest.mark.parametrize('optimizer', ['nesterov', 'adamw', 'clip'])
def test_the_real_step_is_the_plain_step(mode, optimizer):
    """z has value 1, so the step that is differentiated is the one that training takes."""
    with jax.enable_x64(True):
        rebalancer, optimizer = REBALANCERS['meta_sampler'], OPTIMIZERS[optimizer]
        _, params, batch, _ = problem(rebalancer)
        out = take_step(mode, optimizer, rebalancer)

        def plain(params):
            values = losses.balanced_softmax_cross_entropy_with_integer_labels(
                network(params, batch[0]), batch[1].classes, priors.log_prior(COUNTS)
            )
            return values.mean()

        value, grads = jax.value_and_grad(plain)(params)
        updates, opt_state = optimizer.update(grads, optimizer.init(params), params)
        chex.assert_trees_all_close(out.params, optax.apply_updates(params, updates), rtol=1e-12)
        chex.assert_trees_all_close(out.opt_state, opt_state, rtol=1e-12)
        np.testing.assert_allclose(out.train_loss, value, rtol=1e-12)
        assert float(out.train_aux) == float(batch[0].sum())


@pytest.mark.parametrize('mode', EXACT)
def test_closed_form_of_one_sgd_step(mode):
    """∂L_meta/∂z_b = −(lr / B) ⟨∇L_meta(θ̃), ∇ℓ_b(θ)⟩, then ∂z_b/∂ψ by the soft sample."""
    rate = 0.3
    with jax.enable_x64(True):
        rebalancer = REBALANCERS['meta_sampler_examples']
        psi, params, batch, meta_batch = problem(rebalancer)
        out = take_step(mode, optax.sgd(rate), rebalancer)
        meta_grads = jax.grad(lambda p: meta_loss(p, meta_batch)[0])(out.params)
        s, labels = jax.nn.sigmoid(psi), np.repeat(np.arange(CLASSES), COUNTS)
        wanted = np.zeros(CLASSES)
        for b in range(BATCH):

            def one_loss(params, b=b):
                return losses.balanced_softmax_cross_entropy_with_integer_labels(
                    network(params, batch[0][b : b + 1])[0],
                    batch[1].classes[b],
                    priors.log_prior(COUNTS),
                )

            products = jax.tree.map(jnp.vdot, meta_grads, jax.grad(one_loss)(params))
            dz = -rate / BATCH * sum(jax.tree.leaves(products))
            soft = jax.nn.softmax(jax.nn.log_sigmoid(psi)[labels] + batch[1].noise[b])
            mass = np.bincount(labels, np.asarray(soft), CLASSES)
            drawn = soft[batch[1].examples[b]]
            same = np.arange(CLASSES) == int(batch[1].classes[b])
            wanted += np.asarray(dz * (1 - s) * drawn) * (same - mass)
        np.testing.assert_allclose(out.psi_grad, wanted, rtol=1e-10)


@pytest.mark.parametrize('mode', SEVERAL_STEPS)
@pytest.mark.parametrize('optimizer', ['adamw', 'frozen'])
def test_k_steps_equal_grad_through_the_written_out_steps(mode, optimizer):
    """Momentum and weight decay carry the derivative from step to step."""
    optimizer, rebalancer = OPTIMIZERS[optimizer], REBALANCERS['meta_sampler']
    with jax.enable_x64(True):
        psi, params, _, meta_batch = problem(rebalancer)
        batches = [problem(rebalancer, seed)[2] for seed in range(3)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        loss = train_loss_of(rebalancer)
        step = meta_gradients.value_and_meta_grad(loss, meta_loss, optimizer, mode=mode, steps=3)
        out = jax.jit(step)(psi, params, optimizer.init(params), stacked, meta_batch)

        def through_the_steps(psi):
            after, opt_state = params, optimizer.init(params)
            for batch in batches:
                grads = jax.grad(lambda p, batch=batch: loss(p, psi, batch)[0])(after)
                updates, opt_state = optimizer.update(grads, opt_state, after)
                after = optax.apply_updates(after, updates)
            return meta_loss(after, meta_batch)[0], (after, opt_state)

        wanted, (after, opt_state) = jax.jit(jax.grad(through_the_steps, has_aux=True))(psi)
        rtol = 1e-6 if mode == 'finite_difference' else 1e-10
        np.testing.assert_allclose(out.psi_grad, wanted, rtol=rtol, atol=1e-13)
        chex.assert_trees_all_close(out.params, after, rtol=1e-10)
        chex.assert_trees_all_close(out.opt_state, opt_state, rtol=1e-10)
        assert out.train_loss.shape == out.train_aux.shape == (3,)


def test_psi_may_be_any_hyperparameter():
    """Nothing in the product says that ψ weighs losses: here it is τ itself and a logit shift."""
    with jax.enable_x64(True):
        _, params, (inputs, draw), meta_batch = problem(REBALANCERS['meta_sampler'])
        psi = {'tau': jnp.asarray(1.0), 'shift': jnp.linspace(0.0, 1.0, CLASSES)}

        def loss(params, psi, batch):
            logits = network(params, batch[0]) + psi['shift'][None, :]
            return losses.balanced_softmax_cross_entropy_with_integer_labels(
                logits, batch[1].classes, priors.log_prior(COUNTS), tau=psi['tau']
            ).mean(), None

        optimizer = optax.adamw(0.1)
        outs = [
            meta_gradients.value_and_meta_grad(loss, meta_loss, optimizer, mode=mode)(
                psi, params, optimizer.init(params), (inputs, draw), meta_batch
            )
            for mode in ('reverse', 'forward_over_reverse', 'lean')
        ]
        for out in outs[1:]:
            chex.assert_trees_all_close(out.psi_grad, outs[0].psi_grad, rtol=1e-10)
        assert float(jnp.abs(outs[0].psi_grad['tau'])) > 0


@jax.custom_vjp
def by_hand(logits, labels):
    """A cross-entropy with a backward pass of its own, as a fused kernel's."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def forward_by_hand(logits, labels):
    """Not by_hand again, which would hide its tangent."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels), (logits, labels)


def backward_by_hand(kept, cotangent):
    logits, labels = kept
    return cotangent[:, None] * (jax.nn.softmax(logits) - jax.nn.one_hot(labels, CLASSES)), None


by_hand.defvjp(forward_by_hand, backward_by_hand)


@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('mode', ['reverse', 'forward_over_reverse', 'lean', 'finite_difference'])
def test_a_loss_may_have_a_backward_pass_of_its_own(mode, parts):
    """It has no forward mode: its two passes must be pushed forward, and not itself."""
    with jax.enable_x64(True):
        psi, params, (inputs, draw), meta_batch = problem(REBALANCERS['meta_sampler'])

        def through(cross_entropy):
            def loss(params, psi, batch):
                weights = jax.nn.sigmoid(psi)[batch[1]]  # The rule itself sees θ alone.
                values = cross_entropy(network(params, batch[0]), batch[1])
                return jnp.mean(weights * values), None

            step = meta_gradients.value_and_meta_grad(
                loss, meta_loss, optax.sgd(0.3), mode=mode, parts=parts
            )
            state = optax.sgd(0.3).init(params)
            return jax.jit(step)(psi, params, state, (inputs, draw.classes), meta_batch)

        out = through(by_hand)
        plain = through(optax.softmax_cross_entropy_with_integer_labels)
        rtol = 1e-6 if mode == 'finite_difference' else 1e-10
        np.testing.assert_allclose(out.psi_grad, plain.psi_grad, rtol=rtol)
        chex.assert_trees_all_close(out.params, plain.params, rtol=1e-12)


def test_finite_difference_is_close_on_a_smooth_network():
    """A central difference errs by h², here far below the gradient, in double precision."""
    with jax.enable_x64(True):
        rebalancer = REBALANCERS['meta_sampler']
        out = take_step('finite_difference', optax.sgd(0.3, 0.9), rebalancer)
        wanted = reference(optax.sgd(0.3, 0.9), rebalancer)
        np.testing.assert_allclose(out.psi_grad, wanted, rtol=1e-6)


@pytest.mark.parametrize('optimizer', ['adam', 'adamw', 'clip', 'clip_adam', 'frozen_adam'])
@pytest.mark.parametrize('mode', meta_gradients.MODES)
def test_a_dead_unit_does_not_make_the_gradient_nan(mode, optimizer):
    """Its gradient is exactly 0, where the derivative of Adam's root and of a norm is 0/0."""
    rebalancer = REBALANCERS['meta_sampler']
    psi, params, batch, meta_batch = problem(rebalancer)
    batch = (batch[0].at[:, 0].set(0.0), batch[1])  # The first input never speaks.
    optimizer = OPTIMIZERS[optimizer]
    loss = train_loss_of(rebalancer)
    step = meta_gradients.value_and_meta_grad(loss, meta_loss, optimizer, mode=mode)
    out = jax.jit(step)(psi, params, optimizer.init(params), batch, meta_batch)
    assert np.all(np.isfinite(out.psi_grad))
    assert np.any(out.psi_grad != 0)


def test_unknown_mode_is_refused_by_name():
    """The message must say what can be had instead."""
    with pytest.raises(ValueError, match=r"mode: got 'backward', wanted one of reverse"):
        meta_gradients.value_and_meta_grad(TRAIN_LOSS, meta_loss, optax.sgd(0.1), mode='backward')


def resnet_step(mode, *, dtype, batch_size, depth='resnet32', frozen_statistics=False):
    """An end-to-end meta step of a CIFAR network, and the plain step beside it."""
    net = models.build(depth, CLASSES)
    key = jax.random.key(0)
    images = jax.random.normal(key, (batch_size, 32, 32, 3), dtype)
    params, stats = jax.jit(net.init)(key, images[:1])
    params, stats = jax.tree.map(lambda x: x.astype(dtype), (params, stats))
    optimizer = optax.sgd(0.1, 0.9, nesterov=True)
    rebalancer = REBALANCERS['meta_sampler']
    psi = jnp.zeros(CLASSES, dtype)
    draw = rebalancer.draw(key, psi, batch_size)
    labels = jnp.arange(batch_size, dtype=jnp.int32) % CLASSES

    def logits(params, images):
        features, new_stats = net.features(params['backbone'], stats, images, not frozen_statistics)
        return net.logits(params['classifier'], features), new_stats

    def example_losses(params, batch):
        images, draw = batch
        out, new_stats = logits(params, images)
        return losses.balanced_softmax_cross_entropy_with_integer_labels(
            out, draw.classes, priors.log_prior(COUNTS)
        ), new_stats

    train_loss = meta_gradients.WeightedLosses(
        example_losses, lambda psi, batch, values: rebalancer.weights(psi, batch[1], values)
    )

    def meta_loss(params, batch):
        images, labels = batch
        out, _ = logits(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean(), None

    def plain(params, opt_state, batch):
        (value, new_stats), grads = jax.value_and_grad(
            lambda p: train_loss(p, jax.lax.stop_gradient(psi), batch), has_aux=True
        )(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, new_stats, value

    step = meta_gradients.value_and_meta_grad(train_loss, meta_loss, optimizer, mode=mode)
    arguments = (psi, params, optimizer.init(params), (images, draw), (images[::-1], labels))
    return step, plain, arguments


@pytest.mark.parametrize(
    ('modes', 'frozen_statistics'),
    [(('reverse', 'forward_over_reverse'), False), (('reverse', 'ghost_product'), True)],
)
def test_exact_modes_agree_on_a_resnet_in_double_precision(modes, frozen_statistics):
    """Batch norm in training mode couples the examples, which the ghost product does not take.

    That one has a rule for every operation of a network; the other modes are JAX's derivatives.
    """
    with jax.enable_x64(True):
        grads = []
        for mode in modes:
            step, _, arguments = resnet_step(
                mode,
                dtype=jnp.float64,
                batch_size=8,
                depth='resnet8',
                frozen_statistics=frozen_statistics,
            )
            grads.append(np.asarray(jax.jit(step)(*arguments).psi_grad))
    for grad in grads[1:]:
        assert np.linalg.norm(grad - grads[0]) < 1e-10 * np.linalg.norm(grads[0])


@pytest.mark.parametrize(
    ('mode', 'frozen_statistics', 'most_flops', 'most_memory'),
    [
        ('reverse', False, 2.67, 1.75),
        ('forward_over_reverse', False, 2.67, 1.75),
        ('per_example', False, 2.67, 1.75),
        ('lean', False, 3.0, 1.1),
        ('finite_difference', False, 2.7, 1.05),
        ('ghost_product', True, 2.34, 3.0),
    ],
)
def test_compiled_cost_is_at_the_floor(mode, frozen_statistics, most_flops, most_memory):
    """As the compiler counts: 8 forward passes against 3 of the plain step, 9 for the lean mode.

    A real step computed again would make it 11/3. Memory beyond the plain step's is a few copies
    of the parameters, which weigh less in a deeper network than in this one.
    """
    step, _, arguments = cost_step(mode, frozen_statistics)
    flops, memory = compiled_cost(step, *arguments)
    plain_flops, plain_memory = plain_cost(frozen_statistics)
    assert 2.2 < flops / plain_flops <= most_flops
    assert memory / plain_memory <= most_memory


def cost_step(mode, frozen_statistics):
    return resnet_step(
        mode,
        dtype=jnp.float32,
        batch_size=64,
        depth='resnet14',
        frozen_statistics=frozen_statistics,
    )


def compiled_cost(function, *arguments):
    """FLOPs and bytes of temporary memory, as the compiler counts them."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.cost_analysis()['flops'], compiled.memory_analysis().temp_size_in_bytes


@functools.cache
def plain_cost(frozen_statistics):
    _, plain, arguments = cost_step('reverse', frozen_statistics)
    return compiled_cost(plain, *arguments[1:4])


def reading_losses():
    """Weights that grow with the losses, as Meta-Weight-Net's do."""
    train_loss = meta_gradients.WeightedLosses(
        lambda w, x: ((w - x) ** 2, None), lambda psi, x, losses: jax.nn.sigmoid(psi * losses)
    )
    arguments = jnp.array(0.5), jnp.array(0.2), jnp.array([1.0, -1.0, 2.0]), jnp.array([0.5])
    return train_loss, lambda w, x: (((w - x) ** 2).mean(), None), arguments


@pytest.mark.parametrize('mode', meta_gradients.MODES)
def test_weights_are_not_differentiated_by_the_losses_that_they_read(mode):
    """A difference moves θ, and the losses with it: the weights must not follow."""
    with jax.enable_x64(True):
        train_loss, meta_loss, (psi, w, x, clean) = reading_losses()
        rate = 0.1
        values = (w - x) ** 2

        def written_out(psi):
            z = jax.nn.sigmoid(psi * values)
            return ((w - rate * jnp.mean(z * 2 * (w - x)) - clean) ** 2).mean()

        optimizer = optax.sgd(rate)
        step = meta_gradients.value_and_meta_grad(train_loss, meta_loss, optimizer, mode=mode)
        out = step(psi, w, optimizer.init(w), x, clean)
        np.testing.assert_allclose(out.psi_grad, jax.grad(written_out)(psi), rtol=1e-6)


@pytest.mark.parametrize('mode', ['reverse', 'lean', 'finite_difference'])
def test_nor_over_several_steps(mode):
    with jax.enable_x64(True):
        train_loss, meta_loss, (psi, w, x, clean) = reading_losses()
        rate = 0.1

        def written_out(psi):
            at = w
            for _ in range(3):
                z = jax.nn.sigmoid(psi * jax.lax.stop_gradient((at - x) ** 2))
                at = at - rate * jax.grad(lambda w, z=z: jnp.mean(z * (w - x) ** 2))(at)
            return ((at - clean) ** 2).mean()

        optimizer = optax.sgd(rate)
        step = meta_gradients.value_and_meta_grad(
            train_loss, meta_loss, optimizer, mode=mode, steps=3
        )
        out = step(psi, w, optimizer.init(w), jnp.stack([x] * 3), clean)
        np.testing.assert_allclose(out.psi_grad, jax.grad(written_out)(psi), rtol=1e-6)


@pytest.mark.parametrize('mode', meta_gradients.MODES)
def test_what_is_not_one_number_an_example_is_refused(mode):
    """Broadcast, weights of [batch, 1] would make a batch × batch loss in silence."""
    train_loss, meta_loss, (psi, w, x, clean) = reading_losses()
    optimizer = optax.sgd(0.1)
    column = meta_gradients.WeightedLosses(
        train_loss.losses, lambda psi, x, losses: jnp.full((3, 1), psi)
    )
    step = meta_gradients.value_and_meta_grad(column, meta_loss, optimizer, mode=mode)
    with pytest.raises(ValueError, match=r'got shapes \(3, 1\) and \(3,\), wanted one of each'):
        step(psi, w, optimizer.init(w), x, clean)
    step = meta_gradients.value_and_meta_grad(train_loss, meta_loss, optimizer, mode=mode)
    with pytest.raises(ValueError, match=r"psi\['rate'\]: got int32, wanted a floating type"):
        step({'rate': jnp.array(1)}, w, optimizer.init(w), x, clean)
