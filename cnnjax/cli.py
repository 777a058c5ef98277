"""The edge that every script shares: arguments, one-line errors with exit status 2, progress bars, tables."""

import contextlib
import dataclasses
import io
import json
import os
import re
import runpy
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cnnjax
from cnnjax import processes
from cnnjax.compilation_cache import compiled_programs_kept
from cnnjax.config import Config, ModelConfig, from_json
from cnnjax.environment import flags_of_user
from cnnjax.errors import InputError, Terminated
from cnnjax.paths import expanded
from cnnjax.settings import pinned


class Arguments(NamedTuple):
    """What a script was told: the config, the run folder, and the script's own options."""

    config: Config
    workdir: Path
    options: Any
    taken: Any = None  # what the script took from the command line itself
    given: frozenset[str] = frozenset()  # the options on the command line, as "--data.image-size"


def run(
    main: Callable[[Arguments, "Progress"], Any],
    options: Any = None,
    *,
    config: str = "objects",
    workdir: str = "runs/{}",
    take: Callable[[list[str]], tuple[Any, list[str]]] = lambda arguments: (None, arguments),
) -> None:
    """Reads the command line of a script that works on a run, and calls `main(arguments, progress)`.

    Bad input of any kind ends with one line on standard error and exit status 2.

    Args:
        options: an instance of a frozen dataclass with the script's own options and their defaults, or None; each field
            says what it is in `metadata["help"]`.
        config: the name of the config where the command line names none.
        workdir: the run folder where it names none, with the config's name in the place of {}.
        take: from the command line to what the script reads itself and the rest.
    """

    def read() -> Arguments:
        taken, rest = take(sys.argv[1:])
        return parse(
            rest, options, config=config, workdir=workdir, prog=_program(), description=_description()
        )._replace(taken=taken)

    _end_well(main, read)


def run_options(main: Callable[[Any, "Progress"], Any], options: Any) -> None:
    """As `run`, for a script that has no config: calls `main(options, progress)`."""
    _end_well(main, lambda: parse_options(sys.argv[1:], options, prog=_program(), description=_description()))


def _end_well(main: Callable[[Any, "Progress"], Any], read: Callable[[], Any]) -> None:
    def terminated(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminated)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `experiments` has it while it is imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _flushed(), pinned(), Progress() as progress:
            refuse_twice(sys.argv[1:])  # as a whole: a script may take some of them out before the rest is read
            told = read()
            options = told.options if isinstance(told, Arguments) else told
            together = options if isinstance(options, processes.Together) else processes.Together()
            with processes.joined(together):
                check_platform()
                if not processes.is_first():
                    progress.be_quiet()
                if line := flags_of_user():
                    progress.say(line)
                with compiled_programs_kept(progress.say):
                    main(told, progress)
    except Exception as error:
        processes.end_with_others(error)  # whatever its type: JAX has several for a process that is gone
        if not isinstance(error, (InputError, OSError, MemoryError, RuntimeError)):
            raise
        if isinstance(error, BrokenPipeError) and _is_unread():
            processes.leave(128 + signal.SIGPIPE)  # as of `… | head`, which has what it wanted
        text = str(error) or ("no memory is left" if isinstance(error, MemoryError) else type(error).__name__)
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in text:  # JAX has no type for a full memory
            raise
        # One line whatever stands in it: a file name may hold a line break, or a terminal's control characters.
        line = " ".join(text.split())
        sys.stderr.write("error: " + "".join(c if c.isprintable() else "?" for c in line) + "\n")
        processes.leave(2)
    except (KeyboardInterrupt, Terminated) as stop:
        word, status = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
        sys.stderr.write(f"{word}; the same command goes on from its newest checkpoint, if there is one\n")
        sys.stderr.flush()
        processes.part()
        os._exit(status)  # the compiler's threads may still run, and tearing the interpreter down under them crashes


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Writes what was said before the interpreter's end, where an error could be answered no more."""
    try:
        yield
    finally:
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()


def _is_unread() -> bool:
    """Whether nobody reads what this process says; then it goes nowhere from now on."""
    if sys.stdout is None:
        return False
    output = sys.stdout.fileno()
    asked = select.poll()
    asked.register(output, 0)
    if not any(event & select.POLLERR for _, event in asked.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # else the interpreter's last flush fails too
    return True


def check_platform() -> None:
    """Raises InputError if JAX was told of a platform (JAX_PLATFORMS) that is not here."""
    import jax

    named = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if named in (None, "", "cpu"):  # then nothing is begun yet: a sweep still divides the CPU
        return
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion where the plugin of "cuda" is not installed
        why = f": {error}" if str(error) else ""
        raise InputError(f"JAX_PLATFORMS must name what this machine has, got {named!r}{why}") from None


def refuse_twice(arguments: Sequence[str]) -> None:
    """Raises InputError for an option that is given twice: one of the two would not be heard."""
    seen: dict[str, str] = {}
    for name, option in _options(arguments):
        if name in seen:
            both = option if seen[name] == option else f"{seen[name]} and {option}"
            raise InputError(f"{both} must be given once, got it twice")
        seen[name] = option


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options among the arguments, each by its name in one spelling and as it stands there."""
    for option in (argument.split("=")[0] for argument in arguments if argument.startswith("--")):
        # tyro's --no-NAME is --NAME's other value
        yield re.sub(r"(^--|\.)no-", r"\1", option.replace("_", "-")), option


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """What is given for the option, as NAME VALUE or NAME=VALUE; None where it is not given."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == option:
            return value if equals else following
    return None


def parse(
    arguments: Sequence[str],
    options: Any = None,
    *,
    config: str = "objects",
    workdir: str = "runs/{}",
    prog: str | None = None,
    description: str | None = None,
) -> Arguments:
    """The command line as `Arguments`; every field of the config and of `options` is an option.

    Raises:
        InputError: an unknown option, a value of the wrong type or out of range.
    """
    import tyro

    def helped(kind: Any, text: str) -> Any:
        return Annotated[kind, tyro.conf.arg(help=text)]

    refuse_twice(arguments)
    name, rest = _take_config(list(arguments), config)
    found = load_config(name)
    network = _value_of("--model.name", rest)
    if network not in (None, found.model.name):  # what the config says of its own network is not of this one
        found = dataclasses.replace(found, model=ModelConfig(name=network))
    where = workdir.format(Path(name).parent.name if name.endswith(".json") else Path(name).stem)
    names = ", ".join(known_configs())
    ours = [
        ("config", helped(str, f"one of {names}, a Python file (it is run), or a run's config.json"), name),
        ("workdir", helped(str, "the run folder: made, gone on with, or found finished"), where),
    ]
    own = [
        (field.name, helped(field.type, field.metadata["help"]), getattr(options, field.name))
        for field in (dataclasses.fields(options) if options else ())
    ]
    parts = [(field.name, field.type, getattr(found, field.name)) for field in dataclasses.fields(Config)]
    fields = [(field, kind, dataclasses.field(default=value)) for field, kind, value in ours + own + parts]
    everything = dataclasses.make_dataclass("Options", fields, frozen=True)
    told = _told(everything, rest, prog=prog, description=description)
    whole = Config(**{field: getattr(told, field) for field, _, _ in parts})
    chosen = dataclasses.replace(options, **{field: getattr(told, field) for field, _, _ in own}) if options else None
    return Arguments(whole, _workdir(told.workdir), chosen, given=frozenset(name for name, _ in _options(arguments)))


def parse_options(
    arguments: Sequence[str], options: Any, *, prog: str | None = None, description: str | None = None
) -> Any:
    """As `parse`, for a script that has no config: an instance of the dataclass of `options`."""
    refuse_twice(arguments)
    return _told(type(options), arguments, prog=prog, description=description)


def _workdir(text: str) -> Path:
    if not text or any(character in "[]*?" for character in text):  # the checkpoint library reads these as a pattern
        raise InputError(f"--workdir must be a name without [ ] * ?, got {text!r}")
    return _expanded(text, "--workdir")


def _expanded(path: str | Path, option: str) -> Path:
    try:
        return expanded(path)
    except OSError as error:
        raise InputError(f"{option} must be a path, got {str(path)!r}: {error.strerror}") from None


def _told(kind: Any, arguments: Sequence[str], *, prog: str | None, description: str | None) -> Any:
    """The command line as an instance of the dataclass `kind`; what is wrong with it as one line."""
    import tyro

    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            told = tyro.cli(
                kind, args=arguments, prog=prog, description=description, config=(tyro.conf.AvoidSubcommands,)
            )
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
        raise InputError(_one_line(output.getvalue())) from None
    names = {field.name: getattr(told, field.name) for field in dataclasses.fields(told)}
    paths = {name: value for name, value in names.items() if isinstance(value, Path)}
    return dataclasses.replace(
        told, **{name: _expanded(path, f"--{name.replace('_', '-')}") for name, path in paths.items()}
    )


def load_config(name: str) -> Config:
    """A config by its name in configs/, by the path of a Python file with CONFIG, or by that of a run's config.json.

    A Python file is code and is run; a config.json is data and is not.
    """
    path = _expanded(name, "--config")
    if path.suffix == ".json":
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise InputError(f"--config must name a file, got {name}")
        try:
            tree = json.loads(path.read_text())["config"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"--config must name a run's config.json, got {name}: {error!r}") from None
        return from_json(tree)
    if path.suffix != ".py":
        return _by_name(name)
    if not path.is_file():
        raise InputError(f"--config must name a file that exists, got {name}")
    try:
        found = runpy.run_path(str(path)).get("CONFIG")
    except (Exception, SystemExit) as error:
        raise InputError(f"--config {name} cannot be run: {type(error).__name__}: {error}") from None
    if not isinstance(found, Config):
        raise InputError(f"--config must lead to CONFIG = Config(...), and {name} has none")
    return found


# By its place, not by its name: Python would take a folder `configs` where the user stands for it.
CONFIGS = Path(cnnjax.__file__).parent.parent / "configs"


def known_configs() -> list[str]:
    """The names in configs/."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")


def _by_name(name: str) -> Config:
    if name not in known_configs():
        raise InputError(
            f"--config must be one of {', '.join(known_configs())}, a Python file or a run's config.json, got {name!r}"
        )
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["CONFIG"]


def _take_config(arguments: list[str], default: str) -> tuple[str, list[str]]:
    """Takes --config out, because the other options' defaults come from it."""
    for index, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return argument.removeprefix("--config="), arguments[:index] + arguments[index + 1 :]
        if argument == "--config":
            if index + 1 == len(arguments):
                raise InputError(f"--config must be followed by one of {', '.join(known_configs())}, got nothing")
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
    return default, arguments


def _program() -> str:
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name}" if spec else sys.argv[0]


def _description() -> str | None:
    return sys.modules["__main__"].__doc__


# What tyro and Python say of a value, and what is easier to read.
_PLAINER = (
    (r"^Error parsing [\w.-]+: (?=(data|model|train|hyper)\.|--)", ""),
    (r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 must be a whole number, got \2"),
    (r"^Error parsing (\S+): could not convert string to float: (.*)", r"\1 must be a number, got \2"),
)


def _one_line(box: str) -> str:
    """The sentence in the box that tyro draws."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ").strip() for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    sentence: list[str] = []
    for line in lines:
        if set(line) <= {"─"}:
            break
        sentence.append(line)
    said = " ".join(sentence)
    for theirs, ours in _PLAINER:
        said = re.sub(theirs, ours, said)
    return said or "the command line could not be read; see --help"


class Progress:
    """Bars with the remaining time on standard error; called as `progress(description, done, total)`.

    Where standard error is no terminal, each bar is drawn once, at the end.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True, markup=False, highlight=False)
        if not self.console.is_terminal:
            self.console.width = 130  # a log file has no width of its own
        self._bars = Progress(
            TextColumn("{task.description:<28}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._tasks: dict[str, Any] = {}

    def be_quiet(self) -> None:
        """Shows nothing from here on: another process does."""
        self.console.quiet = True

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._tasks:  # rich ends even a display that never began with an empty line
            self._bars.stop()

    def __call__(self, description: str, done: int, total: int) -> None:
        if description not in self._tasks:
            self._bars.start()
            self._tasks[description] = self._bars.add_task(description, total=total, start=True)
        self._bars.update(self._tasks[description], completed=done, total=total)

    def over(self, description: str, things: Sequence[Any]) -> Iterable[Any]:
        """Iterates over `things` and moves the bar."""
        for number, thing in enumerate(things):
            yield thing
            self(description, number + 1, len(things))

    def say(self, text: Any) -> None:
        """Prints a line, or a rich table, above the bars."""
        self.console.print(text)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """A rich table; numbers to the right."""
    from rich import box
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    return drawn


def layer_table(rows: Sequence[Any], name: str) -> Any:
    """The layers of a network as the lecture computes them; `rows` as from `models.layers`."""

    def by(sizes: Sequence[int]) -> str:
        return "×".join(str(size) for size in sizes)

    def size_rule(row: Any) -> str:
        if not row.window:
            return row.kind if row.kind in ("sum", "product", "concatenation") else ""
        axis = row.window.index(max(row.window))  # of a filter of 1×7 the side that is one
        window, stride, size = (row.window[axis] - 1) * row.dilation[axis] + 1, row.strides[axis], row.input_shape[axis]
        low, high = row.padding[axis]
        zeros = f"2·{low}" if low == high else f"{low} + {high}"
        quotient = f"({size} - {window} + {zeros})/{stride}"
        fits = (size - window + low + high) % stride == 0
        return f"{quotient if fits else f'⌊{quotient}⌋'} + 1 = {row.output_shape[axis]}"

    def sees(row: Any) -> str:
        sides = [field.size for field in row.fields] if row.fields else []
        told = by(sides[:1] if len(set(sides)) == 1 else sides) or "all"
        image = rows[0].input_shape[: len(sides)]
        return f"{told}, cut to {by(image)}" if sides and min(sides) > max(image) else told

    lines = [
        (
            row.name,
            size_rule(row),
            by(row.output_shape),
            sees(row),
            f"{row.weights:,} + {row.biases:,}" if row.weights else "",
            f"{2 * row.multiply_adds / 1e6:,.2f}" if row.multiply_adds else "",
        )
        for row in rows
    ]
    total = sum(row.weights + row.biases for row in rows)
    work = 2 * sum(row.multiply_adds for row in rows) / 1e6
    lines.append(("total", "", "", "", f"{total:,}", f"{work:,.2f}"))
    columns = ("layer", "(N - F + 2P)/S + 1", "output", "sees", "weights + biases", "MFLOP")
    return table(name, columns, lines)


def memory_table(takes: Any) -> Any:
    """What a training takes on each device; `takes` as `cnnjax.train.memory.Memory`."""
    what = {
        "state": "parameters, optimizer, batch statistics",
        "images": "at hand, with their order",
        "step": "activations, gradients and a batch, while a step runs",
        "saved": "a copy of the state, while it is saved",
        "left": "free for the last two",
    }
    sizes = {name: getattr(takes, name) for name in what}
    lines = [(name, f"{size / 2**20:,.1f}", what[name]) for name, size in sizes.items() if size is not None]
    return table("memory on each device", ("", "MB", ""), lines)
