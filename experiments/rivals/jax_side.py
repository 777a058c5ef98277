"""cnnjax, and plain Flax and lax with their defaults. Each function takes a case and returns what is timed.

What is timed is a function (count) that does the work `count` times and returns the last loss, or a nan where there
is none.
"""

import atexit
import contextlib
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cnnjax import models, ops
from cnnjax.compilation_cache import compiled_programs_kept
from cnnjax.config import Config, DataConfig, Hyperparams, TrainConfig
from cnnjax.data import Batch, Dataset, Split, batches
from cnnjax.ops import pooling, selection
from cnnjax.sweep.engine import a_device_for_each_core, group_of, programs, stacked
from cnnjax.sweep.space import grid_and_draws
from cnnjax.train import checkpoints
from cnnjax.train.feed import Feed, Resident, portions
from cnnjax.train.step import TrainState, initial_state, make_order, make_preprocess, make_train_chunk, make_train_step
from cnnjax.visualize.evolution import make_look, make_projector, strongest_activations
from experiments.rivals import devices_side, input_side, member_forms
from experiments.rivals.cases import CLASSES, Case, Precision
from experiments.rivals.resident import Work, growth

LEARNING_RATE, MOMENTUM, DECAY, UNIT = 0.001, 0.9, 5e-4, 64.0
HYPER = Hyperparams(
    learning_rate=LEARNING_RATE,
    momentum=MOMENTUM,
    weight_decay=DECAY,
    dropout_rate=0.0,
    filter_rms=float("inf"),
    flip=0.0,
)


def set_precision(precision: Precision) -> None:
    """For the whole process. JAX's default on a GPU is TensorFloat-32; a CPU computes in float32 whatever is said."""
    jax.config.update("jax_default_matmul_precision", "highest" if precision == "float32" else None)


def images_and_labels(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Classes that can be learned: an image is noise around its class's own noise."""
    generator = np.random.default_rng(0)
    prototypes = generator.integers(0, 256, (CLASSES, *case.shape), np.uint16)
    labels = generator.integers(0, CLASSES, case.images).astype(np.int32)
    noise = generator.integers(0, 256, (case.images, *case.shape), np.uint16)
    return ((prototypes[labels] + noise) // 2).astype(np.uint8), labels


class Ours(NamedTuple):
    """What every rival of cnnjax is made from."""

    network: Any
    config: TrainConfig
    preprocess: Callable
    hyper: Hyperparams
    data: tuple[jax.Array, jax.Array]

    def feed(self) -> Resident:
        """Of images that are all on the device."""
        order = ops.jit(make_order(self.config, len(self.data[0])))
        return Resident(Split(*map(np.asarray, self.data)), self.config.batch_size, order, jax.device_put)

    def state(self, shape: tuple[int, ...]) -> TrainState:
        init = ops.jit(lambda hyper: initial_state(self.network, self.config, hyper, shape), runs_once=True)
        return init(self.hyper)

    def step(self) -> Callable:
        """(hyper, state, batch) -> (state, metrics)."""
        return make_train_step(self.network, self.config, self.preprocess, 1)

    def first_batch(self) -> Batch:
        images, labels = (array[: self.config.batch_size] for array in self.data)
        return Batch(images, labels, jnp.ones(self.config.batch_size))


def ours(case: Case) -> Ours:
    config = TrainConfig(
        schedule="constant",
        epochs=10_000,
        batch_size=case.batch,
        onednn=True,
        precision="bfloat16" if case.precision == "bfloat16" else "float32",
    )
    preprocess = make_preprocess(jnp.full(case.shape, 127.5), UNIT)
    return Ours(
        case.network(), config, preprocess, jax.tree.map(jnp.asarray, HYPER), jax.device_put(images_and_labels(case))
    )


def training(case: Case, onednn: bool = True) -> Work:
    """Our training loop as users run it: chunks of steps in one program, data gathered on the device."""
    made = ours(case)
    made = made._replace(config=dataclasses.replace(made.config, onednn=onednn))
    chunk = make_train_chunk(made.network, made.config, made.preprocess, case.images)
    chunk = ops.jit(chunk, onednn=made.config.onednn, donate_argnums=1)
    return _in_chunks(made.feed(), chunk, made.hyper, made.state(case.shape))


def kept_programs(case: Case) -> Work:
    """The same with the compiled programs of the process before, as every script has them."""
    kept = contextlib.ExitStack()
    kept.enter_context(compiled_programs_kept(lambda text: None))
    atexit.register(kept.close)  # what this process compiles is sealed for the next
    return training(case, onednn=False)


def _in_chunks(feed: Feed, chunk: Callable, hyper: Hyperparams, state: TrainState) -> Work:
    """The loop of a training, or of members trained together; their mean loss."""
    step = 0

    def work(count: int) -> float:
        nonlocal state, step
        for part in portions(feed, hyper, step, step + count):
            state = chunk(hyper, state, *part)
        step += count
        jax.block_until_ready(state)
        return float(jnp.mean(state.metrics.loss / state.metrics.count))

    return work


def known_length(case: Case) -> Work:
    """The chunk with its bounds in the program, 16 steps a call: no number is asked back between two steps."""
    made, length = ours(case), min(16, case.images // case.batch)
    chunk = make_train_chunk(made.network, made.config, made.preprocess, case.images)
    calls = {
        steps: ops.jit(
            lambda hyper, state, portion, steps=steps: chunk(hyper, state, portion, 0, steps), donate_argnums=1
        )
        for steps in (length, 1)
    }
    (portion, _), state = made.feed().portion(made.hyper, 0), made.state(case.shape)
    for steps in calls:
        state = calls[steps](made.hyper, state, portion)

    def work(count: int) -> float:
        nonlocal state
        whole, rest = divmod(count, length)
        for steps in [length] * whole + [1] * rest:
            state = calls[steps](made.hyper, state, portion)
        jax.block_until_ready(state)
        return float(state.metrics.loss / state.metrics.count)

    return work


def members_by(form: str) -> Callable[[Case], Work]:
    """All members trained in one program, their convolutions by one form of the batching rule; as `sweep` otherwise."""

    def of(case: Case) -> Work:
        made = ours(case)
        rates = np.linspace(0.5, 1.5, case.members + 2)[1:-1] * LEARNING_RATE
        hyper = dataclasses.replace(made.hyper, learning_rate=jnp.asarray(rates, jnp.float32))
        axes: Any = dataclasses.replace(jax.tree.map(lambda _: None, HYPER), learning_rate=0)
        init = jax.vmap(lambda hyper: initial_state(made.network, made.config, hyper, case.shape), in_axes=(axes,))
        state = ops.jit(init, runs_once=True)(hyper)
        with member_forms.chosen(form):
            chunk = make_train_chunk(made.network, made.config, made.preprocess, case.images)
            together = member_forms.together(form, chunk, (axes, 0, None, None, None), case.members)
            portion, _ = made.feed().portion(hyper, 0)
            traced = ops.jit(together, donate_argnums=1).lower(hyper, state, portion, 0, 1)
        return _in_chunks(made.feed(), traced.compile(), hyper, state)

    return of


def sweep(case: Case) -> Work:
    """Our sweep's programs in its loop: members of different learning rates around the rivals' one, all at a time."""
    a_device_for_each_core(case.members)
    images, labels = images_and_labels(case)
    split = Split(images, labels)
    dataset = Dataset("synthetic", tuple(map(str, range(CLASSES))), split, split)
    assert case.model is not None
    base = Config(DataConfig(unit=UNIT), case.model, ours(case).config, HYPER)
    rates = list(np.linspace(0.5, 1.5, case.members + 2)[1:-1] * LEARNING_RATE)
    members = grid_and_draws(base, {"learning_rate": rates}, samples=1, seed=0)
    group = group_of(members)
    made, hyper = programs(group, dataset, case.members == 1, jax.device_count()), stacked(group, members)
    return _in_chunks(made.feeds()[0], made.chunk, hyper, made.init(hyper))


def python_loop(case: Case) -> Work:
    """The same jitted step, called step by step."""
    made = ours(case)
    train_step = made.step()
    mask = jnp.ones(case.batch)

    def one(hyper, state, images, labels, rows):
        return train_step(hyper, state, Batch(images[rows], labels[rows], mask))

    step, state = ops.jit(one, onednn=made.config.onednn, donate_argnums=1), made.state(case.shape)
    rows = jnp.arange(case.images).reshape(-1, case.batch)

    def work(count: int) -> float:
        nonlocal state
        for index in range(count):
            state, metrics = step(made.hyper, state, *made.data, rows[index % len(rows)])
        jax.block_until_ready(state)
        return float(metrics.loss / metrics.count)

    return work


def single_step(case: Case) -> Work:
    """One step of one member, on one batch."""
    made = ours(case)
    step = ops.jit(made.step(), onednn=made.config.onednn, donate_argnums=1)
    return _stepping(step, made.hyper, made.state(case.shape), made.first_batch())


def members(case: Case) -> Work:
    """One step of all members under plain `jax.vmap`, one batch for all."""
    made = ours(case)
    hyper = jax.tree.map(lambda leaf: jnp.full(case.members, leaf), made.hyper)
    hyper = dataclasses.replace(hyper, seed=jnp.arange(case.members))
    state = jax.vmap(lambda h: initial_state(made.network, made.config, h, case.shape))(hyper)
    step = ops.jit(jax.vmap(made.step(), in_axes=(0, 0, None)), onednn=made.config.onednn, donate_argnums=1)
    return _stepping(step, hyper, state, made.first_batch())


def _stepping(step: Callable, hyper: Hyperparams, state: TrainState, batch: Batch) -> Work:
    def work(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, metrics = step(hyper, state, batch)
        jax.block_until_ready(state)
        return float(jnp.mean(metrics.loss / metrics.count))

    return work


class PlainFlax(nn.Module):
    """The same network as Flax's own layers."""

    network: Any
    dtype: Any = None  # of the arithmetic; the weights are float32

    @nn.compact
    def __call__(self, x):
        for layer in self.network.convolutions:
            pad: Any = ((layer.padding,) * 2,) * 2
            x = nn.Conv(layer.width, (layer.filter,) * 2, layer.stride, padding=pad, dtype=self.dtype)(x)
            x = nn.relu(x)
            if layer.pool:
                pad = ((layer.pool.padding,) * 2,) * 2
                x = nn.max_pool(x, (layer.pool.window,) * 2, (layer.pool.stride,) * 2, padding=pad)
            if layer.norm == "lrn":
                x = plain_response_norm(x)
        x = x.reshape(x.shape[0], -1)
        for units in self.network.dense:
            x = nn.relu(nn.Dense(units, dtype=self.dtype)(x))
        return nn.Dense(CLASSES, dtype=self.dtype)(x).astype(jnp.float32)


def plain_response_norm(x, size=5, bias=2.0, alpha=1e-4, beta=0.75):
    """What users of Flax, which has none, write."""
    sums = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, size), (1, 1, 1, 1), "SAME")
    return x / (bias + alpha * sums) ** beta


def _flax_step(case: Case):
    network = PlainFlax(case.network(), jnp.bfloat16 if case.precision == "bfloat16" else None)
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(LEARNING_RATE, MOMENTUM))

    def initial(key):
        params = network.init(key, jnp.zeros((1, *case.shape)))
        return params, optimizer.init(params)

    def step(state, images, labels, rows):
        params, opt_state = state
        x = (images[rows].astype(jnp.float32) - 127.5) / UNIT

        def objective(params):
            logits: Any = network.apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        loss, gradient = jax.value_and_grad(objective)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return initial, step


def flax_training(case: Case) -> Work:
    """Flax's own layers with default options, step by step."""
    initial, step = _flax_step(case)
    state = initial(jax.random.key(0))
    step = jax.jit(step, donate_argnums=0)
    data = jax.device_put(images_and_labels(case))
    rows = jnp.arange(case.images).reshape(-1, case.batch)

    def work(count: int) -> float:
        nonlocal state
        for index in range(count):
            state, loss = step(state, *data, rows[index % len(rows)])
        jax.block_until_ready(state)
        return float(loss)

    return work


def flax_members(case: Case) -> Work:
    """Flax's own layers under `jax.vmap`."""
    initial, step = _flax_step(case)
    state = jax.vmap(initial)(jax.random.split(jax.random.key(0), case.members))
    step = jax.jit(jax.vmap(step, in_axes=(0, None, None, None)), donate_argnums=0)
    data = jax.device_put(images_and_labels(case))
    rows = jnp.arange(case.batch)

    def work(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, loss = step(state, *data, rows)
        jax.block_until_ready(state)
        return float(jnp.mean(loss))

    return work


def _repeated(function, x, in_loop: bool, jit) -> Work:
    """`function` of an array, again and again, alone or as the body of a loop whose length is an argument."""
    if not in_loop:
        compiled = jit(function)

        def work(count: int) -> float:
            for _ in range(count):
                out = compiled(x)
            jax.block_until_ready(out)
            return float("nan")

        return work

    @jit
    def loop(trips, x):
        # The operand depends on the carry, so that nothing can be taken out of the loop.
        return lax.fori_loop(0, trips, lambda _, total: function(x + 0 * total.ravel()[0]), jnp.zeros_like(x))

    def work_in_loop(count: int) -> float:
        jax.block_until_ready(loop(count, x))
        return float("nan")

    return work_in_loop


def _normal(case: Case, *shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16 if case.precision == "bfloat16" else jnp.float32)


def _pool(case: Case, pool, jit) -> Work:
    x = _normal(case, case.batch, *case.shape)
    return _repeated(jax.grad(lambda x: jnp.sum(pool(x) ** 2)), x, case.in_loop, jit)


def max_pool(case: Case) -> Work:
    return _pool(case, lambda x: ops.max_pool(x, case.window, strides=case.stride), ops.jit)


def pool_by(search: Callable, place: Callable) -> Callable[[Case], Work]:
    """Max pooling by one form of the search for the maximum and one of its transpose."""

    def of(case: Case) -> Work:
        windows = pooling._pool_windows(jnp.zeros((1, *case.shape)), case.window, case.stride, 0, "floor")

        @jax.custom_vjp
        def pool(x):
            return search(x, windows=windows)[0]

        def backward(choice, cotangent):
            return (place(cotangent, choice, windows=windows),)

        pool.defvjp(lambda x: tuple(search(x, windows=windows)), backward)
        return _pool(case, pool, ops.jit)

    return of


def reduce_window(case: Case) -> Work:
    window, strides = (1, case.window, case.window, 1), (1, case.stride, case.stride, 1)

    def pool(x):
        return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, window, strides, "VALID")

    return _pool(case, pool, jax.jit)


def _convolution(case: Case, conv, jit) -> Work:
    spatial = len(case.shape) - 1
    x = _normal(case, case.batch, *case.shape)
    kernel = _normal(case, *(case.window,) * spatial, case.shape[-1] // case.groups, case.width, seed=1)
    if spatial == 2 and case.groups == 1:
        return _repeated(lambda x: conv(x, kernel), x, False, jit)

    def with_gradients(x):
        out, backward = jax.vjp(conv, x, kernel)
        return out, backward(out)

    return _repeated(with_gradients, x, False, jit)


def conv(case: Case) -> Work:
    padding, jit = case.window // 2, functools.partial(ops.jit, onednn=True)
    return _convolution(case, lambda x, kernel: ops.conv(x, kernel, padding=padding, groups=case.groups), jit)


def lax_conv(case: Case) -> Work:
    letters = {1: "W", 2: "HW", 3: "DHW"}[len(case.shape) - 1]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    strides = (1,) * len(letters)

    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=numbers, feature_group_count=case.groups
        )

    return _convolution(case, plain, jax.jit)


def response_norm(case: Case) -> Work:
    x = jax.random.normal(jax.random.key(0), (case.batch, *case.shape))
    return _repeated(jax.grad(lambda x: jnp.sum(ops.local_response_norm(x) ** 2)), x, False, ops.jit)


def matrix_product(case: Case) -> Work:
    """2048³, the machine's own rate."""
    x = jax.random.normal(jax.random.key(0), (2048, 2048))
    return _repeated(lambda x: x @ x, x, False, jax.jit)


def matrix_rate(case: Case) -> Work:
    """A large matrix product, the card's own rate."""
    return _repeated(lambda x: x @ x, _normal(case, *case.shape), False, jax.jit)


def copy(case: Case) -> Work:
    """An array read and another written, the card's own bandwidth."""
    return _repeated(lambda x: x + 1, _normal(case, *case.shape), False, jax.jit)


def _looking(case: Case) -> tuple[Any, Callable, list[Batch], Callable]:
    made = ours(case)
    variables = {"params": made.state(case.shape).params}
    images, labels = images_and_labels(case)
    return variables, made.preprocess, list(batches(Split(images, labels), case.batch)), made.network.apply


def strongest(case: Case) -> Work:
    """The search of the evolution study: the strongest activation of every map of every layer, over all images."""
    return _search(case, None, 1)


def nine_strongest(case: Case) -> Work:
    """The search of figure 2: the nine strongest activations of every map of the last convolution, over all images."""
    return _search(case, models.looked_into(models.layers(case.network(), case.shape))[-1].name, 9)


def _search(case: Case, layer: str | None, ranks: int) -> Work:
    variables, preprocess, given, apply = _looking(case)

    def feature_maps(variables, images):
        maps = apply(variables, images)[1]
        return maps if layer is None else {layer: maps[layer]}

    look = make_look(feature_maps, preprocess, ranks)

    def work(count: int) -> float:
        for _ in range(count):
            strongest_activations(look, variables, given, group=case.batch)
        return float("nan")

    return work


def projections(case: Case) -> Work:
    """One activation of the last convolution in every image, projected to the pixels."""
    variables, preprocess, given, apply = _looking(case)

    def feature_maps(variables, images):
        return apply(variables, images)[1]

    maps = jax.eval_shape(feature_maps, variables, jax.eval_shape(preprocess, given[0].images))
    layer = [name for name in maps if name.startswith("conv")][-1]
    middle = [size // 2 for size in maps[layer].shape[1:]]
    units = np.tile(np.array(middle, np.int32), (case.batch, 1))
    projector = make_projector(feature_maps, layer, preprocess)

    def work(count: int) -> float:
        for _ in range(count):
            for batch in given:
                np.asarray(projector(variables, batch.images, units))
        return float("nan")

    return work


def forward_pass(case: Case) -> Work:
    """The logits of the same images, and nothing else."""
    variables, preprocess, given, apply = _looking(case)
    forward = ops.jit(lambda variables, images: apply(variables, preprocess(images))[0])

    def work(count: int) -> float:
        for _ in range(count):
            logits = [np.asarray(forward(variables, batch.images)) for batch in given]
        return float("nan") * len(logits)

    return work


def inference(case: Case) -> Work:
    """The logits of one batch at evaluation."""
    made = ours(case)
    state = made.state(case.shape)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images = made.first_batch().images

    def forward(variables, images):
        return made.network.apply(variables, made.preprocess(images))[0]

    forward = ops.jit(forward, onednn=True)

    def work(count: int) -> float:
        for _ in range(count):
            logits = forward(variables, images)
        jax.block_until_ready(logits)
        return float("nan")

    return work


def peak_memory(case: Case) -> Work:
    """MB of the process that a training in chunks needs, beyond what JAX alone takes."""
    jax.block_until_ready(jnp.zeros(1))
    return growth(lambda: training(case))


def _step_memory(compiled) -> float:
    """MB that one call needs: arguments, temporaries, and results that do not take an argument's place."""
    sizes = compiled.memory_analysis()
    total = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + sizes.output_size_in_bytes
    return (total - sizes.alias_size_in_bytes) / 1e6


def step_memory(case: Case) -> Work:
    """XLA's own account of our step."""
    made = ours(case)
    step = ops.jit(made.step(), onednn=made.config.onednn, donate_argnums=1)
    megabytes = _step_memory(step.lower(made.hyper, made.state(case.shape), made.first_batch()).compile())
    return lambda count: megabytes


def flax_step_memory(case: Case) -> Work:
    """XLA's own account of the step of Flax's layers."""
    initial, step = _flax_step(case)
    images, labels = images_and_labels(case)
    state = jax.eval_shape(initial, jax.random.key(0))
    compiled = jax.jit(step, donate_argnums=0).lower(
        state, images[: case.batch], labels[: case.batch], jnp.arange(case.batch)
    )
    megabytes = _step_memory(compiled.compile())
    return lambda count: megabytes


def _loading(case: Case, load: Callable[[Path, TrainState], Any]) -> Work:
    """`load` of a checkpoint's folder; the state that is in it says shapes and types."""
    state, place = ours(case).state(case.shape), Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place)
    folder = place / "epochs" / "1"
    folder.parent.mkdir()
    checkpoints.write(folder, place / "tmp", jax.tree.map(np.asarray, state), {}, "epochs")

    def work(count: int) -> float:
        for _ in range(count):
            jax.block_until_ready(load(folder, state))
        return float("nan")

    return work


def loading(case: Case) -> Work:
    """A checkpoint read, the digest of every file and array compared."""
    return _loading(case, lambda folder, state: checkpoints.read(folder, state).state)


def orbax_loading(case: Case) -> Work:
    """The same files read by Orbax alone, to the same arrays on the device."""
    import orbax.checkpoint as ocp

    def restored(folder: Path, state: TrainState) -> Any:
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
        with contextlib.closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as checkpointer:
            return checkpointer.restore(folder / "state", args=ocp.args.StandardRestore(like))  # pyright: ignore[reportCallIssue]

    return _loading(case, restored)


RIVALS: dict[str, Callable[[Case], Work]] = {
    "training": training,
    "kept programs": kept_programs,
    "programs anew": functools.partial(training, onednn=False),
    "python loop": python_loop,
    "flax": flax_training,
    "members": members,
    "sweep": sweep,
    "known length": known_length,
    **{f"members {form}": members_by(form) for form in member_forms.FORMS},
    "single step": single_step,
    "flax members": flax_members,
    "max_pool": max_pool,
    "compared": pool_by(selection._max_with_choice, selection._place),
    "searched twice": pool_by(selection._thin_max_with_choice, selection._thin_place),
    "reduce_window": reduce_window,
    "conv": conv,
    "lax": lax_conv,
    "response norm": response_norm,
    "step memory": step_memory,
    "flax memory": flax_step_memory,
    "loading": loading,
    "orbax loading": orbax_loading,
    "packed files": input_side.packed_files,
    "packed pixels": input_side.packed_pixels,
    "bare decoder": input_side.bare_decoder,
    "inference": inference,
    "peak memory": peak_memory,
    "strongest": strongest,
    "nine strongest": nine_strongest,
    "projections": projections,
    "forward pass": forward_pass,
    "eight devices": devices_side.steps_on(devices_side.SIMULATED),
    "one device": devices_side.steps_on(1),
    "streamed": devices_side.steps_on(1, streamed=True),
    "eight devices memory": devices_side.memory_on(devices_side.SIMULATED),
    "one device memory": devices_side.memory_on(1),
    "matrix product": matrix_product,
    "matrix rate": matrix_rate,
    "copy": copy,
}
