"""What stands on a page, read by Python's own parser of HTML."""

import base64
import io
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from cnnjax.report import page, records
from tests.report import made

VOID = {"meta", "link", "input", "img", "br", "circle", "path", "line"}


class Read(HTMLParser):
    """The elements with their attributes, and the text; elements that are not closed in order are an error."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def ids(self):
        return [of["id"] for _, of in self.elements if "id" in of]

    @property
    def links(self):
        return [of["href"] for tag, of in self.elements if tag == "a"]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def rendered(*runs, **options):
    return page.render(list(runs), title="a title", beside="beside", **options)


@pytest.fixture(scope="module")
def one():
    return Read(rendered(made.run()).html)


@pytest.mark.parametrize(
    "runs", [[made.run()], [made.run("a"), made.run("b", evolutions={"conv2": made.evolution((0, 3))})]]
)
def test_every_id_stands_once_and_every_link_within_the_page_leads_to_one(runs):
    read = Read(rendered(*runs).html)
    assert len(set(read.ids)) == len(read.ids)
    inner = [unquote(link[1:]) for link in read.links if link.startswith("#")]
    assert len(inner) > 20 and set(inner) <= set(read.ids)


def test_a_units_place_is_marked_in_its_patches_where_there_is_one():
    of = made.evolution()
    of.places[1, 2] = np.nan  # map 3 at the last epoch; at the first it is dead
    read = Read(rendered(made.run(evolutions={"conv2": of}, strongest={})).html)
    marks = [of.get("data-m") or of["style"] for _, of in read.elements if of.get("class") == "place"]
    life = ["left:12.5%;top:12.5%", "left:37.5%;top:12.5%", "left:62.5%;top:12.5%"]
    assert marks == ["12.5 12.5|37.5 12.5|62.5 12.5", "|12.5 12.5|", *life, life[0]]
    read = Read(rendered(made.run(evolutions={"conv2": of._replace(places=None)}, strongest={})).html)
    assert "place" not in [of.get("class") for _, of in read.elements]


def test_every_unit_has_an_anchor_whether_it_is_pictured_or_not(one):
    assert {f"conv2/{unit}" for unit in range(4)} | {f"conv1/{unit}" for unit in range(3)} <= set(one.ids)
    assert {"fc3/1", "conv1", "conv2", "fc3"} <= set(one.ids) and "pool1" not in one.ids


def test_a_life_in_words(one):
    assert "Born at epoch 1: from there on its strongest image stays the same" not in one.text  # of map 0, not pictured
    assert (
        "Not settled: its strongest image is another at epoch 5 than before; 2 changes of its strongest image."
        in one.text
    )
    assert "Dead from epoch 1 on: zero on every training image; 0 changes" in one.text  # map 3
    assert "its filter has turned by 0.2 (1 − cosine, epoch 0 to 5)" in one.text


def test_a_dead_unit_has_the_word_and_no_picture(one):
    dead = [of for tag, of in one.elements if tag == "span" and "dead" in of.get("class", "")]
    assert [of["title"] for of in dead] == ["conv2, map 3, epoch 0: projection", "conv2, map 3, epoch 0: image patch"]


def test_every_picture_says_what_it_is(one):
    for tag, of in one.elements:
        assert tag != "img" or of["alt"]
        assert of.get("role") != "img" or of["aria-label"]


def test_numbers_and_commands_stand_beside_what_they_made(one):
    assert {"figures/e.npz", "figures/e.png", "t.npz", "o.npz", "metrics.jsonl"} <= set(one.links)
    assert {"draw it", "draw them", "probe it", "cover it", "repeat it"} <= {text.strip() for text in one.texts}
    assert "Not made. The command makes it:" in one.text


def test_images_that_a_study_explains_are_linked_from_the_units_that_they_excite(one):
    assert one.links.count("#page.attribution.0.5/11") == 2  # map 1, whose second image at epoch 1 it is, and fc3/1
    assert "fc3 / 1 – dog" in one.text


def test_names_and_settings_are_text_whatever_stands_in_them():
    evil = '<script>alert(1)</script>" onload="x'
    layer = made.LAYERS[0]._replace(name=evil)
    of = made.evolution()
    run = made.run(
        evil,
        state=evil,
        citation=((evil, evil),),
        credit=evil,
        command=evil,
        settings={evil: evil},
        layers=(layer, *made.LAYERS[1:]),
        evolutions={evil: of._replace(made=records.Made(command=evil))},
        class_names=(evil, evil),
        confusion=records.Confusion((evil, "dog"), np.ones((2, 2), int), 5),
        studies=(records.Study(evil, evil, evil, note=evil),),
    )
    html = page.render([run, made.run()], title=evil, beside="b").html
    read = Read(html)
    assert html.count("<script>") == 1 and "alert(1)" in read.text
    assert not any(name.startswith("on") for _, of in read.elements for name in of)
    assert page.anchor(evil, 3) in read.ids and f"#{page.anchor(evil, 3)}" in [unquote(link) for link in read.links]


def test_nothing_is_loaded_from_elsewhere():
    html = rendered(made.run(), made.run("b")).html
    assert re.findall(r"(?:src|href)=[\"'](?:https?:)?//", html) == []
    assert set(re.findall(r"url\((.{6})", html)) == {'"data:'}
    assert "default-src 'none'" in html


def test_a_page_over_the_budget_has_its_pictures_beside_it_and_no_other_does():
    whole = rendered(made.run())
    assert whole.images == {}
    size = len(whole.html.encode())
    assert rendered(made.run(), most_bytes=size).images == {}
    small = rendered(made.run(), most_bytes=size - 1)
    assert len(small.html.encode()) < size and "base64" not in small.html
    assert set(re.findall(r"beside/([\w.-]+\.png)", small.html)) == set(small.images)
    embedded = [base64.b64decode(text) for text in re.findall(r"base64,([\w+/=]+)", whole.html)]
    assert sorted(embedded) == sorted(small.images.values())
    for png in embedded:
        Image.open(io.BytesIO(png)).verify()


def test_the_slider_has_the_epochs_with_pictures_of_all_runs_and_else_all_epochs():
    other = made.run(
        "b", evolutions={"conv2": made.evolution(epochs=(0, 2, 5))}, strongest={}, filters=None, convergence=None
    )
    assert page.slider_epochs([made.run()]) == (0, 1, 5)
    assert page.slider_epochs([made.run(), other]) == (0, 1, 2, 5)
    bare = other._replace(evolutions={})
    assert page.slider_epochs([bare]) == (0, 1, 2, 3, 4, 5)
    assert page.slider_epochs([bare._replace(metrics=())]) == ()


def test_two_runs_differ_in_what_differs():
    a, b = made.run("a"), made.run("b", settings={"train.epochs": "6", "model.name": '"lenet"', "new": "1"})
    assert page.differences([a, b]) == [("train.epochs", ["5", "6"]), ("new", ["", "1"])]
    text = Read(rendered(a, b).html).text
    assert "In what the runs differ" in text and "In what the runs differ" not in Read(rendered(a).html).text


def test_two_runs_have_one_axis_and_the_same_unit_together():
    a, b = made.run("a"), made.run("b", evolutions={"conv2": made.evolution((0, 3))})
    read = Read(rendered(a, b).html)
    assert "a, test" in read.text and "b, test" in read.text and read.text.count("error : share of wrong answers") == 1
    articles = {of["id"] for tag, of in read.elements if tag == "article"}
    assert {"conv2/0", "conv2/1", "conv2/3"} <= articles


def test_a_run_of_which_there_is_nothing_yet_has_a_page_all_the_same():
    bare = records.Run("new", "not finished: as far as epoch 0 of 5", (), "", "go on", {}, ())
    read = Read(rendered(bare).html)
    assert "not finished" in read.text and "page.epoch" not in read.ids
    beside_another = Read(rendered(bare, made.run()).html)
    assert "conv2/3" in beside_another.ids


def test_white_space_in_a_layers_name_does_not_break_its_anchor():
    assert page.anchor("a b\n/é", 3) == "a_b_/é/3"
    run = made.run(evolutions={"a b": made.evolution()}, lives={})
    read = Read(rendered(run).html)
    assert "a_b/3" in read.ids and "#a_b/3" in read.links


def test_a_study_that_was_made_at_several_epochs_has_a_picture_each():
    figures = tuple(records.Figure(f"occlusion, epoch {epoch}", b"png", records.Made()) for epoch in (1, 5))
    run = made.run(studies=(records.Study("occlusion", "figure 7", "cover it", figures),))
    assert [of["alt"] for tag, of in Read(rendered(run).html).elements if tag == "img"] == [
        "figure 7: occlusion, epoch 1",
        "figure 7: occlusion, epoch 5",
    ]
