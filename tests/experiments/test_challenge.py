"""The chart of the challenge: its facts, what is kept of them, points given and measured, and bad ones refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.errors import InputError
from experiments import challenge
from experiments.challenge import Options
from tests.experiments.test_filter_evolution import Quiet

PAGE = Path(__file__).parent.parent.parent / "docs" / "challenge.md"


def measured(folder, epoch=3, **changes):
    place = folder / "figures" / f"epoch-{epoch}"
    place.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    found = {"top1": 0.5, "top5": 0.125, "classes": 10, "images": 1234, "views": "ten"} | changes
    (place / "errors.json").write_text(json.dumps(found))
    return str(folder)


def test_there_is_one_winner_a_year_and_each_is_better_than_the_one_before():
    winners = [entry for entry, _ in challenge.FACTS if entry.kind == "winner"]
    assert [entry.year for entry in winners] == list(range(2010, 2018))
    assert (np.diff([entry.percent for entry in winners]) < 0).all()
    own = {entry.percent for entry, _ in challenge.FACTS if entry.kind == "paper"}
    assert own == {13.5, 14.8}  # table 2 of the paper ends with 14.8; 11.2 is Clarifai's
    assert [entry.team for entry, _ in challenge.FACTS if entry.percent == 11.2] == ["Clarifai"]
    assert all(source for _, source in challenge.FACTS)


def test_the_page_has_every_fact_with_its_source():
    rows = re.findall(r"^\| (\d+) \| (.*?) \| ([\d.]+) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(f"{e.year}", e.team, f"{e.percent:g}", source) for e, source in challenge.FACTS]
    assert challenge.HUMAN_SOURCE in PAGE.read_text()


def test_the_numbers_behind_the_chart_are_kept(tmp_path):
    runs = (measured(tmp_path / "run"), measured(tmp_path / "other", views="centre"))
    measured(tmp_path / "run" / "again", epoch=10)  # a run of another name, in it
    options = Options(points=("mine = 41.2", "a=b=0"), runs=runs, out=tmp_path / "new" / "chart")
    challenge.main(options, Quiet())
    assert {path.name for path in options.out.iterdir()} == {"challenge.png", "challenge.npz", "lock"}
    with np.load(options.out / "challenge.npz", allow_pickle=False) as arrays:
        found = dict(arrays)
    assert found["percent"].tolist() == [entry.percent for entry, _ in challenge.FACTS]
    assert found["source"].tolist() == [source for _, source in challenge.FACTS]
    assert found["human"] == 5.1
    assert found["point_name"].tolist() == ["mine", "a=b", *map(challenge.shortened, runs, (60, 60))]
    assert found["point_percent"].tolist() == [41.2, 0.0, 12.5, 12.5]
    assert found["point_note"].tolist()[2:] == [
        "10 classes, 1,234 images, ten views", "10 classes, 1,234 images, one view"
    ]  # fmt: skip
    with Image.open(options.out / "challenge.png") as picture:
        assert min(picture.size) > 600


def test_the_last_epoch_that_was_measured_counts(tmp_path):
    folder = measured(tmp_path / "run", epoch=9, top5=0.5)
    measured(tmp_path / "run", epoch=10, top5=0.25)
    assert challenge.point_of_run(folder).percent == 25.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine", "NAME=PERCENT with a number from 0 to 100, got 'mine'"),
        ("=3", "names of 1 to 60 printable characters, got ''"),
        ("mine=", "NAME=PERCENT"),
        ("mine=nan", "NAME=PERCENT"),
        ("mine=inf", "NAME=PERCENT"),
        ("mine=-1", "NAME=PERCENT"),
        ("mine=100.1", "NAME=PERCENT"),
        ("mine=12%", "NAME=PERCENT"),
        ("mine=1_0", "NAME=PERCENT"),
        (f"{'w' * 61}=3", "names of 1 to 60 printable characters"),
        ("a\nb=3", "names of 1 to 60 printable characters"),
    ],
)
def test_points_that_are_none_are_refused(text, message, tmp_path):
    with pytest.raises(InputError, match=f"^--points must (be|have) {message}"):
        challenge.main(Options(points=("good=1", text), out=tmp_path / "out"), Quiet())
    assert not (tmp_path / "out").exists()


def test_equal_names_and_too_many_points_are_refused(tmp_path):
    run = measured(tmp_path / "run")
    with pytest.raises(InputError, match="must have different names, got .*run' twice"):
        challenge.main(Options(runs=(run, run), out=tmp_path / "out"), Quiet())
    with pytest.raises(InputError, match="must have different names, got 'a' twice"):
        challenge.main(Options(points=("a=3", "a =4"), out=tmp_path / "out"), Quiet())
    with pytest.raises(InputError, match="must be at most 24 together, got 25"):
        challenge.main(Options(points=tuple(f"{n}={n}" for n in range(25)), out=tmp_path / "out"), Quiet())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"top5": 0.1}', '{"top5": true, "classes": 10, "images": 3, "views": "ten"}']
    + [json.dumps({"top5": 0.1, "classes": 10, "images": 3, "views": "ten"} | {name: value}) for name, value in (
        ("top5", 1.5), ("top5", float("nan")), ("classes", 0), ("images", "3"), ("views", "all"), ("views", ["ten"])
    )],
)  # fmt: skip
def test_damaged_errors_are_refused(tmp_path, text):
    folder = measured(tmp_path / "run")
    path = tmp_path / "run" / "figures" / "epoch-3" / "errors.json"
    path.write_text(text)
    with pytest.raises(InputError, match="errors.json must be as experiments.classify writes it"):
        challenge.point_of_run(folder)


def test_runs_without_a_top_5_error_are_refused(tmp_path):
    with pytest.raises(InputError, match="none has no config.json"):
        challenge.point_of_run(str(tmp_path / "none"))
    with pytest.raises(InputError, match="has only 4 classes"):
        challenge.point_of_run(measured(tmp_path / "few", top5=None, classes=4))
    (tmp_path / "few" / "figures" / "epoch-3" / "errors.json").unlink()
    with pytest.raises(InputError, match="experiments.classify --run .*few measures them"):
        challenge.point_of_run(str(tmp_path / "few"))
