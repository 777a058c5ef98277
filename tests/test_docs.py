"""What README, the pages in docs and the scripts print: commands are read by their scripts, code runs as it stands."""

import dataclasses
import importlib
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from flax import nnx

from cnnjax import cli, ops
from cnnjax.config import Config
from cnnjax.models import foreign

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README} | {
    str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))
}
MOST_OF_README = 9_000  # bytes: what a new user reads before the first command
MOST_OF_PICTURE = 180_000
SCRIPTS = {
    path.stem: importlib.import_module(f"experiments.{path.stem}")
    for path in sorted((ROOT / "experiments").glob("*.py"))
    if "__main__" in path.read_text()
}
COMMAND = re.compile(r"python3? -m experiments\.(\w+)([^`#\n]*)")


def commands() -> list[str]:
    """Every command of a script of ours that stands on a page or in the docstring of a script, each once."""
    pages = [*PAGES.values(), *(script.__doc__ for script in SCRIPTS.values())]
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


SH = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if SH.search(text)])
def test_every_line_to_be_typed_is_one_that_a_test_reads(page):
    """Commands of ours are read by their scripts, below; of the others the extras and the marks must exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    marks = {line.split(":")[0] for line in project["tool"]["pytest"]["ini_options"]["markers"]}
    for block in SH.findall(PAGES[page]):
        for line in block.splitlines():
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                assert words[0] in ("python3", ".venv/bin/python") and words[1] == "-m", part
                if words[2] == "pip":
                    (extras,) = re.findall(r"--editable '?\.(?:\[([\w,]+)\])?", part)
                    assert set(filter(None, extras.split(","))) <= set(project["project"]["optional-dependencies"]), (
                        part
                    )
                elif words[2] == "pytest":
                    assert "-m" not in words[3:] or words[words.index("-m", 3) + 1] in marks, part
                else:
                    known = words[2].removeprefix("experiments.") in SCRIPTS
                    assert known or words[2:] in (["venv", ".venv"], ["mkdocs", "serve"]), part


@pytest.mark.parametrize("command", commands())
def test_every_command_is_read_by_its_script(command, tmp_path):
    name, *arguments = shlex.split(command)
    finished = tmp_path / "config.json"  # of the run that the command before left
    finished.write_text('{"config": {}}')
    parsed(name, [str(finished) if word.endswith("/config.json") else word for word in arguments])


def test_each_study_of_a_run_takes_the_run_and_an_epoch():
    of_page = [
        re.findall(
            r"^\| \[`(\w+)`\]", PAGES[page].split("| script | what it shows |")[1].split("\n\n")[0], re.MULTILINE
        )
        for page in ("README.md", "docs/studies/index.md")
    ]
    assert of_page[0] == of_page[1]
    studies = set(of_page[0]) - {"filter_evolution", "architectures"}
    assert len(studies) == 9
    for name in studies:
        options = parsed(name, ["--run", "DIR", "--epoch", "3"])
        assert (options.run, options.epoch) == (Path("DIR"), 3)


def test_every_option_that_is_named_exists():
    known = {"--help", "--config", "--workdir", "--sweep.model.filters", "--sweep.train.batch-size"}
    known.add("--train.no-onednn")  # as tyro has a field that is True or False
    for part in [Config(), *(script.Options() for script in SCRIPTS.values() if hasattr(script, "Options"))]:
        known |= set(names(part, "--"))
    known |= {f"--sweep.{name.removeprefix('--hyper.')}" for name in known if name.startswith("--hyper.")}
    named = {
        word.split("=")[0].removesuffix(".…")
        for page in PAGES.values()
        for text in re.findall(r"`(--[^`]*)`", page)
        for word in re.findall(r"--(?!xla_)[a-z]\S*", text)
    }
    assert len(named) > 60
    assert not {name for name in named if not any(f"{one}.".startswith(f"{name}.") for one in known)}


def names(options, prefix: str):
    for field in dataclasses.fields(options):
        name, value = f"{prefix}{field.name.replace('_', '-')}", getattr(options, field.name)
        yield name
        if dataclasses.is_dataclass(value):
            yield from names(value, f"{name}.")


CODE = {
    page: found
    for page, text in PAGES.items()
    if (found := re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
}


def test_code_stands_only_where_a_test_runs_it():
    assert {page: len(code) for page, code in CODE.items()} == {
        "README.md": 1, "docs/code.md": 1, "docs/networks.md": 2, "docs/operations.md": 1
    }  # fmt: skip
    assert CODE["README.md"] == CODE["docs/code.md"]


def test_the_network_of_ones_own_is_one(tmp_path, monkeypatch):
    definition, _ = CODE["docs/networks.md"]
    (tmp_path / "my_network.py").write_text(definition)
    monkeypatch.chdir(tmp_path)
    network, _ = foreign.from_file("my_network.py:net")
    variables = network.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    logits, maps = network.apply(variables, np.zeros((2, 8, 8, 1), np.float32))
    assert logits.shape == (2, 10) and len(maps) == 2


@pytest.mark.long
def test_the_code_that_looks_into_it_runs_as_it_stands(tmp_path, monkeypatch):
    class Net(nnx.Module):  # smaller: the study takes the time
        def __init__(self, rngs):
            self.conv, self.dense = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.dense(nnx.relu(self.conv(x)).mean((1, 2)))

    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), np.uint8)
    exec(CODE["docs/networks.md"][1], {"network": Net(nnx.Rngs(0)), "images": images})
    assert list(Path("runs/Net/figures").rglob("*.png"))


@pytest.mark.long
def test_the_code_runs_as_it_stands():
    names = {}
    exec(*CODE["docs/code.md"], names)
    assert names["logits"].shape == (4, 10) and list(names["feature_maps"])[:3] == ["conv1", "pool1", "conv2"]
    assert names["pixels"].shape == (4, 32, 32, 3)
    assert np.asarray(names["pixels"]).any()
    names |= {"ops": ops}
    definition, _, right = CODE["docs/operations.md"][0].rpartition("ops.jit(total)")
    exec(definition.rpartition("jax.jit(total)")[0], names)
    call, _, said = f"ops.jit(total){right}".partition("  # ")
    assert float(eval(call, names)) == float(re.match(r"[\d,]+", said)[0].replace(",", ""))


def test_the_notebook_runs_and_a_sweep_in_it_is_short(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((ROOT / "docs" / "vmap_over_hyperparameters.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for cell in code:
        exec(cell, names)
    errors = names["errors"]
    assert errors.shape == (8, 2) and errors.min() < 0.08 and errors[-1].min() > 0.5
    assert max(jax.tree.leaves(names["difference"])) < 1e-3
    (sweep,) = [cell for cell in code if "meshgrid" in cell]
    assert len(sweep.splitlines()) <= 5
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


def test_readme_is_short():
    assert len(README.encode()) <= MOST_OF_README


def test_pictures_of_pages_are_small_and_all_are_shown():
    pictures = list((ROOT / "docs").glob("*.png"))
    assert not {path.name: size for path in pictures if (size := path.stat().st_size) > MOST_OF_PICTURE}
    assert not [path.name for path in pictures if not any(f"{path.name})" in page for page in PAGES.values())]


def anchors(text: str) -> set[str]:
    """Of the headings, as the forge and the site make them."""
    titles = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_of_a_page_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.is_file() and place.resolve().is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(place.read_text()), target
    if page.startswith("docs/"):  # the site has no other files
        assert "](../../" not in PAGES[page] and (page.count("/") > 1 or "](../" not in PAGES[page])


def test_every_page_is_in_the_menu_of_the_site():
    def places(part):
        if isinstance(part, str):
            return [part]
        return [place for child in (part.values() if isinstance(part, dict) else part) for place in places(child)]

    menu = places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(menu) == sorted(page.removeprefix("docs/") for page in PAGES if page.startswith("docs/"))


def test_every_room_has_its_page():
    rooms = {path.stem for path in (ROOT / "cnnjax").iterdir() if path.stem not in ("__init__", "__pycache__")}
    described = {name for page in PAGES.values() for name in re.findall(r"^::: cnnjax\.(\w+)", page, re.MULTILINE)}
    assert described == rooms
