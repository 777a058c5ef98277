"""The page in a real browser: opened from a folder with spaces in its name, without a network."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from cnnjax.report import page, records
from tests.report import made

pytestmark = pytest.mark.extra
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium here", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # A browser that root starts, as in a container, has no sandbox.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "a folder #1 100% ü"
    folder.mkdir()
    runs = [made.run("a"), made.run("b", evolutions={"conv2": made.evolution((0, 3), (0, 5))}, strongest={})]
    for name, shown, most in (
        ("one", runs[:1], page.MOST_BYTES),
        ("two", runs, page.MOST_BYTES),
        ("beside", runs[:1], 1),
    ):
        found = page.render(shown, title=name, beside=f"{name} images", most_bytes=most)
        (folder / f"{name}.html").write_text(found.html, encoding="utf-8")
        for file, png in found.images.items():
            (folder / f"{name} images").mkdir(exist_ok=True)
            (folder / f"{name} images" / file).write_bytes(png)
    return folder


@pytest.fixture
def opened(browser, folder):
    """Opens one of the pages, which must be silent on the console."""
    said, contexts = [], []

    def open_page(name, anchor="", **options):
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("requestfailed", lambda request: said.append(request.url))
        shown.goto((folder / f"{name}.html").as_uri() + anchor)
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def set_to(shown, place):
    shown.locator("[id='page.epoch']").evaluate(
        "(slider, place) => { slider.value = place; slider.dispatchEvent(new Event('input')); }", place
    )


def pixel(tile):
    image = Image.open(io.BytesIO(tile.screenshot())).convert("RGB")
    return image.getpixel((image.width // 2, image.height // 2))


def picture(shown, label, number=0):
    return shown.locator(f"[aria-label={label!r}]").nth(number)


def test_the_slider_moves_filters_projections_patches_strongest_images_and_curves_together(opened):
    shown = opened("one")
    grid = "conv2, map 1, at the chosen epoch: "
    strongest = "conv2, map 2: number 3 of its strongest test images, "
    for place, epoch in enumerate(made.EPOCHS):
        set_to(shown, place)
        assert shown.locator("[id='page.shown']").inner_text() == f"epoch {epoch}"
        assert pixel(picture(shown, grid + "projection")) == made.colour(0, 0, place)
        assert pixel(picture(shown, grid + "image patch")) == made.colour(1, 0, place)
        assert pixel(picture(shown, "conv1, filter 2, at the chosen epoch")) == made.colour(2, 2, place)
        line = shown.locator("svg line.at").first.bounding_box()
        curve = shown.locator("figure svg").first.bounding_box()
        share = (line["x"] + line["width"] / 2 - curve["x"]) / curve["width"]
        assert share == pytest.approx((46 + (420 - 46 - 12) * epoch / 5) / 420, abs=0.01)
        if epoch:
            expected = [value + epoch for value in made.colour(3, 1, 2)]
            assert list(pixel(picture(shown, strongest + "projected"))) == expected
        else:  # not looked for at epoch 0
            assert not picture(shown, strongest + "projected").is_visible()
            assert shown.locator("[id='conv2/2'] .missing").is_visible()
    assert shown.locator("[id='conv2/1'] th.now").inner_text() == "5"


def test_the_place_of_a_unit_moves_with_the_slider(opened):
    shown = opened("one")
    patch = picture(shown, "conv2, map 1, at the chosen epoch: image patch")
    strongest = picture(shown, "conv2, map 2: number 3 of its strongest test images, patch")

    def place(tile):
        cross, box = tile.locator(".place").bounding_box(), tile.bounding_box()
        return [
            round((cross[axis] - box[axis] + cross[side] / 2) / box[side], 3)
            for axis, side in (("x", "width"), ("y", "height"))
        ]

    found = []
    for number in range(3):
        set_to(shown, number)
        found.append(place(patch))
    assert found == [[0.125, 0.125], [0.375, 0.125], [0.625, 0.125]]
    assert place(strongest) == [0.875, 0.125]
    set_to(shown, 1)
    assert place(strongest) == [0.375, 0.125]
    dead = picture(shown, "conv2, map 3, at the chosen epoch: image patch")
    assert dead.locator(".place").is_visible()
    set_to(shown, 0)
    assert not dead.locator(".place").is_visible()


def test_numbers_move_with_the_slider(opened):
    shown = opened("one")
    legend = shown.locator(".legend li", has_text="test").first.locator("data")
    cell = shown.locator("[id='conv2/2'] data.v").nth(1)
    found = []
    for place in range(3):
        set_to(shown, place)
        found.append((legend.inner_text(), cell.text_content()))
    assert found == [("0.9", ""), ("0.8", "13"), ("0.4", "53")]


def test_keys_and_the_button_move_the_slider(opened):
    shown = opened("one")
    said = shown.locator("[id='page.shown']")
    for key, epoch in ((",", 1), (",", 0), (",", 0), (".", 1)):
        shown.keyboard.press(key)
        assert said.inner_text() == f"epoch {epoch}"
    slider = shown.locator("[id='page.epoch']")
    slider.focus()
    shown.keyboard.press("ArrowRight")
    assert said.inner_text() == "epoch 5" and slider.get_attribute("aria-valuetext") == "epoch 5"
    button = shown.locator("[id='page.play']")
    button.click()  # from the last epoch it begins anew
    assert said.inner_text() == "epoch 0" and button.inner_text() == "stop"
    playwright.expect(button).to_have_text("play")
    assert said.inner_text() == "epoch 5"


def test_a_link_leads_to_its_unit_and_to_an_epoch_of_it(opened):
    shown = opened("one", "#conv2/3@1")
    assert shown.locator("[id='page.shown']").inner_text() == "epoch 1"
    assert 0 <= shown.locator("[id='conv2/3']").bounding_box()["y"] < 450
    shown.locator("ol.net a", has_text="conv2").click()
    assert shown.evaluate("decodeURIComponent(location.hash)") == "#conv2"
    assert 0 <= shown.locator("[id='conv2']").bounding_box()["y"] < 300
    shown.locator("ul.grid a", has_text="3").last.click()
    assert shown.evaluate("decodeURIComponent(location.hash)") == "#conv2/3"


def test_a_link_leads_to_its_unit_past_many_that_are_not_laid_out_yet(opened, folder):
    units = range(60)
    evolution = made.evolution(units)
    maximized = records.Maximized(np.array(units), made.sheet(5, 60, 1)[:, 0], np.ones(60), np.ones(60), 5)
    run = made.run(evolutions={"conv2": evolution}, lives={}, maximized={"conv2": maximized})
    (folder / "many.html").write_text(page.render([run], title="many", beside="b").html, encoding="utf-8")
    shown = opened("many", "#conv2/50")
    shown.wait_for_timeout(200)  # some frames
    below_the_slider = pytest.approx(4.5 * 16, abs=1)
    assert shown.locator("[id='conv2/50']").bounding_box()["y"] == below_the_slider
    shown.locator("nav a", has_text="conv2").click()
    shown.locator("ul.grid").last.locator("a", has_text="33").click()
    shown.wait_for_timeout(200)
    assert shown.locator("[id='conv2/33']").bounding_box()["y"] == below_the_slider


def test_a_unit_in_a_closed_table_is_opened_by_its_link_and_a_broken_link_does_no_harm(opened):
    shown = opened("one", "#conv2/0")  # of this one there are numbers only
    row = shown.locator("[id='conv2/0']")
    assert row.is_visible() and 0 <= row.bounding_box()["y"] < 900
    shown.evaluate("location.hash = '#conv2%'")
    shown.evaluate("location.hash = '#nothing@9'")
    assert shown.locator("[id='page.shown']").inner_text() == "epoch 5"


def test_two_runs_stand_side_by_side_and_one_that_has_not_kept_an_epoch_says_so(opened):
    shown = opened("two", "#conv2/3")
    unit = shown.locator("[id='conv2/3'] .of-run")
    assert unit.count() == 2 and unit.nth(0).locator("strong").first.inner_text() == "a"
    grids = shown.locator("[data-places]", has=shown.locator("h3", has_text="projections"))
    boxes = [grids.nth(number).bounding_box() for number in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    set_to(shown, 1)  # epoch 1, which the second has not kept
    missing = [grids.nth(number).locator("> .missing").is_visible() for number in (0, 1)]
    assert missing == [False, True]
    assert shown.locator("figure", has_text="share of wrong answers").locator("path.curve").count() == 2 * 4


def test_pictures_in_a_folder_beside_the_page_are_shown(opened):
    shown = opened("beside")
    assert pixel(picture(shown, "conv2, map 1, at the chosen epoch: projection")) == made.colour(0, 0, 2)
    figure = shown.locator("figure.figure img").first
    figure.scroll_into_view_if_needed()
    assert figure.evaluate("image => image.decode().then(() => image.naturalWidth)") == 20


@pytest.mark.parametrize("width", [420, 1280])
def test_nothing_is_wider_than_the_screen(opened, width):
    shown = opened("two")
    shown.set_viewport_size({"width": width, "height": 900})
    assert shown.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_light_text_stands_out_from_its_ground(opened):
    luminance = """() => { const parts = (name) => getComputedStyle(document.body)[name].match(/[\\d.]+/g).map(Number);
        return [parts("color"), parts("backgroundColor")]; }"""
    for scheme in ("light", "dark"):
        (ink, ground) = opened("one", color_scheme=scheme).evaluate(luminance)
        assert (sum(ink) < sum(ground)) == (scheme == "light") and abs(sum(ink) - sum(ground)) > 3 * 150


def test_main_figures_are_there_without_javascript(opened):
    shown = opened("one", java_script_enabled=False)
    assert pixel(picture(shown, "conv2, map 1, at the chosen epoch: projection")) == made.colour(0, 0, 2)
    assert pixel(picture(shown, "conv2, map 1, epoch 0: image patch")) == made.colour(1, 0, 0)
    assert not shown.locator(".bar").is_visible() and shown.locator("figure svg").first.is_visible()


def test_the_page_prints_with_its_pictures_and_without_its_slider(opened):
    shown = opened("one")
    shown.emulate_media(media="print")
    assert not shown.locator(".bar").is_visible()
    assert pixel(picture(shown, "conv2, map 1, epoch 0: image patch")) == made.colour(1, 0, 0)
    assert shown.pdf()[:5] == b"%PDF-"
    assert shown.locator("details").first.evaluate("part => part.open") is False  # open on paper, closed again
