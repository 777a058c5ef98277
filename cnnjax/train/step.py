"""The lecture's five steps as one pure function, and many of them in one program.

(1) random initial weights: `initial_state`; (2) forward to class probabilities, (3) the error, (4) backpropagation,
(5) the update of all filters: `make_train_step`; repeated over the training set: `make_train_chunk`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt8

from cnnjax import ops
from cnnjax.config import Hyperparams, TrainConfig
from cnnjax.data.augment import augment
from cnnjax.data.batches import Batch, epoch_order
from cnnjax.data.randomness import Purpose, address
from cnnjax.models.building import dotted, is_of
from cnnjax.models.foreign import Foreign
from cnnjax.train.feed import Portion
from cnnjax.train.losses import LOSSES
from cnnjax.train.optimizers import kernels, learning_rate, make_optimizer
from cnnjax.train.placement import DATA
from cnnjax.train.precision import in_precision
from cnnjax.train.rematerialization import in_segments

Preprocess = Callable[
    [UInt8[Array | np.ndarray, "batch height width channels"]], Float[Array, "batch height width channels"]
]


@runtime_checkable
class Network(Protocol):
    """Flax's two functions: a module of Linen, or what has them too."""

    def init(self, *args: Any, **kwargs: Any) -> Any: ...

    def apply(self, *args: Any, **kwargs: Any) -> Any: ...


class Inputs(NamedTuple):
    """A batch as the network sees it, augmented."""

    images: Float[Array, "batch height width channels"]
    labels: Int[Array, " batch"]
    mask: Bool[Array, " batch"]


class Metrics(NamedTuple):
    """Sums over examples, so that they add up over batches."""

    loss: Float[Array, ""]
    errors: Float[Array, ""]  # the class of highest probability is not the label
    errors_top5: Float[Array, ""]  # the label is not among the five most probable classes
    count: Float[Array, ""]


class TrainState(NamedTuple):
    """All that the step changes and all that a checkpoint holds."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    batch_stats: Any
    metrics: Metrics  # of the epoch so far
    unsound: Int[Array, ""]  # steps that were not taken, because their loss or a gradient was not finite
    rate_scale: Float[Array, ""]  # of the learning rate; halved at each rewind


def make_preprocess(
    mean: Float[Array | np.ndarray, "height width channels"], deviation: float | Float[np.ndarray, " channels"]
) -> Preprocess:
    """uint8 images to the network's input: `mean` subtracted, `deviation` grey levels counted as 1; `data.scale_of`."""
    mean = jnp.asarray(mean)
    return lambda images: (jnp.asarray(images).astype(jnp.float32) - mean) / deviation


def zero_metrics() -> Metrics:
    return Metrics(*(jnp.zeros((), jnp.float32) for _ in Metrics._fields))


def initial_state(network: Network, config: TrainConfig, hyper: Hyperparams, image_shape: tuple) -> TrainState:
    """Step 1: weights drawn at random from `hyper.seed`, kernels multiplied by `hyper.initial_scale`."""
    variables = network.init(address(hyper.seed, Purpose.INIT), jnp.zeros((1, *image_shape), jnp.float32))
    params = variables["params"]
    params = jax.tree.map(lambda leaf, k: leaf * hyper.initial_scale if k else leaf, params, kernels(params))
    opt_state = make_optimizer(config, hyper, jnp.float32(0)).init(params)
    return TrainState(
        jnp.int32(0), params, opt_state, variables.get("batch_stats", {}), zero_metrics(), jnp.int32(0), jnp.float32(1)
    )


def batch_metrics(
    loss: Float[Array, " batch"], logits: Float[Array, "batch classes"], batch: Batch | Inputs
) -> Metrics:
    """The sums over the examples that `batch.mask` counts."""
    mask = batch.mask.astype(jnp.float32)
    label_logit = jnp.take_along_axis(logits, batch.labels[:, None], axis=1)
    # Ties count against the network, so that one that says the same of every class is not called right; so does NaN.
    better = jnp.sum(~(logits < label_logit), axis=1) - 1
    return Metrics(
        jnp.sum(jnp.where(mask > 0, loss, 0.0)),
        jnp.sum(mask * (better >= 1)),
        jnp.sum(mask * (better >= 5)),
        jnp.sum(mask),
    )


def all_finite(tree: Any) -> Bool[Array, ""]:
    """True where no leaf has a NaN or an infinity."""
    by_type: dict[Any, list[Array]] = {}
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        by_type.setdefault(leaf.dtype, []).append(leaf.reshape(-1))
    found = [jnp.bool(True)]
    for leaves in by_type.values():
        small = [leaf for leaf in leaves if leaf.size < _LARGE]
        found += [_is_finite(leaf) for leaf in leaves if leaf.size >= _LARGE]
        found += [jnp.all(jnp.isfinite(jnp.concatenate(small)))] if small else []
    return jnp.all(jnp.array(found))


_LARGE = 2**16  # of as many numbers XLA:CPU writes a mask and reads it again; of fewer each would be a program
_PARTS = 16


def _is_finite(leaf: Float[Array, " entries"]) -> Bool[Array, ""]:
    """Whether all entries are finite, by the largest of each sixteen, which is NaN where one of them is."""
    whole = leaf.size // _PARTS * _PARTS
    parts = leaf[:whole].reshape(_PARTS, -1)
    largest = functools.reduce(jnp.maximum, [jnp.abs(parts[part]) for part in range(_PARTS)])
    return jnp.all(jnp.isfinite(largest)) & jnp.all(jnp.isfinite(leaf[whole:]))


def _kept(old: Any, new: Any, frozen: tuple[str, ...]) -> Any:
    """Array by array: the old where its layer is frozen, else the new."""
    if not frozen:
        return new
    return jax.tree_util.tree_map_with_path(lambda path, *pair: pair[0 if is_of(dotted(path), frozen) else 1], old, new)


def _cut(batch: Batch, count: int) -> Batch:
    """The first images of the batch."""
    return Batch(*(part[:count] for part in batch))


def _first(images: Float[Array, "batch *shape"]) -> Float[Array, "*shape"]:
    """The first image, as a sum, for which devices that share the batch need not send each other images."""
    chosen = jnp.arange(len(images)).reshape(-1, *(1,) * (images.ndim - 1)) == 0
    return jnp.sum(jnp.where(chosen, images, 0), axis=0)


def make_prepare(preprocess: Preprocess, steps_per_epoch: int):
    """Returns the pure (hyper, step, batch) -> the batch as the network sees it."""

    def prepare(hyper: Hyperparams, step: Int[Array, ""], batch: Batch) -> Inputs:
        key = address(hyper.seed, Purpose.AUGMENT, step // steps_per_epoch, step)
        images = augment(key, preprocess(batch.images), hyper)
        counts = jnp.asarray(batch.mask) > 0
        # Padding shows the batch's first image: what stood there has no influence, and no activation of it can be
        # infinite, which even a cotangent of 0 makes NaN, where those of the images are not.
        images = jnp.where(counts.reshape(-1, *(1,) * (images.ndim - 1)), images, _first(images))
        return Inputs(images, jnp.asarray(batch.labels), counts)

    return prepare


def make_objective(network: Network, config: TrainConfig, steps_per_epoch: int):
    """Returns the pure (params, hyper, state, inputs, ...) -> loss, (metrics, new batch_stats, feature_maps).

    The loss is the sum over the images that count, divided by how many the step has: of a part of its batch
    (`part`, a number for its dropout) that is said by `total`.
    """
    loss_function = LOSSES[config.loss]
    apply = in_precision(network.apply, config.precision)

    def objective(params: Any, hyper: Hyperparams, state: TrainState, inputs: Inputs, total=None, part=None):
        params = _kept(jax.lax.stop_gradient(params), params, config.freeze)
        key = address(hyper.seed, Purpose.DROPOUT, state.step // steps_per_epoch, state.step)

        def applied(variables, images, counts, key, dropout_rate, batch_norm_momentum):
            return apply(
                variables,
                images,
                train=True,
                mask=counts,
                dropout_rate=dropout_rate,
                batch_norm_momentum=batch_norm_momentum,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )

        (logits, feature_maps), changed = in_segments(applied, config.rematerialize)(
            {"params": params, "batch_stats": state.batch_stats},
            inputs.images,
            inputs.mask,
            key if part is None else jax.random.fold_in(key, part),
            hyper.dropout_rate,
            hyper.batch_norm_momentum,
        )
        losses = loss_function(logits, inputs.labels, hyper.label_smoothing)
        mean = jnp.sum(losses, where=inputs.mask) / (jnp.sum(inputs.mask) if total is None else total)
        places = {"the images": inputs.images, **feature_maps, "the logits": logits, "the loss": losses}
        # Numbered, because a dict that comes out of `jit` or `grad` is sorted by its keys.
        seen = {f"{number:03d} {name}": value for number, (name, value) in enumerate(places.items())}
        return mean, (batch_metrics(losses, logits, inputs), changed.get("batch_stats", {}), seen)

    return objective


def _parts(inputs: Inputs, count: int) -> Inputs:
    """[batch, ...] -> [count, batch / count, ...], every count-th image; of each device's share as many to each part.

    So the padding behind the last images is spread over all parts.
    """
    return jax.tree.map(lambda array: array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1), inputs)


def make_gradients(network: Network, config: TrainConfig, preprocess: Preprocess, steps_per_epoch: int):
    """Returns the pure (hyper, state, batch) -> (gradient of the mean loss, (metrics, new batch_stats)).

    With `config.accumulate` the batch is augmented as a whole, and then gone through in so many parts.
    """
    prepare = make_prepare(preprocess, steps_per_epoch)
    objective = jax.grad(make_objective(network, config, steps_per_epoch), has_aux=True)

    def gradients(hyper: Hyperparams, state: TrainState, batch: Batch):
        prepared = prepare(hyper, state.step, batch)
        if config.accumulate == 1:
            gradient, (metrics, batch_stats, _) = objective(state.params, hyper, state, prepared)
            return gradient, (metrics, batch_stats)
        total = jnp.sum(prepared.mask)

        def add(sums, numbered):
            part, inputs = numbered
            gradient, metrics, batch_stats = sums
            seen = state._replace(batch_stats=batch_stats)
            more, (of_part, changed, _) = objective(state.params, hyper, seen, inputs, total, part)
            some = jnp.any(inputs.mask)  # else its statistics are those of nothing, and NaN
            more = jax.tree.map(lambda leaf: jnp.where(some, leaf, 0), more)
            batch_stats = jax.tree.map(lambda new, old: jnp.where(some, new, old), changed, batch_stats)
            return (*jax.tree.map(jnp.add, (gradient, metrics), (more, of_part)), batch_stats), None

        parts = jnp.arange(config.accumulate), _parts(prepared, config.accumulate)
        zeros = jax.tree.map(jnp.zeros_like, state.params), zero_metrics(), state.batch_stats
        (gradient, metrics, batch_stats), _ = lax.scan(add, zeros, parts)
        return gradient, (metrics, batch_stats)

    return gradients


def make_first_unsound(network: Network, config: TrainConfig, preprocess: Preprocess) -> Callable[..., str | None]:
    """Returns (hyper, state, images, labels) -> where the step at `state.step` first has a NaN or an infinity, or None.

    In the order of the computation: the images as the network takes them, every layer's activations, logits and loss,
    then the gradients from the last layer to the first. `images` and `labels` are the whole training set.
    """

    @functools.partial(ops.jit, static_argnums=4)
    def finite(hyper: Hyperparams, state: TrainState, batch: Batch, part: int | Int[Array, ""], steps_per_epoch: int):
        objective = jax.grad(make_objective(network, config, steps_per_epoch), has_aux=True)
        prepared = make_prepare(preprocess, steps_per_epoch)(hyper, state.step, batch)
        if config.accumulate == 1:
            gradient, (_, _, seen) = objective(state.params, hyper, state, prepared)
        else:
            one = jax.tree.map(lambda array: array[part], _parts(prepared, config.accumulate))
            gradient, (_, _, seen) = objective(state.params, hyper, state, one, jnp.sum(prepared.mask), part)
        return [{name: all_finite(leaf) for name, leaf in found.items()} for found in (seen, gradient)]

    def first_unsound(hyper: Hyperparams, state: TrainState, images: Any, labels: Any) -> str | None:
        steps_per_epoch = -(-len(labels) // config.batch_size)
        order, masks = epoch_order(hyper.seed, state.step // steps_per_epoch, len(labels), config.batch_size)
        position = state.step % steps_per_epoch
        rows = np.asarray(order[position])
        batch = Batch(images[rows], labels[rows], np.asarray(masks[position]))
        if isinstance(network, Foreign):
            batch = _cut(batch, int(batch.mask.sum()))
        layers: list[str] = []  # in the order in which Flax makes their parameters, that of the computation
        jax.eval_shape(
            lambda key: layers.extend(network.init(key, preprocess(images[rows]))["params"]), jax.random.key(0)
        )
        for part in range(config.accumulate):
            forward, backward = finite(hyper, state, batch, part, steps_per_epoch)
            places = {name.partition(" ")[2]: forward[name] for name in sorted(forward)}
            places |= {f"the gradient of {name}": backward[name] for name in reversed(layers)}
            for name, is_finite in places.items():
                if not is_finite:
                    return name
        return None

    return first_unsound


def make_train_step(
    network: Network, config: TrainConfig, preprocess: Preprocess, steps_per_epoch: int, remainder: int = 0
) -> Callable[[Hyperparams, TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the pure step (hyper, state, batch) -> (state, the metrics of this batch), steps 2 to 5.

    A step whose loss or gradient is not finite changes no weight and counts as unsound. With `on_nan` "skip" the
    training goes on behind it; else the state stays where it is, at this step and for all that follow.

    Args:
        remainder: images in an epoch's last batch, which is filled up behind them; 0: it is full, as the others are. A
            network that takes no mask is shown these alone: what it computes over its batch, as the statistics of a
            batch normalization, would else count an image more than once.
    """
    gradients = make_gradients(network, config, preprocess, steps_per_epoch)

    def unfilled(hyper: Hyperparams, state: TrainState, batch: Batch):
        def of_these(hyper, state, batch):
            return gradients(hyper, state, _cut(batch, remainder))

        is_last = state.step % steps_per_epoch == steps_per_epoch - 1
        return lax.cond(is_last, of_these, gradients, hyper, state, batch)

    takes_mask = not isinstance(network, Foreign)
    in_turn = ops.members_in_turn(gradients if takes_mask or not remainder else unfilled)

    def train_step(hyper: Hyperparams, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradient, (metrics, batch_stats) = in_turn(hyper, state, batch)
        rate = learning_rate(config, hyper.learning_rate, state.step, steps_per_epoch) * state.rate_scale
        sound = jnp.isfinite(metrics.loss) & all_finite(gradient)
        goes_on = config.on_nan == "skip"
        taken = sound if goes_on else sound & (state.unsound == 0)
        optimizer = make_optimizer(config, hyper, rate, taken)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = _kept(state.params, optax.apply_updates(state.params, updates), config.freeze)
        batch_stats = _kept(state.batch_stats, batch_stats, config.freeze)

        def chosen(new, old):
            return jax.tree.map(lambda new, old: jnp.where(taken, new, old), new, old)

        new = state._replace(
            step=state.step + 1 if goes_on else state.step + taken,
            params=chosen(params, state.params),
            opt_state=opt_state,
            batch_stats=chosen(batch_stats, state.batch_stats),
            unsound=state.unsound + ~sound,
        )
        return new, chosen(metrics, zero_metrics())

    return train_step


def make_order(config: TrainConfig, num_images: int) -> Callable[..., tuple]:
    """Returns the pure (hyper, epoch) -> (rows, masks): the order of an epoch, as `epoch_order` gives it."""
    return lambda hyper, epoch: epoch_order(hyper.seed, epoch, num_images, config.batch_size)


def make_batch_of(mesh: Mesh | None = None, streamed: bool = False) -> Callable[[Portion, Int[Array, ""]], Batch]:
    """Returns the pure (portion, step) -> that step's batch, of which each device of the mesh takes its share.

    Args:
        streamed: each device has images of its own, and rows into these; else all have all.
    """

    def taken(images, labels, rows):
        return images[rows], labels[rows]

    if mesh is not None and mesh.size > 1:
        images = P(DATA) if streamed else P()
        taken = jax.shard_map(taken, mesh=mesh, in_specs=(images, images, P(DATA)), out_specs=P(DATA))

    def batch_of(portion: Portion, step: int | Int[Array, ""]) -> Batch:
        at = step - portion.first
        return Batch(*taken(portion.images, portion.labels, portion.rows[at]), portion.masks[at])

    return batch_of


def make_train_chunk(
    network: Network,
    config: TrainConfig,
    preprocess: Preprocess,
    num_images: int,
    batch_of: Callable[[Portion, Int[Array, ""]], Batch] | None = None,
) -> Callable[..., TrainState]:
    """Returns the pure chunk (hyper, state, portion, start, stop) -> state.

    It runs the steps from `start`, which is the state's own, to `stop` on the batches of the portion. Both bounds are
    traced: one compilation serves chunks of any length, and where a chunk or a portion ends changes no bit of the
    result. A state that stands still at an earlier step stays as it is.

    `batch_of` takes a step's batch out of the portion, as `make_batch_of` makes it for a mesh.

    Under `jax.vmap` over `hyper` and `state` the members share the bounds, and on a CPU each runs the whole chunk
    before the next one begins.
    """
    steps_per_epoch = -(-num_images // config.batch_size)
    train_step = make_train_step(network, config, preprocess, steps_per_epoch, num_images % config.batch_size)
    batch_of = batch_of or make_batch_of()

    def train_chunk(hyper: Hyperparams, state: TrainState, portion: Portion, start, stop) -> TrainState:
        def body(step, state):
            before = jax.tree.map(lambda total: jnp.where(step % steps_per_epoch == 0, 0.0, total), state.metrics)
            # The loop's own counter, because it has no member axis: what only depends on it is computed once.
            new, metrics = train_step(hyper, state._replace(step=step), batch_of(portion, step))
            reached = jnp.where(new.step > step, new.step, state.step)
            return new._replace(step=reached, metrics=jax.tree.map(jnp.add, before, metrics))

        return lax.fori_loop(start, stop, body, state)

    return ops.members_in_turn(train_chunk)


def make_evaluate(
    network: Network,
    config: TrainConfig,
    preprocess: Preprocess,
    batch_of: Callable[[Portion, Int[Array, ""]], Batch] | None = None,
) -> Callable[..., Metrics]:
    """Returns the pure (hyper, state, portion, start, stop) -> Metrics over the batches from `start` to `stop`."""
    loss_function = LOSSES[config.loss]
    apply = in_precision(network.apply, config.precision)
    batch_of = batch_of or make_batch_of()

    def evaluate(hyper: Hyperparams, state: TrainState, portion: Portion, start, stop) -> Metrics:
        def body(step, total):
            batch = batch_of(portion, step)
            logits, _ = apply({"params": state.params, "batch_stats": state.batch_stats}, preprocess(batch.images))
            losses = loss_function(logits, jnp.asarray(batch.labels), hyper.label_smoothing)
            return jax.tree.map(jnp.add, total, batch_metrics(losses, logits, batch))

        return lax.fori_loop(start, stop, body, ops.varying_with(zero_metrics(), (hyper, state, portion)))

    return ops.members_in_turn(evaluate)
