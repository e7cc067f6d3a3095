"""The page of examples/demo.py in headless Chromium, as a visitor uses it."""

import re

import pytest
from PIL import Image

from modeling_mae import MAEForPreTraining
from tests.support.browser import served
from tests.support.models import tiny_model


pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    for number in range(2):
        tiny_model(MAEForPreTraining, norm_pix_loss=number == 1).save_pretrained(folder / f"model{number}")
    with served("--model", folder / "model0", folder / "model1", cwd=folder) as address:
        yield address


@pytest.fixture(params=[(1280, 1000), (390, 844)], ids=["desktop", "phone"])
def page(request, browser, address):
    width, height = request.param
    page = browser.new_page(viewport={"width": width, "height": height})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.get_by_text(re.compile("12 of 16 patches are removed")).wait_for()
    yield page
    assert not problems
    page.close()


def sources(page):
    """Addresses of the four pictures."""
    names = ("masked", "reconstruction", "error", "attention")
    return [page.locator(f"#{name} img").first.get_attribute("src") for name in names]


def test_page_shows_pictures_and_fits_the_width(page):
    assert page.locator("img").count() >= 12  # examples and pictures
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    before = sources(page)
    assert len(set(before)) == 4
    # By the keyboard alone.
    slider = page.get_by_label(re.compile("^range slider")).first
    slider.focus()
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    page.get_by_role("button", name="Reconstruct").focus()
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("11 of 16 patches are removed")).wait_for()
    page.get_by_role("radio", name="grid").focus()
    page.keyboard.press("Space")
    page.get_by_text(re.compile("12 of 16 patches are removed")).wait_for()
    assert sources(page) != before


def test_painted_patches_are_removed(page):
    page.get_by_role("radio", name="painted").check()
    page.get_by_text(re.compile("The paint covers no patch")).wait_for()
    canvas = page.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)  # the editor draws its image by animation frames
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1], steps=8)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Reconstruct").click()
    page.get_by_text(re.compile(r"^[1-9] of 16 patches are removed")).wait_for()


def test_broken_and_good_files(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    upload = page.locator("input[type=file]").first
    upload.set_input_files(str(tmp_path / "broken.png"))
    page.get_by_text(re.compile("cannot be read as an image with 3 channels")).wait_for()
    Image.new("RGB", (90, 30), "teal").save(tmp_path / "wide.png")
    page.reload()
    page.get_by_text(re.compile("12 of 16 patches are removed")).wait_for()
    page.locator("input[type=file]").first.set_input_files(str(tmp_path / "wide.png"))
    page.get_by_text(re.compile("9 of 12 patches are removed")).wait_for()


def test_other_model_and_name_that_is_none(page):
    model = page.get_by_label("Model").first
    model.click()
    page.get_by_role("option").last.click()
    page.get_by_text(re.compile("predicts normalised patches")).wait_for()
    model.fill("/etc")
    model.press("Enter")
    page.get_by_text(re.compile("is no name of a model on the Hub")).first.wait_for()
