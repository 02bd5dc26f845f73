"""One training step of each kind: built from shapes alone, compiled, and made ready to run.

A step is handed its inputs, as a data loader hands them. It draws the classes of its batch under ψ,
takes the real step of the parameters, and ends with Adam's step of ψ. A plain step is handed its
labels as well, and knows no ψ.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from balms_jax import losses, meta_gradients, models, priors, rebalancers
from balms_jax.estimators import ESTIMATORS, Draw
from balms_jax.meta_gradients.train_loss import MetaLoss, TrainLoss
from balms_jax.meta_gradients.update import differentiable_update
from balms_jax.training import learners, recipe

PyTree = Any

# What is trained, and what of the network is computed in the step.
END_TO_END = 'end to end'  # batch norm in training mode
FROZEN_STATISTICS = 'frozen statistics'  # all parameters trained, batch norm as at test
DECOUPLED = 'decoupled'  # the classifier alone; the frozen backbone computed for all images
CACHED_META = 'meta features cached'  # the same, the backbone computed for training images alone
CACHED = 'all features cached'  # the same, no backbone in the step
SCANNED = 50  # steps in one call where all features are cached, as the training job takes them

PLAIN, WRITTEN_OUT, FORWARD_DIFFERENCE = 'plain', 'written_out', 'forward_difference'
TORCH_PLAIN, TORCH_HIGHER = 'torch_plain', 'torch_higher'  # those of torch_higher.py
IMAGE_SIDES = {'resnet50': 224}  # else 32


@dataclasses.dataclass(frozen=True)
class Setting:
    """A step, and all that its cost depends on."""

    step: str  # PLAIN, WRITTEN_OUT, FORWARD_DIFFERENCE or a name of MODES
    place: str = END_TO_END
    network: str = 'resnet32'
    width: int = 0  # of the network; 0: its usual one
    classes: int = 100
    batch_size: int = 128
    meta_batch_size: int = 128
    inner_steps: int = 1  # K
    segment: int | None = None  # of the K steps, None: ⌈√K⌉


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A draw of a batch under ψ and the gradient of its weights, without a network."""

    step: str  # a name of ESTIMATORS
    examples: int
    classes: int = 100
    batch_size: int = 128


class Built(NamedTuple):
    """A function, and what makes its arguments."""

    function: Callable[..., Any]
    make: Callable[[jax.Array], tuple]  # of a key

    def shapes(self) -> tuple:
        """The arguments' shapes and types; nothing is allocated."""
        return jax.eval_shape(self.make, jax.random.key(0))

    def lowered(self) -> jax.stages.Lowered:
        """Traced, and handed to the compiler."""
        return jax.jit(self.function).lower(*self.shapes())


class State(NamedTuple):
    """What a step goes on from."""

    trained: PyTree
    frozen: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    psi: jax.Array
    psi_opt_state: PyTree


class Data(NamedTuple):
    """What a step is handed: images or features, with a leading axis of K for K > 1."""

    inputs: jax.Array
    labels: jax.Array  # for the plain step
    meta_inputs: jax.Array
    meta_labels: jax.Array
    key: jax.Array


def build(setting: Setting | Drawing) -> Built:
    """The function that a setting names."""
    if isinstance(setting, Drawing):
        return _drawing(setting)
    problem = _Problem(setting)
    return Built(problem.plain if setting.step == PLAIN else problem.meta, problem.arguments)


@functools.lru_cache(maxsize=24)
def compile_step(
    setting: Setting | Drawing, quick: bool = False
) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """Compiles a step, once; what the compiler counts of it, and how long it took.

    Args:
        setting: the step.
        quick: leave out what makes the CPU's code fast. It changes no count.

    Returns:
        The executable; and its FLOPs, its temporary memory, the trained parameters and their
        optimizer's state (bytes); if not quick, the seconds to trace and to compile it.

    Raises:
        CoupledExamplesError: if the mode needs independent examples and these are not.
    """
    built = build(setting)
    start = time.perf_counter()
    lowered = built.lowered()
    traced = time.perf_counter()
    unoptimized = quick and jax.default_backend() == 'cpu'
    options: dict[str, str | bool] = {'xla_backend_optimization_level': '0'} if unoptimized else {}
    compiled = lowered.compile(compiler_options=options)
    end = time.perf_counter()
    flops, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert flops is not None, 'the backend counts no FLOPs'
    assert memory is not None, 'the backend counts no memory'
    state = built.shapes()[0]
    trained = (state.trained, state.opt_state) if isinstance(state, State) else ((), ())
    counts = {
        'flops': flops['flops'],
        'temp_bytes': memory.temp_size_in_bytes,
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(trained[0])),
        'state_bytes': sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trained)),
    }
    if not quick:
        counts |= {'trace_seconds': traced - start, 'compile_seconds': end - traced}
    return compiled, counts


def compile_scanned(setting: Setting) -> jax.stages.Compiled:
    """SCANNED steps in one call: (state, data) → the state after them."""
    built = build(setting)

    def run(state: State, data: Data) -> State:
        def one(state: State, key: jax.Array) -> tuple[State, None]:
            trained, opt_state, batch_stats, *rest = built.function(state, data._replace(key=key))
            state = state._replace(trained=trained, opt_state=opt_state, batch_stats=batch_stats)
            if setting.step != PLAIN:
                state = state._replace(psi=rest[0], psi_opt_state=rest[1])
            return state, None

        return jax.lax.scan(one, state, jax.random.split(data.key, SCANNED))[0]

    return jax.jit(run).lower(*built.shapes()).compile()


@functools.lru_cache(maxsize=3)
def _made(setting: Setting | Drawing) -> tuple:
    return jax.jit(build(setting).make)(jax.random.key(0))


def arguments_of(setting: Setting | Drawing) -> tuple:
    """Random arguments on the device, shared by the steps that differ in their kind alone."""
    return _made(
        setting if isinstance(setting, Drawing) else dataclasses.replace(setting, step=PLAIN)
    )


def long_tailed_counts(classes: int, examples: int = 0) -> np.ndarray:
    """Counts that fall by a factor of 100 from the first class to the last, ``[classes]``.

    Args:
        classes: C, at least 2.
        examples: their sum; 0: whatever it is when the first class has 500.
    """
    shares = 100.0 ** (-np.arange(classes) / (classes - 1))
    if not examples:
        return np.floor(500 * shares).astype(np.int64)
    counts = np.maximum(np.floor(examples * shares / shares.sum()), 1).astype(np.int64)
    counts[0] += examples - counts.sum()
    return counts


def written_out(
    train_loss: TrainLoss, meta_loss: MetaLoss, optimizer: optax.GradientTransformation
) -> Callable[..., meta_gradients.MetaStep]:
    """The official order, with the arguments of ``value_and_meta_grad``: nothing is shared.

    ψ's gradient is that of the whole of a step and its meta loss; then the real step computes its
    own gradient. It starts at parameters that are there only after ψ's gradient, or the compiler
    would merge the two gradients, as no library that runs one operation after another can.
    """
    update = differentiable_update(optimizer)

    def step(
        psi: PyTree, params: PyTree, opt_state: PyTree, batch: PyTree, meta_batch: PyTree
    ) -> meta_gradients.MetaStep:
        def outer(psi: PyTree) -> tuple[jax.Array, PyTree]:
            grads, _ = jax.grad(train_loss, has_aux=True)(params, psi, batch)
            return meta_loss(update(grads, opt_state, params, psi)[0], meta_batch)

        (value, meta_aux), psi_grad = jax.value_and_grad(outer, has_aux=True)(psi)
        after = jax.tree.map(lambda p: p + 0 * psi_grad[0], params)
        (loss, aux), grads = jax.value_and_grad(train_loss, has_aux=True)(after, psi, batch)
        params, opt_state = update(grads, opt_state, after, psi)
        return meta_gradients.MetaStep(value, psi_grad, loss, params, opt_state, aux, meta_aux)

    return step


class _Problem:
    """A network, its data, and the steps on it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.network = models.build(setting.network, setting.classes, width=setting.width)
        counts = long_tailed_counts(setting.classes)
        self.log_prior = priors.log_prior(counts)
        self.sampler = rebalancers.meta_sampler(counts)
        self.optimizer = learners.make_optimizer(recipe.Optimizer(), 1000)
        self.psi_optimizer = learners.make_psi_optimizer(recipe.Meta())

    def arguments(self, key: jax.Array) -> tuple[State, Data]:
        """The state and the data of a step."""
        setting, keys = self.setting, jax.random.split(key, 5)
        side = IMAGE_SIDES.get(setting.network, 32)
        image = jnp.zeros((1, side, side, 3))
        params, batch_stats = self.network.init(keys[0], image)
        trains_all = setting.place in (END_TO_END, FROZEN_STATISTICS)
        parts = ('backbone', 'classifier') if trains_all else ('classifier',)
        trained = {name: params[name] for name in parts}
        state = State(
            trained=trained,
            frozen={name: params[name] for name in params if name not in parts},
            batch_stats=batch_stats,
            opt_state=self.optimizer.init(trained),
            psi=self.sampler.psi,
            psi_opt_state=self.psi_optimizer.init(self.sampler.psi),
        )
        features = jax.eval_shape(
            lambda: self.network.features(params['backbone'], batch_stats, image, False)[0]
        )

        def inputs(key: jax.Array, cached: bool, *leading: int) -> jax.Array:
            one = features.shape[1:] if cached else image.shape[1:]
            return jax.random.normal(key, (*leading, *one))

        def labels(key: jax.Array, size: int) -> jax.Array:
            return jax.random.randint(key, (size,), 0, setting.classes)

        size, meta_size = setting.batch_size, setting.meta_batch_size
        leading = (setting.inner_steps, size) if setting.inner_steps > 1 else (size,)
        return state, Data(
            inputs=inputs(keys[1], setting.place == CACHED, *leading),
            labels=labels(keys[2], size),
            meta_inputs=inputs(keys[3], setting.place in (CACHED, CACHED_META), meta_size),
            meta_labels=labels(keys[4], meta_size),
            key=key,
        )

    def logits(self, state: State, trained: PyTree, inputs: jax.Array) -> tuple[jax.Array, PyTree]:
        """Of images, or of cached features; and the batch statistics after it."""
        params, batch_stats = {**state.frozen, **trained}, state.batch_stats
        if inputs.ndim > 2:
            train = self.setting.place == END_TO_END
            inputs, batch_stats = self.network.features(
                params['backbone'], batch_stats, inputs, train
            )
        return self.network.logits(params['classifier'], inputs), batch_stats

    def losses(
        self, state: State, trained: PyTree, inputs: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        """Balanced Softmax, one an example."""
        logits, batch_stats = self.logits(state, trained, inputs)
        values = losses.balanced_softmax_cross_entropy_with_integer_labels(
            logits, labels, self.log_prior
        )
        return values, batch_stats

    def plain(self, state: State, data: Data) -> tuple:
        """A step that learns nothing beside the parameters."""

        def loss(trained: PyTree) -> tuple[jax.Array, PyTree]:
            values, batch_stats = self.losses(state, trained, data.inputs, data.labels)
            return values.mean(), batch_stats

        (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(state.trained)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.trained)
        return optax.apply_updates(state.trained, updates), opt_state, batch_stats, value

    def meta(self, state: State, data: Data) -> tuple:
        """A step, or K, that learn ψ too."""
        setting = self.setting

        def draw(key: jax.Array) -> Draw:
            return self.sampler.draw(key, state.psi, setting.batch_size)

        several = setting.inner_steps > 1
        keys = jax.random.split(data.key, setting.inner_steps)
        drawn = jax.vmap(draw)(keys) if several else draw(data.key)

        def meta_loss(trained: PyTree, batch: tuple[jax.Array, jax.Array]) -> tuple:
            inputs, labels = batch
            logits, _ = self.logits(state, trained, inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), None

        train_loss = meta_gradients.WeightedLosses(
            lambda trained, batch: self.losses(state, trained, batch[0], batch[1].classes),
            lambda psi, batch, values: self.sampler.weights(psi, batch[1], values),
        )
        out = self.step(train_loss, meta_loss)(
            state.psi,
            state.trained,
            state.opt_state,
            (data.inputs, drawn),
            (data.meta_inputs, data.meta_labels),
        )
        updates, psi_opt_state = self.psi_optimizer.update(
            out.psi_grad, state.psi_opt_state, state.psi
        )
        batch_stats = out.train_aux
        if several:
            batch_stats = jax.tree.map(lambda leaf: leaf[-1], batch_stats)
        psi = optax.apply_updates(state.psi, updates)
        return out.params, out.opt_state, batch_stats, psi, psi_opt_state, out.meta_loss

    def step(self, train_loss: TrainLoss, meta_loss: MetaLoss) -> Callable[..., Any]:
        """The meta-gradient in the order that the setting names."""
        setting = self.setting
        if setting.step == WRITTEN_OUT:
            return written_out(train_loss, meta_loss, self.optimizer)
        mode: str | meta_gradients.Mode = setting.step
        if mode == FORWARD_DIFFERENCE:
            mode = meta_gradients.finite_difference('forward')
        return meta_gradients.value_and_meta_grad(
            train_loss,
            meta_loss,
            self.optimizer,
            mode=mode,
            steps=setting.inner_steps,
            segment=setting.segment if setting.inner_steps > 1 else None,
        )


def _drawing(setting: Drawing) -> Built:
    counts = long_tailed_counts(setting.classes, setting.examples)
    estimator = ESTIMATORS[setting.step](counts, temperature=1.0)

    def draw_and_weigh(psi: jax.Array, influences: jax.Array, key: jax.Array) -> tuple:
        draw = estimator.draw(key, psi, setting.batch_size)
        _, pull_back = jax.vjp(lambda psi: estimator.weights(psi, draw), psi)
        return draw.examples, draw.classes, *pull_back(influences)

    def make(key: jax.Array) -> tuple:
        influences = jax.random.normal(key, (setting.batch_size,))
        return jnp.zeros(setting.classes), influences, key

    return Built(draw_and_weigh, make)
