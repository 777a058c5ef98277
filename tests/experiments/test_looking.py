"""Parts of a study that are kept: whose they are, and what becomes of damaged ones."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from cnnjax.config import Config, DataConfig
from cnnjax.data import checked_dataset
from cnnjax.errors import InputError
from experiments import (
    activations,
    architectures,
    attribution,
    correspondence,
    filter_evolution,
    invariance,
    lecture,
    looking,
    maximization,
    probes,
    scanning,
    transfer,
)
from experiments.looking import Trained, studying
from tests.experiments.test_activations import trained as trained_run
from tests.experiments.test_filter_evolution import Quiet


def of(folder, **changes) -> Trained:
    """A network that is nothing but its weights."""
    images, labels = np.zeros((2, 1, 1, 1), np.uint8), np.arange(2)
    dataset = checked_dataset("none", ("a", "b"), train=(images, labels), test=(images, labels))
    whole = {"config": Config(), "dataset": dataset, "variables": {"w": np.ones(3)}, "epoch": 1, **changes}
    return Trained(network=None, preprocess=None, layers={}, folder=folder, **whole)  # pyright: ignore[reportArgumentType]


def part(trained, compute, settings=None, name="x", progress=None):
    with studying(trained, "study", settings or {}, progress or Quiet()) as parts:
        return parts.get(name, compute)["a"]


def test_a_part_is_computed_once_for_all_that_decides_it(tmp_path):
    long = np.zeros(5000)
    nearly = long.copy()
    nearly[2500] = 1  # a text of the array leaves out its middle
    same = of(tmp_path).dataset
    other = dataclasses.replace(same, train=dataclasses.replace(same.train, images=same.train.images + np.uint8(1)))
    cases = [
        (of(tmp_path), {}),
        (of(tmp_path, epoch=2), {}),
        (of(tmp_path, variables={"w": np.zeros(3)}), {}),
        (of(tmp_path, variables={"w": np.ones(3, np.float32)}), {}),
        (of(tmp_path, variables={"v": np.ones(3)}), {}),
        (of(tmp_path, dataset=other), {}),
        (of(tmp_path, config=Config(data=DataConfig(unit=2.0))), {}),
        (of(tmp_path), {"boxes": long}),
        (of(tmp_path), {"boxes": nearly}),
        (of(tmp_path), {"n": 1}),
        (of(tmp_path), {"n": "1"}),
        (of(tmp_path), {"n": [("b", 1), ("a", 2)]}),
        (of(tmp_path), {"n": [("a", 2), ("b", 1)]}),
    ]
    for number, (trained, settings) in enumerate(cases):
        assert part(trained, lambda: {"a": np.array(number)}, settings) == number
    for number, (trained, settings) in enumerate(cases):
        assert part(trained, lambda: pytest.fail("it was computed"), settings) == number


def test_a_part_made_under_another_setting_of_jax_or_by_other_code_is_not_taken(tmp_path, monkeypatch):
    assert part(of(tmp_path), lambda: {"a": 1}) == 1
    with jax.default_matmul_precision("bfloat16"):
        assert part(of(tmp_path), lambda: {"a": 2}) == 2
    monkeypatch.setattr("cnnjax.__version__", "another")
    looking._code.cache_clear()
    assert part(of(tmp_path), lambda: {"a": 3}) == 3
    monkeypatch.undo()
    looking._code.cache_clear()
    assert part(of(tmp_path), lambda: {"a": 4}) == 1


def test_two_at_once_of_one_epoch_are_refused_and_of_two_epochs_do_not_meet(tmp_path):
    with studying(of(tmp_path), "study", {}, Quiet()) as first:
        with (
            pytest.raises(InputError, match=rf"^{tmp_path}/.*study/epoch-1 must .* \(pid {os.getpid()} on"),
            studying(of(tmp_path), "study", {"n": 2}, Quiet()),
        ):
            pass
        with studying(of(tmp_path, epoch=2), "study", {}, Quiet()) as second:
            first.get("x", lambda: {"a": 1})
            second.get("x", lambda: {"a": 2})
            assert (first.get("x", dict)["a"], second.get("x", dict)["a"]) == (1, 2)
    with studying(of(tmp_path), "study", {"n": 2}, Quiet()):
        pass


def files_of(folder, pattern):
    return next(iter((folder / "parts" / "study").rglob(pattern)))


def test_no_flipped_bit_of_a_part_gives_another_value(tmp_path):
    wanted = np.random.default_rng(0).normal(size=50)
    part(of(tmp_path), lambda: {"a": wanted})
    generator = np.random.default_rng(1)
    said, progress = [], Quiet()
    progress.say = said.append
    with studying(of(tmp_path), "study", {}, progress) as parts:
        for name in ("x.npz", "x.sha256"):
            path = files_of(tmp_path, name)
            for bit in generator.integers(8 * path.stat().st_size, size=40):
                content = bytearray(path.read_bytes())
                content[bit // 8] ^= 1 << bit % 8
                path.write_bytes(content)
                np.testing.assert_array_equal(parts.get("x", lambda: {"a": wanted})["a"], wanted)
    assert len(said) == 80 and all("x.npz was not as it was written; made anew" in line for line in said)


def test_a_part_that_is_cut_short_emptied_or_a_pipe_is_made_anew(tmp_path):
    part(of(tmp_path), lambda: {"a": 1})
    for name in ("x.npz", "x.sha256"):
        for content in (b"", files_of(tmp_path, name).read_bytes()[:20], b"\xff\xfe"):
            files_of(tmp_path, name).write_bytes(content)
            assert part(of(tmp_path), lambda: {"a": 1}) == 1
    path = files_of(tmp_path, "x.npz")
    path.unlink()
    os.mkfifo(path)
    assert part(of(tmp_path), lambda: {"a": 1}) == 1 and path.is_file()


def test_a_run_that_is_removed_meanwhile_stays_removed(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with studying(of(run), "study", {}, Quiet()) as parts:
        run.rename(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError):
            parts.get("x", lambda: {"a": 1})
    with pytest.raises(FileNotFoundError), studying(of(run), "study", {}, Quiet()):
        pass
    assert not run.exists()


@pytest.mark.parametrize("name", ["figures", "parts"])
def test_a_folder_of_the_run_that_is_a_link_is_refused(tmp_path, name):
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (run / name).symlink_to(outside)
    with pytest.raises(InputError, match=f"{name} must be a folder of its own, and is a link to .*outside"):
        part(of(run), lambda: {"a": 1})
    assert not list(outside.iterdir())


@pytest.mark.parametrize(
    ("study", "option"),
    [
        (activations, "random_maps"), (attribution, "steps"), (attribution, "samples"),
        (correspondence, "permutations"),
        (maximization, "units"), (maximization, "steps"), (probes, "folds"), (probes, "features"), (transfer, "folds"),
        (transfer, "steps"), (lecture, "updates"), (scanning, "epochs"), (architectures, "maps"),
        (filter_evolution, "maps"),
    ],
)  # fmt: skip
def test_a_count_that_no_machine_finishes_is_refused_at_once(study, option):
    with pytest.raises(InputError, match=rf"^--{option.replace('_', '-')} must be .*, got 1000000000000000000000000$"):
        study.Options(**{option: 10**24})


@pytest.mark.parametrize("given", [(0.0, 1.0, 10**24), (-1e30, 1e30, 3)])
def test_a_range_that_no_machine_finishes_or_that_is_no_number_in_float32_is_refused(given):
    with pytest.raises(InputError, match="--translation must be within ±1000000 and at most 10000 STEPS"):
        invariance.Options(translation=given)


def test_settings_that_have_no_whole_text_are_no_identity(tmp_path):
    with pytest.raises(TypeError):
        part(of(tmp_path), lambda: {"a": 1}, {"what": object()})


# Studies whose programs take many images at once.
OF_MANY = """
import sys, jax
from pathlib import Path
from experiments import activations, attribution, classify, invariance, occlusion, probes
from tests.experiments.test_activations import trained as trained_run
from tests.experiments.test_filter_evolution import Quiet
print(jax.device_count())
run = Path(sys.argv[1])
classify.main(classify.Options(run=run), Quiet())
occlusion.main(occlusion.Options(run=run, tested=32, others=2), Quiet())
invariance.main(invariance.Options(run=run, per_class=1, translation=(-1, 1, 3), scale=(1, 1.2, 3)), Quiet())
activations.main(activations.Options(run=run, layers=("conv2",), random_maps=3), Quiet())
attribution.main(attribution.Options(run=run, sanity_images=0, steps=4, samples=4), Quiet())
probes.main(probes.Options(run=run, per_class=(5,), folds=2), Quiet())
"""


@pytest.mark.long
@pytest.mark.usefixtures("only_on_cpu")
def test_studies_on_eight_devices_find_what_one_finds(tmp_path):
    found = {}
    for count in (1, 8):
        folder = trained_run(tmp_path / str(count))
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", OF_MANY, str(folder)]
        done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout == f"{count}\n", done.stderr[-2000:]
        found[count] = {}
        for path in sorted((folder / "figures").rglob("*.npz")):
            with np.load(path) as arrays:
                found[count] |= {f"{path.name} {name}": arrays[name] for name in arrays}
    assert found[1].keys() == found[8].keys() and len(found[1]) > 50
    for name, one in found[1].items():
        if one.dtype.kind == "f":
            np.testing.assert_allclose(found[8][name], one, rtol=2e-4, atol=2e-4 * np.nanmax(np.abs(one)), err_msg=name)
        else:
            np.testing.assert_array_equal(found[8][name], one, err_msg=name)
