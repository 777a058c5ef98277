"""Which pixels made the network say a class: six methods on the same images, and whether the weights matter to them.

The methods are the gradient (Simonyan et al. 2014), SmoothGrad (Smilkov et al. 2017), integrated gradients
(Sundararajan et al. 2017), Grad-CAM (Selvaraju et al. 2017), guided backpropagation (Springenberg et al. 2014) and the
deconvnet (Zeiler & Fergus 2014), all of the logit of one class, before the softmax.

The sanity check (Adebayo et al. 2018) replaces the layers' weights by random ones from the last layer down to the
first. A map that explains the network must change with it; one that stays the same has drawn the image.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from cnnjax import cli, models, ops
from cnnjax.cli import Progress
from cnnjax.config import check_seed
from cnnjax.data import Purpose, Split, address
from cnnjax.data.splits import of_all_classes
from cnnjax.errors import InputError
from cnnjax.figures import attribution as figure
from cnnjax.figures import files
from cnnjax.models import foreign
from cnnjax.visualize.attribution import (
    grad_cam,
    integrated_gradients,
    magnitude,
    randomized_from_the_top,
    saliency,
    similarity,
    smooth_grad,
)
from cnnjax.visualize.evolution import in_groups
from experiments.looking import (
    Parts,
    PictureOptions,
    Trained,
    example_images,
    looked_at,
    open_run,
    require_at_most,
    studying,
)

COLOURED = ("guided backpropagation", "deconvnet")  # drawn as they are, signed; their shapes are the point

Maps = Callable[[Any, Any, Any, Any], jax.Array]  # (variables, images, classes, keys) -> maps


@dataclasses.dataclass(frozen=True)
class Options(PictureOptions):
    """What is left open by the papers is named."""

    images: tuple[int | str, ...] | None = None  # test images by number, or files; none: ten, a seeded choice
    explain: Literal["answer", "label"] = "answer"  # the class whose logit is explained: the network's, or the true one
    layer: str | None = None  # the convolution of Grad-CAM; none: the last one
    steps: int = 32  # of integrated gradients, from the mean image
    samples: int = 32  # of SmoothGrad
    noise: float = 0.15  # of SmoothGrad, as a share of the image's range
    sanity_images: int = 16  # test images of the sanity check, of all classes; 0: no sanity check
    seed: int = 0  # of the noise and of the random weights

    def __post_init__(self):
        for name, bound in {"steps": 1, "samples": 1, "noise": 0, "sanity_images": 0}.items():
            if getattr(self, name) < bound:
                raise InputError(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(self, name)}")
        require_at_most(self, steps=10**6, samples=10**6)
        check_seed("--seed", self.seed)
        if self.images is not None and not self.images:
            raise InputError("--images must name at least one image, got none")
        if not np.isfinite(self.noise):
            raise InputError(f"--noise must be a finite number, got {self.noise}")


def main(options: Options, progress: Progress, opened: Trained | None = None) -> list[Path]:
    """`opened` is the run at that epoch, where it is open already. Returns the pictures."""
    trained, images = looked_at(opened or open_run(options, progress), options.images or (), progress)
    methods = defined(trained, make_methods(trained, options), progress)
    chosen = np.array(images or example_images(trained, 10, progress))
    elsewhere = dict.fromkeys(("run", "epoch", "data", "on"))
    settings = {**dataclasses.asdict(options), **elsewhere, "images": chosen}
    with studying(trained, "attribution", settings, progress) as parts:
        explained = classes(trained, chosen, options)
        maps = {
            name: parts.get(
                slug(name), lambda name=name: {"maps": computed(trained, methods[name], chosen, explained, options)}
            )["maps"]
            for name in progress.over("attributing", list(methods))
        }
        names = trained.class_names
        labels = trained.targets(trained.dataset.test)[chosen]
        rows = [
            trained.called(index, said) if said == label else f"{names[said]}\n(is {trained.called(index, label)})"
            for index, said, label in zip(chosen, explained, labels, strict=True)
        ]
        drawing = figure.draw(
            trained.dataset.test.images[chosen],
            {name: brightness(of) for name, of in maps.items() if name not in COLOURED},
            {name: of for name, of in maps.items() if name in COLOURED},
            rows,
            f"What speaks for {'the answer' if options.explain == 'answer' else 'the label'} at epoch {trained.epoch}",
        )
        arrays = {slug(name): of for name, of in maps.items()}
        path = trained.figures / "attribution.png"
        arrays |= {"pixels": trained.dataset.test.images[chosen], "labels": labels, "rows": rows}
        pictures = [files.save(path, drawing, images=chosen, classes=explained, class_names=names, **arrays)]
        if options.sanity_images and not jax.tree.leaves(trained.variables["params"]):
            progress.say(f"no sanity check: the weights of {trained.config.model.name} stand in its code")
        elif options.sanity_images:
            pictures.append(sanity(trained, methods, options, parts, progress))
        progress.say(f"figures in {trained.figures}")
    return pictures


def sanity(trained: Trained, methods: dict[str, Maps], options: Options, parts: Parts, progress: Progress) -> Path:
    """The maps of the same images and classes with more and more random layers, compared with the trained network's."""
    chosen = of_all_classes(trained.dataset.test.labels, options.sanity_images)
    groups = randomized_groups(trained)
    fresh = random_parameters(trained, address(options.seed, Purpose.STUDY, 1))
    every = randomized_from_the_top(trained.variables["params"], fresh, list(groups.values()))
    explained = classes(trained, chosen, options)

    def compared(name: str) -> dict[str, Any]:
        networks = (trained._replace(variables={**trained.variables, "params": params}) for params in every)
        stages = [brightness(computed(network, methods[name], chosen, explained, options)) for network in networks]
        found = [similarity(stage, stages[0]) for stage in stages]
        return {"rank": np.stack([one.rank for one in found]), "structure": np.stack([one.structure for one in found])}

    found = {
        name: parts.get(f"sanity-{slug(name)}", lambda name=name: compared(name))
        for name in progress.over("randomizing layers", list(methods))
    }
    rank, structure = ({name: of[field] for name, of in found.items()} for field in ("rank", "structure"))
    stages = ["none", *reversed(groups)]
    note = f"Sanity check: mean over {len(chosen)} test images, epoch {trained.epoch}"
    arrays = {f"{slug(name)}-{field}": of[field] for name, of in found.items() for field in of}
    drawing = figure.draw_sanity(stages, rank, structure, note)
    return files.save(trained.figures / "attribution_sanity.png", drawing, stages=stages, images=chosen, **arrays)


def random_parameters(trained: Trained, key: jax.Array) -> Any:
    """As the network draws them at first; of one that draws none, its own, each array's numbers in random order."""
    network, params = trained.network, trained.variables["params"]
    if not isinstance(network, foreign.Foreign) or network.draws:
        return network.init(key, np.zeros((1, *trained.dataset.image_shape), np.float32))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    shuffled = [
        jax.random.permutation(of_leaf, leaf.ravel()).reshape(leaf.shape)
        for of_leaf, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, shuffled)


def randomized_groups(trained: Trained) -> dict[str, list[str]]:
    """The parameters that become random at a time, by the layer: each layer's, in deep networks each stage's."""
    rows = list(trained.layers.values())
    few = len(models.stages(rows)) <= models.FEW
    ends = {row.name for row in rows if row.weights} if few else {*trained.shown, trained.logits}
    groups, held = {}, []
    for row in rows:
        held += row.parameters
        if row.name in ends:
            groups[row.name], held = held, []
    return groups


def make_methods(trained: Trained, options: Options) -> dict[str, Maps]:
    """The compiled methods by name."""
    maps = [name for name, row in trained.layers.items() if row.relu is not None and len(row.output_shape) == 3]
    if not maps:
        raise InputError(f"--run must be of a network with convolutions, got {trained.config.model.name!r}")
    layer = options.layer or maps[-1]
    if layer not in maps:
        raise InputError(f"--layer must be one of {', '.join(maps)}, got {layer!r}")
    relu = trained.layers[layer].relu or 0

    def compiled(method: Callable[..., jax.Array]) -> Maps:
        def maps(variables, images, classes, keys):
            return method(lambda x: trained.network.apply(variables, x)[0], trained.preprocess(images), classes, keys)

        return ops.jit(maps)

    methods = {
        "gradient": lambda f, x, c, _: saliency(f, x, c),
        "SmoothGrad": lambda f, x, c, keys: smooth_grad(f, x, c, keys, noise=options.noise, samples=options.samples),
        "integrated gradients": lambda f, x, c, _: integrated_gradients(f, x, c, steps=options.steps),
        "Grad-CAM": lambda f, x, c, _: grad_cam(f, x, c, relu=relu),
        "guided backpropagation": lambda f, x, c, _: saliency(f, x, c, rule="guided"),
        "deconvnet": lambda f, x, c, _: saliency(f, x, c, rule="deconvnet"),
    }
    return {name: compiled(method) for name, method in methods.items()}


def defined(trained: Trained, methods: dict[str, Maps], progress: Progress) -> dict[str, Maps]:
    """Without those that there are not for the network's nonlinearities, which is said."""
    image = jax.ShapeDtypeStruct((1, *trained.dataset.image_shape), np.uint8)
    label, keys = jax.ShapeDtypeStruct((1,), np.int32), jax.random.split(jax.random.key(0), 1)
    left_out = set()
    for name in COLOURED:
        try:
            jax.eval_shape(methods[name], trained.variables, image, label, keys)
        except InputError as error:
            progress.say(f"{name} is left out: {error}")
            left_out.add(name)
    return {name: method for name, method in methods.items() if name not in left_out}


def classes(trained: Trained, chosen: np.ndarray, options: Options) -> np.ndarray:
    """The class of each image that is explained."""
    if options.explain == "label":
        return trained.targets(trained.dataset.test)[chosen]
    test = trained.dataset.test
    return trained.answers(Split(test.images[chosen], test.labels[chosen]))


def computed(trained: Trained, method: Maps, chosen: np.ndarray, explained: np.ndarray, options: Options) -> np.ndarray:
    """The maps of the chosen images for these classes, a group of images at a time."""
    keys = jax.vmap(lambda index: address(options.seed, Purpose.STUDY, 0, index))(chosen)
    images = trained.dataset.test.images
    maps = [
        np.asarray(method(trained.variables, images[chosen[rows]], explained[rows], keys[rows]))
        for rows in in_groups(len(chosen), trained.group)
    ]
    return np.concatenate(maps)[: len(chosen)]


def brightness(maps: np.ndarray) -> np.ndarray:
    """One number a pixel, not negative."""
    return maps if maps.ndim == 3 else magnitude(maps)


def slug(name: str) -> str:
    return name.lower().replace(" ", "_")


if __name__ == "__main__":
    cli.run_options(main, Options())
