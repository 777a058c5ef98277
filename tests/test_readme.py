"""What README, the pages in docs and the scripts print: commands are read by their scripts, code runs as it stands."""

import dataclasses
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from flax import nnx

from cnnjax import cli
from cnnjax.config import Config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = {
    path.stem: importlib.import_module(f"experiments.{path.stem}")
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "__main__" in path.read_text()
}
COMMAND = re.compile(r"python3? -m experiments\.(\w+)([^`#\n]*)")


def commands() -> list[str]:
    """Every command of a script of ours that stands on a page or in the docstring of a script, each once."""
    pages = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
    pages += [script.__doc__ for script in SCRIPTS.values()]
    return sorted({f"{name} {rest.strip()}" for page in pages for name, rest in COMMAND.findall(page)})


def parsed(name: str, arguments: list[str]):
    """As the script itself reads them."""
    script = SCRIPTS[name]
    options = script.Options() if hasattr(script, "Options") else None
    if cli.Arguments not in script.main.__annotations__.values():
        return cli.parse_options(arguments, options)
    if name.startswith("sweep"):
        axes, arguments = SCRIPTS["sweep"].take_axes(arguments)
        assert axes
    return cli.parse(arguments, options)


def test_the_examples_of_clusters_are_read_by_their_script():
    slurm, jobset = ROOT / "examples" / "train.slurm", ROOT / "examples" / "jobset.yaml"
    subprocess.run(["bash", "-n", slurm], check=True)
    command = slurm.read_text().partition("srun python -m experiments.train ")[2]
    (job,) = yaml.safe_load(jobset.read_text())["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["completionMode"] == "Indexed" and container["command"][:3] == ["python", "-m", "experiments.train"]
    for words in (shlex.split(command.replace("\\\n", " ")), container["command"][3:]):
        told = parsed("train", words)
        assert told.options.distributed and told.options.coordinator is None
        # On two nodes of eight devices each.
        assert told.config.train.batch_size % 16 == 0 and told.config.data.packed


@pytest.mark.parametrize("command", commands())
def test_every_command_is_read_by_its_script(command, tmp_path):
    name, *arguments = shlex.split(command)
    finished = tmp_path / "config.json"  # of the run that the command before left
    finished.write_text('{"config": {}}')
    parsed(name, [str(finished) if word.endswith("/config.json") else word for word in arguments])


def test_each_study_of_a_run_takes_the_run_and_an_epoch():
    table = README.split("| script | what it shows |")[1].split("\n\n")[0]
    studies = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) - {"filter_evolution", "architectures"}
    assert len(studies) == 9
    for name in studies:
        options = parsed(name, ["--run", "DIR", "--epoch", "3"])
        assert (options.run, options.epoch) == (Path("DIR"), 3)


def test_every_option_that_is_named_exists():
    known = {"--help", "--config", "--workdir", "--sweep.model.filters", "--sweep.train.batch-size"}
    known.add("--train.no-onednn")  # as tyro has a field that is True or False
    for part in [Config(), *(script.Options() for script in SCRIPTS.values() if hasattr(script, "Options"))]:
        known |= set(names(part, "--"))
    fragments = re.findall(r"`(--[^`]*)`", README)
    named = {word.split("=")[0].removesuffix(".…") for text in fragments for word in re.findall(r"--[a-z]\S*", text)}
    assert len(named) > 20
    known |= {f"--sweep.{name.removeprefix('--hyper.')}" for name in known if name.startswith("--hyper.")}
    assert not {name for name in named if not any(f"{one}.".startswith(f"{name}.") for one in known)}


def names(options, prefix: str):
    for field in dataclasses.fields(options):
        name, value = f"{prefix}{field.name.replace('_', '-')}", getattr(options, field.name)
        yield name
        if dataclasses.is_dataclass(value):
            yield from names(value, f"{name}.")


CODE = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_code_on_a_network_of_ones_own_runs_as_it_stands(tmp_path, monkeypatch):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.dense = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.dense(nnx.relu(self.conv(x)).mean((1, 2)))

    images = np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), np.uint8)
    monkeypatch.chdir(tmp_path)
    exec(CODE[0], {"network": Net(nnx.Rngs(0)), "images": images})
    assert list(Path("runs/Net/figures").rglob("*.png"))


@pytest.mark.long
def test_the_code_runs_as_it_stands():
    _, first, second = CODE
    names = {}
    exec(first, names)
    assert names["logits"].shape == (4, 10) and list(names["feature_maps"])[:3] == ["conv1", "pool1", "conv2"]
    assert names["pixels"].shape == (4, 32, 32, 3)
    assert np.asarray(names["pixels"]).any()
    definition, _, right = second.rpartition("ops.jit(total)")
    exec(definition.rpartition("jax.jit(total)")[0], names)
    call, _, said = f"ops.jit(total){right}".partition("  # ")
    assert float(eval(call, names)) == float(re.match(r"[\d,]+", said)[0].replace(",", ""))
