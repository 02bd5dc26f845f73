"""The implicit gradient is the derivative of the retrained minimum, and the limit of K steps."""

import functools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from balms_jax import losses, meta_gradients, priors, rebalancers
from balms_jax.meta_gradients.implicit import implicit_meta_grad

CLASSES, FEATURES, EXAMPLES, DECAY, RATE = 4, 5, 40, 0.1, 0.5
COUNTS = np.array([20, 12, 6, 2])
LOG_PRIOR = priors.log_prior(COUNTS)
REWEIGHTER = rebalancers.meta_reweighter(COUNTS)
EIGENVALUES = (0.5, 1, 2, 4, 6, 9)


def logits(params, inputs):
    return inputs @ params['kernel'] + params['bias'][None, :]


def train_loss(params, psi, batch):
    """A head's balanced softmax, its losses weighted by class, with weight decay."""
    inputs, draw = batch
    values = losses.balanced_softmax_cross_entropy_with_integer_labels(
        logits(params, inputs), draw.classes, LOG_PRIOR.astype(inputs.dtype)
    )
    decay = DECAY / 2 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.mean(REWEIGHTER.weights(psi, draw, values) * values) + decay, inputs.sum()


def meta_loss(params, batch):
    inputs, labels = batch
    values = optax.softmax_cross_entropy_with_integer_labels(logits(params, inputs), labels)
    return values.mean(), labels.sum()


def head():
    """ψ, a start, a long-tailed training set, a balanced meta set; in double precision."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES, dtype=np.int32), COUNTS)
    meta_labels = np.arange(EXAMPLES, dtype=np.int32) % CLASSES
    centres = generator.normal(size=(CLASSES, FEATURES))
    inputs, meta_inputs = (
        centres[classes] + generator.normal(size=(EXAMPLES, FEATURES))
        for classes in (labels, meta_labels)
    )
    params = {'kernel': generator.normal(size=(FEATURES, CLASSES)), 'bias': np.zeros(CLASSES)}
    draw = rebalancers.Draw(np.arange(EXAMPLES), labels)
    psi = generator.normal(size=CLASSES)
    return jax.tree.map(jnp.asarray, (psi, params, (inputs, draw), (meta_inputs, meta_labels)))


def flat_loss(params, psi, batch):
    """L as a function of the parameters' vector, and the way back from it."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return flat, unravel, lambda flat, psi=psi: train_loss(unravel(flat), psi, batch)[0]


@jax.jit
def newton(psi, params, batch):
    """θ*(ψ), by ten steps from zero."""
    flat, unravel, loss = flat_loss(params, psi, batch)

    def step(_, flat):
        return flat - jnp.linalg.solve(jax.hessian(loss)(flat), jax.grad(loss)(flat))

    return unravel(jax.lax.fori_loop(0, 10, step, jnp.zeros_like(flat)))


def converged_head():
    psi, params, batch, meta_batch = head()
    return psi, newton(psi, params, batch), batch, meta_batch


@jax.jit
def dense(psi, params, batch, meta_batch):
    """The meta-gradient by the whole Hessian and the whole mixed derivative; w; H."""
    flat, unravel, loss = flat_loss(params, psi, batch)
    hessian = jax.hessian(loss)(flat)
    mixed = jax.jacfwd(jax.grad(loss), argnums=1)(flat, psi)
    v = jax.grad(lambda flat: meta_loss(unravel(flat), meta_batch)[0])(flat)
    w = jnp.linalg.solve(hessian, v)
    return -mixed.T @ w, unravel(w), hessian


@functools.partial(jax.jit, static_argnames='steps')
def unrolled(psi, params, batch, meta_batch, steps):
    """∇_ψ of the meta loss after each of K steps of SGD, [K, classes], in forward mode."""

    def meta_losses(psi):
        def step(params, _):
            grads = jax.grad(lambda p: train_loss(p, psi, batch)[0])(params)
            params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
            return params, meta_loss(params, meta_batch)[0]

        return jax.lax.scan(step, params, length=steps)[1]

    return jax.jacfwd(meta_losses)(psi)


@functools.cache
def compiled(train_loss, meta_loss, **options):
    return jax.jit(implicit_meta_grad(train_loss, meta_loss, **options))


def implicit(problem, train_loss=train_loss, meta_loss=meta_loss, **options):
    """The function under test, its conjugate gradients run to the end."""
    return compiled(train_loss, meta_loss, **{'tolerance': 1e-13, **options})(*problem)


def relative_error(got, wanted):
    return float(jnp.linalg.norm(got - wanted) / jnp.linalg.norm(wanted))


def test_closed_form_of_the_weight_decay_of_ridge_regression():
    """θ* = A⁻¹ Xᵀy / n with A = XᵀX / n + eᵠ I, so ∂θ*/∂ψ = −eᵠ A⁻¹ θ*."""
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(30, FEATURES)), generator.normal(size=30)
    meta_inputs, meta_targets = generator.normal(size=(20, FEATURES)), generator.normal(size=20)
    psi = -1.5

    def error(theta, batch):
        return jnp.mean((batch[0] @ theta - batch[1]) ** 2) / 2, 8

    def ridge(theta, psi, batch):
        return error(theta, batch)[0] + jnp.exp(psi) / 2 * theta @ theta, 7

    system = inputs.T @ inputs / 30 + np.exp(psi) * np.eye(FEATURES)
    theta = np.linalg.solve(system, inputs.T @ targets / 30)
    v = meta_inputs.T @ (meta_inputs @ theta - meta_targets) / 20
    wanted = -np.exp(psi) * v @ np.linalg.solve(system, theta)

    with jax.enable_x64(True):
        problem = jax.tree.map(
            jnp.asarray, (psi, theta, (inputs, targets), (meta_inputs, meta_targets))
        )
        out = implicit(problem, ridge, error)
        np.testing.assert_allclose(out.psi_grad, wanted, rtol=1e-11)
        np.testing.assert_allclose(out.meta_loss, error(theta, problem[3])[0], rtol=1e-14)
        np.testing.assert_allclose(out.train_loss, ridge(theta, psi, problem[2])[0], rtol=1e-14)
        assert (int(out.train_aux), int(out.meta_aux)) == (7, 8)
        assert float(out.stationarity) < 1e-14
        assert float(out.residual) < 1e-12


def test_closed_form_of_the_example_weights_of_ridge_regression():
    """∂θ*/∂ψ_i = −A⁻¹ x_i (x_iᵀθ* − y_i): the influence of an example on the minimum."""
    generator = np.random.default_rng(1)
    inputs, targets = generator.normal(size=(12, FEATURES)), generator.normal(size=12)
    psi, aim = generator.uniform(0.5, 1.5, 12), generator.normal(size=FEATURES)

    def ridge(theta, psi, batch):
        errors = batch[0] @ theta - batch[1]
        return jnp.sum(psi * errors**2) / 2 + DECAY / 2 * theta @ theta, None

    def distance(theta, aim):
        return jnp.sum((theta - aim) ** 2) / 2, None

    system = (inputs.T * psi) @ inputs + DECAY * np.eye(FEATURES)
    theta = np.linalg.solve(system, (inputs.T * psi) @ targets)
    wanted = -(inputs @ np.linalg.solve(system, theta - aim)) * (inputs @ theta - targets)
    with jax.enable_x64(True):
        problem = jax.tree.map(jnp.asarray, (psi, theta, (inputs, targets), aim))
        np.testing.assert_allclose(implicit(problem, ridge, distance).psi_grad, wanted, rtol=1e-10)


def test_conjugate_gradient_equals_the_dense_solve():
    """24 parameters: the Hessian can be written down, and its inverse applied."""
    with jax.enable_x64(True):
        _, _, batch, meta_batch = problem = converged_head()
        out = implicit(problem)
        assert relative_error(out.psi_grad, dense(*problem)[0]) < 1e-9
        assert float(out.stationarity) < 1e-13
        assert float(out.residual) < 1e-12
        assert float(out.train_aux) == float(batch[0].sum())
        assert int(out.meta_aux) == int(meta_batch[1].sum())


def test_it_is_the_slope_of_the_meta_loss_of_retrained_heads():
    """What is wanted, word for word: move ψ, train to the end again, look at the meta loss."""
    with jax.enable_x64(True):
        psi, params, batch, meta_batch = problem = converged_head()
        psi_grad, h = implicit(problem).psi_grad, 1e-4
        for j in range(CLASSES):
            values = [
                meta_loss(newton(psi.at[j].add(move), params, batch), meta_batch)[0]
                for move in (h, -h)
            ]
            slope = (values[0] - values[1]) / (2 * h)
            np.testing.assert_allclose(psi_grad[j], slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('steps', [1, 4])
def test_neumann_is_k_steps_of_sgd_from_the_minimum(steps):
    """There every step has the same Hessian, so the chain rule through K steps is the series."""
    with jax.enable_x64(True):
        psi, params, batch, meta_batch = problem = converged_head()
        optimizer = optax.sgd(RATE)
        step = meta_gradients.value_and_meta_grad(train_loss, meta_loss, optimizer, steps=steps)
        batches = batch
        if steps > 1:
            batches = jax.tree.map(lambda leaf: jnp.stack([leaf] * steps), batch)
        wanted = jax.jit(step)(psi, params, optimizer.init(params), batches, meta_batch)
        out = implicit(problem, solver='neumann', iterations=steps, rate=RATE)
        assert relative_error(out.psi_grad, wanted.psi_grad) < 1e-11
        np.testing.assert_allclose(out.meta_loss, wanted.meta_loss, rtol=1e-12)


@pytest.mark.parametrize('start', ['minimum', 'scratch'])
def test_unrolled_steps_approach_it_geometrically(start):
    """The error shrinks by 1 − η μ a step, with μ the least curvature that the losses see.

    They don't see one shift of all logits: 6 directions of the parameters that have the weight
    decay alone. From scratch the steps also had other Hessians, which is forgotten at that pace.
    """
    with jax.enable_x64(True):
        psi, params, batch, meta_batch = head()
        minimum = newton(psi, params, batch)
        wanted, _, hessian = dense(psi, minimum, batch, meta_batch)
        curvatures = np.linalg.eigvalsh(hessian)
        np.testing.assert_allclose(curvatures[: FEATURES + 1], DECAY, rtol=1e-12)
        pace = 1 - RATE * curvatures[FEATURES + 1]

        params = minimum if start == 'minimum' else params
        grads = unrolled(psi, params, batch, meta_batch, 400)
        errors = {k: relative_error(grads[k - 1], wanted) for k in (1, 10, 50, 100, 200, 400)}
        assert list(errors.values()) == sorted(errors.values(), reverse=True)
        assert errors[1] > 0.5
        assert errors[400] < 1e-10
        if start == 'minimum':
            assert all(error < pace**k for k, error in errors.items())
        np.testing.assert_allclose((errors[400] / errors[200]) ** (1 / 200), pace, rtol=0.01)


def test_stationarity_is_the_norm_of_the_gradient():
    """Away from θ* the gradient is another one, and this number is all that says so."""
    with jax.enable_x64(True):
        psi, params, batch, meta_batch = head()
        away, there = implicit((psi, params, batch, meta_batch)), implicit(converged_head())
        grads, _ = jax.jit(jax.grad(train_loss, has_aux=True))(params, psi, batch)
        flat, _ = jax.flatten_util.ravel_pytree(grads)
        np.testing.assert_allclose(away.stationarity, jnp.linalg.norm(flat), rtol=1e-12)
        assert float(away.residual) < 1e-12
        assert relative_error(away.psi_grad, there.psi_grad) > 0.1


def quadratic(theta, psi, matrix):
    """½ θᵀAθ − ψᵀθ with θ* = A⁻¹ψ; the meta-gradient is w itself."""
    return theta @ matrix @ theta / 2 - psi @ theta, None


def linear(theta, v):
    return theta @ v, None


def quadratic_problem(eigenvalues=EIGENVALUES):
    generator = np.random.default_rng(0)
    size = len(eigenvalues)
    basis, _ = np.linalg.qr(generator.normal(size=(size, size)))
    matrix = basis * np.asarray(eigenvalues) @ basis.T
    psi, v = generator.normal(size=size), generator.normal(size=size)
    return tuple(map(jnp.asarray, (psi, np.linalg.solve(matrix, psi), matrix, v)))


def test_neumann_with_many_iterations_is_conjugate_gradient():
    """Two ways to invert one matrix."""
    with jax.enable_x64(True):
        problem = quadratic_problem()
        exact = implicit(problem, quadratic, linear)
        series = implicit(problem, quadratic, linear, solver='neumann', iterations=600, rate=0.1)
        assert relative_error(series.psi_grad, exact.psi_grad) < 1e-11
        assert float(series.residual) < 1e-11


@pytest.mark.parametrize('iterations', [2, 6])
@pytest.mark.parametrize('options', [{}, {'solver': 'neumann', 'rate': 0.1}])
def test_residual_tells_how_well_the_system_was_solved(options, iterations):
    """Here w can be read off and put into the system; conjugate gradients end after 6 of them."""
    with jax.enable_x64(True):
        problem = _, _, matrix, v = quadratic_problem()
        out = implicit(problem, quadratic, linear, iterations=iterations, **options)
        residual = relative_error(matrix @ out.psi_grad, v)
        np.testing.assert_allclose(out.residual, residual, rtol=1e-6, atol=1e-12)
        solved = iterations == 6 and not options
        assert (float(out.residual) < 1e-11) == solved
        error = jnp.linalg.norm(out.psi_grad - jnp.linalg.solve(matrix, v))
        assert error <= out.residual * jnp.linalg.norm(v) / EIGENVALUES[0] + 1e-12


def test_a_diverging_series_has_a_residual_that_shows_it():
    """A rate above 2 / ‖H‖ makes SGD diverge, and the series with it."""
    with jax.enable_x64(True):
        out = implicit(quadratic_problem(), quadratic, linear, solver='neumann', rate=0.3)
        assert float(out.residual) > 1e6


def test_a_tolerance_stops_conjugate_gradients_early():
    """It promises that much of the residual, and does no more than it must."""
    with jax.enable_x64(True):
        problem = quadratic_problem(np.geomspace(0.01, 10, 50))
        loose, tight = (
            float(implicit(problem, quadratic, linear, tolerance=tolerance).residual)
            for tolerance in (1e-2, 1e-9)
        )
        assert 1e-6 < loose <= 1e-2 * (1 + 1e-6)
        assert tight <= 1e-9 * (1 + 1e-6)


@pytest.mark.parametrize('options', [{}, {'solver': 'neumann', 'iterations': 2000, 'rate': 0.1}])
def test_damping_is_a_pull_towards_the_minimum(options):
    """λ/2 ‖θ − θ*‖² has no gradient at θ* and the Hessian λI; of a saddle it makes a minimum."""
    damping = 0.7
    with jax.enable_x64(True):
        problem = _, theta, matrix, v = quadratic_problem((-0.5, *EIGENVALUES[1:]))

        def pulled(params, psi, batch):
            loss, aux = quadratic(params, psi, batch)
            return loss + damping / 2 * jnp.sum((params - theta) ** 2), aux

        out = implicit(problem, quadratic, linear, damping=damping, **options)
        undamped = implicit(problem, pulled, linear, **options)
        wanted = jnp.linalg.solve(matrix + damping * jnp.eye(6), v)
        np.testing.assert_allclose(out.psi_grad, wanted, rtol=1e-10)
        np.testing.assert_allclose(out.psi_grad, undamped.psi_grad, rtol=1e-10)
        assert float(out.residual) < 1e-10


def test_much_damping_leaves_the_direction_of_one_step():
    """(H + λI)⁻¹ → I / λ: λ times the gradient is 1 / η times that of one SGD step."""
    with jax.enable_x64(True):
        problem = quadratic_problem()
        damped = implicit(problem, quadratic, linear, damping=1e6)
        step = implicit(problem, quadratic, linear, solver='neumann', iterations=1, rate=RATE)
        assert relative_error(1e6 * damped.psi_grad, step.psi_grad / RATE) < 1e-5


def test_nothing_to_learn_is_zero():
    """Where the meta loss is at its own minimum there is no direction, and no 0/0."""
    problem = (jnp.ones(6), jnp.zeros(6), jnp.eye(6), jnp.zeros(6))
    out = implicit(problem, quadratic, linear)
    assert float(out.residual) == 0
    np.testing.assert_array_equal(out.psi_grad, jnp.zeros(6))


def pulled_head(params, psi, batch):
    """ψ is a tree, and its second part pulls at the bias: the gradient there is −w."""
    value, aux = train_loss(params, psi['weights'], batch)
    return value + jnp.sum(psi['pull'][0] * params['bias']), aux


@pytest.mark.parametrize('options', [{}, {'solver': 'neumann', 'rate': RATE, 'iterations': 400}])
def test_single_precision_under_jit_with_pytrees(options):
    """θ and ψ are trees, nothing is promoted, and the error is what rounding makes of it."""
    with jax.enable_x64(True):
        psi, params, batch, meta_batch = converged_head()
        psi_grad, w, _ = dense(psi, params, batch, meta_batch)
        wanted = {'weights': np.asarray(psi_grad), 'pull': [-np.asarray(w['bias'])]}
        problem = {'weights': psi, 'pull': [jnp.zeros(CLASSES)]}, params, batch, meta_batch
        problem = jax.tree.map(np.asarray, problem)
    problem = jax.tree.map(
        lambda x: jnp.asarray(x, np.float32 if x.dtype == np.float64 else np.int32), problem
    )
    out = compiled(pulled_head, meta_loss, **options)(*problem)
    chex.assert_trees_all_equal_shapes_and_dtypes(out.psi_grad, problem[0])
    assert out.residual.dtype == out.stationarity.dtype == np.float32
    assert float(out.residual) < 1e-5
    assert float(out.stationarity) < 1e-5
    for part, true in zip(jax.tree.leaves(out.psi_grad), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(part - true) < 1e-4 * np.linalg.norm(true)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'solver': 'lu'}, r"solver: got 'lu', wanted 'conjugate_gradient' or 'neumann'"),
        ({'iterations': 0}, 'iterations: got 0, wanted a whole number of at least 1'),
        ({'iterations': 2.5}, 'iterations: got 2.5, wanted a whole number of at least 1'),
        ({'tolerance': -1.0}, r'tolerance: got -1.0, wanted at least 0'),
        ({'damping': -0.1}, r'damping: got -0.1, wanted at least 0'),
        ({'damping': float('nan')}, r'damping: got nan, wanted at least 0'),
        ({'rate': 0.1}, r"rate: got 0.1, wanted None: only 'neumann' has one"),
        ({'solver': 'neumann'}, r"rate: got None, wanted a number above 0 for 'neumann'"),
        ({'solver': 'neumann', 'rate': 0.0}, r'rate: got 0.0, wanted a number above 0'),
    ],
)
def test_wrong_options_are_refused_by_name(options, message):
    """A solver that ran with a setting it ignores would look as if it had used it."""
    with pytest.raises(ValueError, match=message):
        implicit_meta_grad(train_loss, meta_loss, **options)
