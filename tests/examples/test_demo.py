"""examples/demo.py in headless Chromium, as a visitor uses it."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from modeling_mae import MAEForPreTraining
from tests.support.data import ROOT
from tests.support.models import tiny_model


pytestmark = pytest.mark.browser
SCRIPT = ROOT / "examples" / "demo.py"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def served(*arguments, cwd, script=SCRIPT, environment=None):
    """The address of the page, while the script runs."""
    port = str(free_port())
    flags = ["--server_port", port] if script == SCRIPT else []
    environment = {**os.environ, "GRADIO_SERVER_PORT": port, **(environment or {})}
    command = [sys.executable, str(script), *flags, *map(str, arguments)]
    log = cwd / "demo.log"
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=cwd, stdout=file, stderr=file, env=environment) as process,
    ):
        try:
            for _ in range(120):
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}") as answer:
                    if answer.status == 200:
                        break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()
    assert str(ROOT / "mae") not in log.read_text()  # in a traceback


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    assert chromium, "Install Debian's package chromium."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


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


def test_missing_model_names_the_command_that_makes_it(browser, tmp_path):
    with served(cwd=tmp_path) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_text("accelerate launch examples/run_mae.py").wait_for()
        assert "outputs/run_mae" in page.content()
        page.close()


def test_space_runs_from_its_files_alone(browser, tmp_path):
    """The files that docs/hub.md uploads, in one folder."""
    page = (ROOT / "docs" / "hub.md").read_text()
    patterns = re.findall(r'--include "(.*?)"', page)
    space = tmp_path / "space"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter_repo_objects(tracked.splitlines(), allow_patterns=patterns):
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, space / name)
    shutil.copytree(ROOT / "examples" / "space", space, dirs_exist_ok=True)
    tiny_model(MAEForPreTraining).save_pretrained(tmp_path / "model")
    environment = {"MAE_MODEL": str(tmp_path / "model"), "PYTHONPATH": ""}
    with served(script=space / "app.py", cwd=tmp_path, environment=environment) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_text(re.compile("12 of 16 patches are removed")).wait_for()
        page.close()
