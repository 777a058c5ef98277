import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.config import Hyperparams, ModelConfig
from cnnjax.data import epoch_order
from cnnjax.errors import InputError
from cnnjax.train import run as running
from cnnjax.train.checkpoints import Checkpoints, read_epoch
from cnnjax.train.step import Metrics
from cnnjax.train.training import Training, compiled, metrics_line
from tests.cases import some
from tests.train.small import CONFIG, VALUES, same


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", some([1, 9, 23, 30], 9))
def test_a_run_stopped_anywhere_ends_like_the_uninterrupted_one_bit_for_bit(dataset, whole, tmp_path, after):
    """23 steps are an epoch; the state is saved after every chunk, so steps 9 and 30 resume within an epoch."""
    finished, workdir = whole

    def stop(description, done, total):
        if done >= after:
            raise Stop

    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, save_every_seconds=1e-9))
    with pytest.raises(Stop):
        running.run(config, dataset, tmp_path, stop)
    resumed = running.run(config, dataset, tmp_path)
    same(resumed.states, finished.states)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    first, second = speeds(tmp_path)
    assert (first["epoch"], second["epoch"]) == (1, 2) and (after != 9 or first["from_step"] > 0)


def speeds(workdir):
    return [json.loads(line) for line in (workdir / "throughput.jsonl").read_text().splitlines()]


def test_what_a_run_folder_holds(whole):
    finished, workdir = whole
    assert list(finished.states) == [0, 1, 2]
    assert [line["epoch"] for line in finished.metrics] == [0, 1, 2]
    assert finished.metrics[2]["train_loss"] < finished.metrics[1]["train_loss"]
    record = json.loads((workdir / "config.json").read_text())
    assert running.read_config(workdir / "config.json") == CONFIG
    assert len(record["data"]["sha256"]) == 64 and record["versions"]["jax"] == jax.__version__
    first, second = speeds(workdir)
    assert (first["epoch"], second["epoch"]) == (1, 2) and first["from_step"] == second["from_step"] == 0
    assert (first["steps"], second["steps"]) == (22, 23)  # the first step is told by itself
    assert first["first_step_seconds"] > 0 and first["images_per_second"] > 0 and 0 <= first["waiting"] < 1
    assert "peak_share" not in first


def test_a_finished_run_is_not_trained_again(dataset, whole):
    finished, workdir = whole
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != "lock"}
    calls = []
    again = running.run(CONFIG, dataset, workdir, lambda *call: calls.append(call))
    assert not calls
    same(again.states, finished.states)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_folder_of_another_run_is_refused_and_left_alone(dataset, whole, tmp_path):
    _, workdir = whole
    other = dataclasses.replace(CONFIG, hyper=Hyperparams(seed=7), train=dataclasses.replace(CONFIG.train, epochs=3))
    before = sorted(str(path) for path in workdir.rglob("*"))
    with pytest.raises(
        InputError, match=r"another config \(train.epochs: 3 here, 2 there; hyper.dropout_rate: .*hyper.seed: 7 here"
    ):
        running.run(other, dataset, workdir)
    assert sorted(str(path) for path in workdir.rglob("*")) == before
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(InputError, match=r"must be new, empty or a run's"):
        running.run(CONFIG, dataset, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_run_on_other_data_is_refused(dataset, whole):
    _, workdir = whole
    changed = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=255 - dataset.train.images))
    with pytest.raises(InputError, match="a run on other data .sha256"):
        running.run(CONFIG, changed, workdir)


def places(tree, path=()):
    """Every branch and leaf of a record."""
    yield path
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from places(value, (*path, name))


def put(tree, path, value):
    return value if not path else tree | {path[0]: put(tree[path[0]], path[1:], value)}


def test_a_rightly_sealed_config_of_another_form_is_taken_or_refused(dataset, whole, tmp_path):
    """Never another exception."""
    path = tmp_path / "config.json"
    record = running.read_sealed(whole[1] / "config.json")
    assert len(list(places(record))) > 60
    for place in places(record):
        for value in VALUES:
            changed = put(record, place, value)
            path.write_text(running.sealed(changed) if isinstance(changed, dict) else json.dumps(changed))
            with contextlib.suppress(InputError):
                running.read_config(path)
            with contextlib.suppress(InputError):
                running.check(tmp_path, CONFIG)
            with contextlib.suppress(InputError):
                if place[:1] in ((), ("data",)):
                    running.check_data(tmp_path, dataset)


@pytest.mark.parametrize(
    "content",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.decode().encode("utf-16"),
        lambda text: text.replace(b"digits", b"digits\xff"),
        lambda text: text.replace(b'"epochs": 2', b'"epochs": 2, "epochs": 3'),
        lambda text: text.replace(b'"epochs": 2', b'"epochs": ' + 5000 * b"2"),
        lambda text: text.replace(b'"epochs": 2', b'"epochs": ' + 10**5 * b"[" + 10**5 * b"]"),
        lambda text: text.replace(b'"epochs": 2', b'"epochs": 2e400'),
        lambda text: b"",
    ],
    ids=("mark", "utf-16", "not text", "twice", "huge", "deep", "infinite", "empty"),
)
def test_a_config_that_is_not_as_it_was_written_is_one_line(whole, tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content((whole[1] / "config.json").read_bytes()))
    for act in (lambda: running.read_config(path), lambda: running.check(tmp_path, CONFIG)):
        with pytest.raises(InputError, match="is not a run's config.json as it was written"):
            act()


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(dataset, tmp_path):
    wild = Hyperparams(learning_rate=1e3, filter_rms=np.inf, initial_scale=1e3)
    config = dataclasses.replace(CONFIG, hyper=wild)
    with pytest.raises(
        InputError, match=r"epoch 1, step \d+ of 23: NaN or infinity, first in the logits; .* that of epoch 0"
    ):
        running.run(config, dataset, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.epochs() == [0]


def training(dataset, workdir, checkpoints, said, poisoned, **of_train):
    """The loop, on images of which those in `poisoned` (indices) are infinitely bright."""
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **of_train))
    network = running.build(config, dataset)
    bright = jnp.asarray(dataset.train.images[poisoned])

    def preprocess(images):
        same_image = jnp.any(jnp.all(images[:, None] == bright, axis=(2, 3, 4)), axis=1)
        return jnp.where(same_image[:, None, None, None], jnp.inf, images / 16.0)

    programs = compiled(config, network, preprocess, dataset)
    return Training(config, programs, dataset, workdir, checkpoints, lambda *_: None, said.append, {})


@pytest.fixture
def claimed(dataset, tmp_path):
    with running.claimed(tmp_path, CONFIG, dataset, print), Checkpoints(tmp_path) as checkpoints:
        yield tmp_path, checkpoints


@pytest.mark.long
def test_a_step_that_is_not_finite_is_left_out_when_asked(dataset, claimed):
    workdir, checkpoints = claimed
    said = []
    loop = training(dataset, workdir, checkpoints, said, [5], on_nan="skip")
    loop.go_to(2)
    # the image is in one batch of each epoch
    assert int(loop.state.step) == 46 and int(loop.state.unsound) == 2
    scaled, *said = said
    assert scaled.startswith(
        "the first step scales filters down to hyper.filter_rms 0.1, above which they start: conv1 ("
    )
    assert [line.split(" left out")[0] for line in said] == ["epoch 1: 1 steps", "epoch 2: 1 steps"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loop.state.params))
    lines = [json.loads(line) for line in loop.lines]
    assert np.isfinite(lines[2]["train_loss"])


@pytest.mark.parametrize("loss", [np.nan, np.inf, [2.0, np.inf]])
def test_a_line_of_metrics_is_json_whatever_the_loss(loss):
    loss = np.array(loss)
    sums = Metrics(loss, *(np.ones_like(loss) for _ in range(3)))
    line = json.loads(metrics_line(1, sums, sums), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["test_loss"] == ([2.0, None] if loss.ndim else None) and line["test_error"] == (
        [1.0, 1.0] if loss.ndim else 1.0
    )


def test_a_training_that_stops_names_the_place_and_freezes_the_state(dataset, claimed):
    workdir, checkpoints = claimed
    loop = training(dataset, workdir, checkpoints, [], [5])
    with pytest.raises(InputError, match=r"first in the images; the last sound checkpoint is that of epoch 0"):
        loop.go_to(1)
    order, _ = epoch_order(CONFIG.hyper.seed, 0, len(dataset.train), 64)
    (wanted,) = {row for row, batch in enumerate(np.asarray(order)) if 5 in batch}
    assert int(loop.state.step) == wanted and int(loop.state.unsound) == 1


@pytest.mark.long
def test_a_rewound_training_halves_its_rate_until_it_gives_up(dataset, claimed):
    workdir, checkpoints = claimed
    said = []
    loop = training(dataset, workdir, checkpoints, said, [5], on_nan="rewind")  # at any rate there is the bright image
    with pytest.raises(InputError, match="10 times halved"):
        loop.go_to(1)
    assert len(said) == 11 and "going back to epoch 0 with half the learning rate" in said[1]
    checkpoints.wait()
    assert running.numbers(workdir, "latest") == [0]
    kept = checkpoints.load("latest", 0, loop.like)
    assert float(kept.state.rate_scale) == 2.0**-10


@pytest.mark.parametrize("text", ['{"loss": 1}\n', "[1]\n", "no json\n"])
def test_metrics_that_are_damaged_are_named(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match="metrics.jsonl must hold a JSON object"):
        running.read_metrics(tmp_path)


def test_a_workdir_that_is_a_file_is_refused(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--workdir must be a folder"):
        running.run(CONFIG, dataset, tmp_path / "file" / "run")


def test_a_network_that_does_not_fit_writes_nothing(dataset, tmp_path):
    config = dataclasses.replace(CONFIG, model=ModelConfig("lenet"))
    with pytest.raises(InputError, match=r"conv2: a 5×5 filter with stride 1 does not fit 4×4"):
        running.run(config, dataset, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_epoch_that_was_not_kept_is_named(dataset, whole):
    finished, workdir = whole
    with pytest.raises(InputError, match=r"has kept \(0, 1, 2\), got 5"):
        read_epoch(workdir, 5, finished.states[0])


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n{"epoch": 1, "te')
    assert running.read_metrics(tmp_path) == [{"epoch": 0}]
