import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cnnjax import cli, environment, models
from cnnjax.config import Config, Hyperparams, ModelConfig, to_json
from cnnjax.errors import InputError
from cnnjax.ops import compiler
from experiments import train

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Own:
    maps: int = dataclasses.field(default=12, metadata={"help": "how many"})


def test_options_change_the_config_they_name():
    told = cli.parse(
        ["--config", "digits", "--train.epochs", "8", "--train.keep-epochs", "1", "2", "--maps", "3"], Own()
    )
    assert told.config.train.epochs == 8 and told.config.train.keep_epochs == (1, 2)
    assert told.config.data.name == "digits" and told.options.maps == 3
    assert str(told.workdir) == "runs/digits"
    assert cli.parse(["--config=photos", "--workdir", "a b"]).workdir.name == "a b"
    assert cli.parse(["--hyper.filter-rms", "inf"]).config.hyper.filter_rms == float("inf")


@pytest.mark.parametrize("name", cli.known_configs())
def test_every_config_loads_and_goes_through_json(name, tmp_path):
    config = cli.load_config(name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": to_json(config)}))
    assert cli.load_config(str(path)) == config


def test_a_python_file_is_a_config_too(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from cnnjax.config import *\nCONFIG = Config(hyper=Hyperparams(seed=5))\n")
    assert cli.parse(["--config", str(path)]).config == Config(hyper=Hyperparams(seed=5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "photo"],
            "--config must be one of architectures, cifar10, digits, fashion_mnist, objects, photos, .* got 'photo'",
        ),
        (["--config"], "--config must be followed by"),
        (["--workdir", "a[1]"], "--workdir must be a name without"),
        (["--workdir", "~nobody_of_that_name/x"], "--workdir must be a path, got"),
        (["--config", "nowhere.py"], "--config must name a file that exists, got nowhere.py"),
        (["--config", "nowhere.json"], "--config must name a run's config.json, got nowhere.json"),
        (["--train.epoch", "3"], "Unrecognized options: --train.epoch"),
        (["--train.epochs", "three"], "--train.epochs must be a whole number, got 'three'"),
        (["--train.loss", "hinge"], "invalid choice 'hinge' for argument '--train.loss'"),
        (["--train.epochs", "0"], "^train.epochs must be between 1 and 100000, got 0"),
        (["--hyper.learning-rate", "nan"], "hyper.learning_rate must be between 0 and 1000, got nan"),
    ],
)
def test_bad_input_is_one_line_that_names_it(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        cli.parse(arguments, Own())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "photos", "--config", "digits"],
        ["--config=photos", "--config", "digits"],
        ["--train.epochs", "3", "--maps", "1", "--train.epochs", "3"],
        ["--train.epochs=3", "--train.epochs=4"],
        ["--train.keep-epochs", "1", "2", "--train.keep_epochs", "3"],
        ["--workdir", "a", "--workdir=b"],
        ["--maps", "1", "--maps", "2"],
    ],
)
def test_an_option_that_is_given_twice_is_refused(arguments):
    with pytest.raises(InputError, match=r"^--\S+ (and --\S+ )?must be given once, got it twice$"):
        cli.parse(arguments, Own())


def test_both_values_of_a_switch_are_one_option_given_twice():
    with pytest.raises(InputError, match="^--standardize and --no-standardize must be given once"):
        cli.refuse_twice(["--standardize", "--no-standardize"])
    cli.refuse_twice(["--norm", "--x", "--x.no-y", "-1", "-1", "photos", "photos"])


@dataclasses.dataclass(frozen=True)
class Paths:
    run: Path = Path("runs/photos")
    boxes: Path | None = None


def ended(script, monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """A script that is refused, in this process: its exit status and what it wrote to standard error."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    with pytest.raises(SystemExit) as stop:
        script()
    return stop.value.code, capsys.readouterr().err


def test_a_home_folder_is_put_in_the_place_of_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["script", "--run", "~/run"])
    told = []
    cli.run_options(lambda options, _: told.append(options), Paths())
    assert told == [Paths(run=tmp_path / "run")]
    (tmp_path / "mine.py").write_text("from cnnjax.config import *\nCONFIG = Config(hyper=Hyperparams(seed=5))\n")
    assert cli.parse(["--config", "~/mine.py"]).config.hyper.seed == 5


@pytest.mark.parametrize("option", ["--run", "--boxes"])
def test_a_home_folder_that_cannot_be_told_is_one_line(option, monkeypatch, capsys):
    status, said = ended(lambda: cli.run_options(pytest.fail, Paths()), monkeypatch, capsys, option, "~nosuch/x")
    assert status == 2 and said.startswith(f"error: {option} must be a path, got '~nosuch/x': ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "no memory is left"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "RESOURCE_EXHAUSTED: Out of memory"),
        (RuntimeError("RESOURCE_EXHAUSTED:\n9 bytes"), "RESOURCE_EXHAUSTED: 9 bytes"),
        (OSError(), "OSError"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error, said, monkeypatch, capsys):
    def main(options, progress):
        raise error

    status, line = ended(lambda: cli.run_options(main, Paths()), monkeypatch, capsys)
    assert status == 2 and line.startswith(f"error: {said}") and line.count("\n") == 1


@pytest.mark.parametrize("name", ["nosuch", "cuda"])
def test_a_platform_that_is_not_here_is_one_line(name):
    """In a process of its own, because JAX begins once. With a GPU, cuda is no mistake."""
    code = "from cnnjax import cli\ntry:\n cli.check_platform()\nexcept cli.InputError as error:\n print(error)"
    environment = os.environ | {"JAX_PLATFORMS": name, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    if done.stdout or name == "nosuch":
        assert done.stdout.startswith(f"JAX_PLATFORMS must name what this machine has, got '{name}'")
        assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("flags, said", [
    ("--xla_cpu_experimental_onednn_custom_call=false --xla_foo=1",
     "XLA_FLAGS holds for xla_cpu_experimental_onednn_custom_call, otherwise set here on a CPU"),
    ("--xla_cpu_experimental_ynn_fusion_type=reduce",
     "XLA_FLAGS holds for xla_cpu_experimental_ynn_fusion_type, otherwise set here on a CPU; some sums come out wrong "
     "with it"),
    ("--xla_foo=1", None),
])  # fmt: skip
def test_flags_of_the_user_hold_and_are_said(monkeypatch, flags, said):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(compiler, "version", lambda name: "0.10.2")
    assert environment.flags_of_user() == said


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(RuntimeError, match="a mistake"):
        cli.run_options(lambda *_: (_ for _ in ()).throw(RuntimeError("a mistake")), Paths())


@pytest.mark.parametrize("name", ["config.json", "mine.py"])
def test_a_pipe_as_config_is_refused_and_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="--config must name a file"):
        cli.load_config(str(tmp_path / name))


def test_a_folder_called_configs_where_the_user_stands_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    (tmp_path / "configs" / "photos.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert "digits" in cli.known_configs() and cli.load_config("photos") == cli.load_config("photos")
    assert cli.load_config("architectures").train.epochs == 8


@pytest.mark.parametrize("code", ["CONFIG = 3", "CONFIG = Config(", "import sys; sys.exit(3)", "1 / 0"])
def test_a_python_file_that_is_no_config_is_refused(tmp_path, code):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(InputError, match="--config .*mine.py"):
        cli.load_config(str(path))


def test_a_json_that_is_no_config_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"config": {"train": {"epochz": 3}}}')
    with pytest.raises(InputError, match="train.epochz is not a field of the config; known here: epochs,"):
        cli.load_config(str(path))


@pytest.mark.parametrize("arguments", [["--train.epochs", "-1"], ["--model.filters", "99", "1"]])
def test_a_script_ends_with_status_2_one_line_and_nothing_written(arguments, tmp_path, monkeypatch, capsys):
    arguments = ["--config", "digits", "--workdir", str(tmp_path / "run"), *arguments]
    status, said = ended(lambda: cli.run(train.main), monkeypatch, capsys, *arguments)
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()


def test_ctrl_c_during_the_imports_ends_without_a_traceback(tmp_path):
    """A SIGINT at the moment when the script asks for jax."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'jax':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "experiments.train", "--workdir", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)
    assert ended.returncode == -signal.SIGINT and ended.stdout == ended.stderr == ""
    assert not (tmp_path / "run").exists()


def test_a_pipe_that_nobody_reads_ends_a_script_without_a_word():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "experiments.train", "--help"]
    with open(write, "wb") as unread:
        ended = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, cwd=ROOT, timeout=120)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_field_larger_than_the_image_is_told_as_it_is_cut():
    """Fields of the default network on photos are 7, 8, 16, 18, … pixels; the last is larger than the image of 32."""
    rows = models.layers(models.build(ModelConfig(), (32, 32, 3), 10), (32, 32, 3))
    sees = list(cli.layer_table(rows, "layers").columns[3].cells)
    sizes = [row.fields[0].size if row.fields else None for row in rows]
    assert sizes[0] == 7 and max(filter(None, sizes)) > 32
    told = [f"{size}, cut to 32×32" if size and size > 32 else str(size or "all") for size in sizes]
    assert sees == [*told, ""]
