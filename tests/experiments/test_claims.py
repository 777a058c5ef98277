"""The claims on numbers made by hand, and their table by one command."""

import json

import numpy as np
import pytest

from cnnjax.errors import InputError
from cnnjax.visualize.filters import FilterMeasures
from experiments import claims, pages
from tests.experiments.test_filter_evolution import Quiet


def shift(share_low, share_high, kept):
    """One image, moved by 0, 1 and 2 pixels, another image being 10 away in both layers."""
    return {
        "distance": 10 * np.array([[[0, share_low, 1], [0, share_high, 1]]]),
        "unrelated": np.full((1, 2), 10.0),
        "probability": np.full((1, 3), kept),
        "untouched": np.ones(1),
    }


def filters(base, large):
    measures = [
        [(base if name == "base" else large).get(field, 0) for field in FilterMeasures._fields] for name in NAMES
    ]
    return {"variants": NAMES, "measures": np.array(measures), "measure_names": FilterMeasures._fields}


NAMES = ("base", "first_11_4", "no_renormalization")
TURNED = {
    f"{name}/{field}": array
    for name, kept in (("translation", 0.9), ("scale", 0.75), ("rotation", 0.5))
    for field, array in (shift(0.5, 0.25, kept) | {"values": np.arange(3.0)}).items()
}
ERRORS = {
    "variants": np.array(["base", "no_middle", "no_dense", "no_middle_no_dense"]),
    "errors": np.array([[0, 40, 0], [0, 45, 0], [0, 44, 0], [0, 50, 0]]),
}
CASES = [
    (claims.error, {"test_error": np.array(0.125)}, None, (12.5,)),
    (
        # Half way at epochs 1 and 3 of 4: in straight lines between the kept epochs.
        claims.settles,
        {"filter_distance": np.array([[2, 1, 0.5, 0, 0], [1, 1, 0.75, 0.5, 0]]), "epochs": np.arange(5)},
        True, (1, 1, 3),
    ),
    (
        claims.centre,
        {"centre": np.array([0.5, 0.25]), "corners": np.array([[0, 0, 0, 0.5], [0, 0, 0, 0]]), "interval": (0.01, 1)},
        True, (0.3125,),
    ),
    (
        claims.centre,
        {"centre": np.array([0.5]), "corners": np.zeros((1, 4)), "interval": (-0.01, 1)}, False, (0.5,),
    ),
    (claims.shifted, TURNED, True, (50, 25)),
    (claims.turned, TURNED, True, (90, 75, 50)),
    (
        claims.deeper,  # [networks, folds, layers, classifiers, counts]
        {
            "classifiers": np.array(["softmax", "svm"]),
            "accuracy": np.array([[[0.1, 0.2, 0.3]], [[0.3, 0.2, 0.1]]])[..., None, None] * np.array([[-1], [1]]),
        },
        True, (1, -1),
    ),
    (
        claims.together,
        {"part": np.full((5, 2, 3), 0.25), "random": np.full((5, 2, 3), 0.5)}, True, (0.25, 0.5),
    ),
    (
        claims.transferred,  # [methods, counts, folds]
        {
            "methods": np.array(["from scratch", "frozen", "fine-tuned"]),
            "accuracy": np.array([[[0.5, 0.75], [0, 0]], [[0, 0], [0, 0]], [[0.5, 0.5], [1, 1]]]),
        },
        False, (62.5, 50),
    ),
    (claims.middle, filters({"middle": 0.25}, {"middle": 0.125}), True, (25, 12.5)),
    (claims.aliased, filters({"aliased": 0}, {"aliased": 0.5}), True, (0, 50)),
    (claims.ruling, filters({"ruling": 1.5}, {"ruling": 1.25}), False, (1.5, 1.25)),
    (claims.depth, ERRORS, True, (5, 4, 10)),
    (claims.depth, ERRORS | {"errors": np.array([[0, 40], [0, 35], [0, 35], [0, 32]])}, False, (-5, -5, -8)),
]  # fmt: skip


@pytest.mark.parametrize(("decide", "arrays", "holds", "numbers"), CASES, ids=lambda of: getattr(of, "__name__", ""))
def test_a_claim_is_decided_by_the_numbers_behind_a_figure(decide, arrays, holds, numbers):
    found = decide(arrays)
    assert found.holds is holds
    np.testing.assert_allclose(found.numbers, numbers)


def test_every_claim_is_tried():
    assert {decide for decide, *_ in CASES} == {claim.decide for claim in claims.CLAIMS}


def test_a_cell_says_for_how_many_it_holds_and_how_far_the_seeds_are_apart():
    claim = claims.Claim("text", "study", lambda arrays: claims.Found(None, ()), "{:.1f}", " → ")
    found = [claims.Found(True, (1.0, 10.0)), claims.Found(False, (2.0, 40.0)), claims.Found(True, (6.0, 10.0))]
    assert claims.cell(claim, found) == "2 of 3: 3.0 (1.0 to 6.0) → 20.0 (10.0 to 40.0)"
    assert claims.cell(claim, [claims.Found(None, (1.5,))]) == "1.5 (1.5 to 1.5)"


@pytest.mark.long
def test_one_command_trains_looks_and_writes_the_table(tmp_path):
    page = tmp_path / "claims.md"
    page.write_text(
        "words\n<!-- claims -->\n| claim | photos |\n| --- | --- |\n| test error, % | 15.0 |\n<!-- /claims -->\n"
    )
    only = ("training", "evolution", "occlusion")
    options = claims.Options(("digits",), (3, 4), only, epochs=1, out=tmp_path / "runs", markdown=page)
    claims.main(options, Quiet())
    columns = pages.columns_of(pages.between(page, "claims"))
    assert columns["photos"] == {"test error, %": "15.0"}
    assert columns["digits"] == json.loads((tmp_path / "runs" / "claims.json").read_text())["digits"]
    assert columns["digits"][claims.ABOUT] == "lenet, 1 epoch, seeds 3 4" and len(columns["digits"]) == 4
    runs = [json.loads((tmp_path / "runs" / f"digits-{seed}" / "config.json").read_text()) for seed in (3, 4)]
    assert [one["config"]["hyper"]["seed"] for one in runs] == [3, 4]


def test_a_page_without_its_markers_is_refused_before_anything_is_trained(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("words\n")
    with pytest.raises(InputError, match="^--markdown must have <!-- claims -->"):
        claims.main(claims.Options(out=tmp_path / "runs", markdown=page), Quiet())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"configs": ("phots",)}, "--configs must be among architectures, .*, got 'phots'"),
        ({"configs": ()}, "--configs must be among .*, got 'none'"),
        ({"only": ("smell",)}, "--only must be among training, evolution, .*, got 'smell'"),
        ({"seeds": (1, 1)}, "--seeds must be different ones, at least one, got 1 1"),
        ({"seeds": ()}, "--seeds must be different ones, at least one, got "),
        ({"seeds": (-1,)}, "--seeds must be between 0 and 2147483647, got -1"),
        ({"epochs": 0}, "--epochs must be between 1 and 100000, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        claims.Options(**options)
