"""Figures are the same whatever matplotlib's settings are where they are drawn."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np

import cnnjax.figures
from cnnjax.figures import convergence, files

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "text.usetex": True, "figure.dpi": 30, "savefig.dpi": 20, "savefig.transparent": True, "savefig.bbox": "tight",
    "axes.facecolor": "red", "font.size": 40, "image.interpolation": "bilinear", "axes.titlesize": 40,
    "savefig.format": "svg", "figure.constrained_layout.use": False, "axes.formatter.use_mathtext": True,
}  # fmt: skip


def picture(path: Path) -> bytes:
    curves = np.linspace(0, 1, 6).reshape(2, 3)
    figure = convergence.draw((0, 1, 2), ("conv1", "conv2"), curves, curves, curves)
    files.save(path, figure, curves=curves)
    return path.read_bytes()


def test_a_users_settings_change_no_figure_and_are_back_afterwards(tmp_path):
    plain = picture(tmp_path / "plain.png")
    with matplotlib.rc_context(HOSTILE):
        before = dict(matplotlib.rcParams)
        assert picture(tmp_path / "hostile.png") == plain
        assert dict(matplotlib.rcParams) == before


def test_what_looks_like_tex_is_drawn_as_it_is_written(tmp_path):
    r"""As TeX "$\frac$" is an error."""
    curves = np.linspace(0, 1, 6).reshape(2, 3)
    figure = convergence.draw((0, 1, 2), (r"$\frac$", "conv2"), curves, curves, curves)
    assert files.save(tmp_path / "named.png", figure).stat().st_size > 0


def test_every_drawing_is_made_under_our_own_settings():
    names = [module.name for module in pkgutil.iter_modules(cnnjax.figures.__path__)]
    modules = [importlib.import_module(f"cnnjax.figures.{name}") for name in names]
    drawings = [(module, name) for module in modules for name in vars(module) if name.startswith("draw")]
    assert len(drawings) > 20 and all(hasattr(getattr(module, name), "__wrapped__") for module, name in drawings)


def ended(code: str, folder: Path) -> str:
    """What a process of its own says there, because matplotlib reads its settings when it is imported."""
    environment = os.environ | {"MPLBACKEND": "bogus", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"import os\nfrom cnnjax.figures import settings\n{code}"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_backend_that_matplotlib_does_not_know_is_no_matter(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True")
    code = "settings.own(lambda: print(__import__('matplotlib').rcParams['text.usetex']))()"
    assert ended(f"{code}\nprint(os.environ['MPLBACKEND'])", tmp_path) == "False\nbogus\n"


def test_a_file_of_settings_that_is_not_text_is_one_line(tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe")
    said = ended("try:\n settings.check()\nexcept settings.InputError as error:\n print(error)", tmp_path)
    assert said.startswith("matplotlib must load with the user's matplotlibrc, and does not: UnicodeDecodeError")
    assert said.count("\n") == 1
