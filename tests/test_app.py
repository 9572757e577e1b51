"""The page in a real browser: it wakes the model before anybody types, and shows an image or a sentence."""

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE
from platforms import PROJECT_PYTHON, Platform

APP_PYTHON = os.environ.get("APP_PYTHON")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (PROJECT_PYTHON and APP_PYTHON), reason="APP_PYTHON is not set: `make test` names it"),
    pytest.mark.xdist_group("platform"),
]
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not on the PATH (Debian: chromium-driver)"
)
SCREENSHOT = TEMPLATE / "build" / "app.png"
Open = Callable[..., str]


@pytest.fixture
def open_app(platform: Platform, tmp_path: Path) -> Iterator[Open]:
    """Start the app with more environment; returns its address."""
    started: list[subprocess.Popen] = []

    def start(*arguments: str, **environment: str) -> str:
        port = subprocess.check_output(
            [PROJECT_PYTHON, "-c", "import local_server; print(local_server.free_port())"], cwd=platform.project
        )
        command = [APP_PYTHON, "app.py", "--port", port.decode().strip(), *arguments]
        log = (tmp_path / "log").open("w")
        options = {"stdout": log, "stderr": log, "env": {**platform.environment(), **environment}}
        started.append(subprocess.Popen(command, cwd=platform.project, **options))
        url = f"http://127.0.0.1:{port.decode().strip()}"
        for _ in range(600):
            assert started[-1].poll() is None, (tmp_path / "log").read_text()
            try:
                urllib.request.urlopen(url, timeout=5)
                return url
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise AssertionError((tmp_path / "log").read_text())

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=30)
    assert "good-key" not in (tmp_path / "log").read_text()


@pytest.fixture
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=900,1400"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait_for(what: Callable[[], Any], message: str) -> Any:
    for _ in range(600):
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(message)


def state_of(browser: Any) -> str:
    return browser.find_element("id", "state").text if browser.find_elements("id", "state") else ""


@needs_browser
def test_opening_the_page_wakes_the_model_before_the_visitor_types(
    platform: Platform,
    open_app: Open,
    browser: Any,
) -> None:
    platform.set(provision_seconds=2.0)
    url = open_app()
    assert platform.tell()["starts"] == 0
    browser.get(url)
    wait_for(lambda: platform.tell()["starts"] == 1, "the page did not wake the model")
    seen = []

    def ready() -> bool:
        text = state_of(browser)
        if text and text not in seen:
            seen.append(text)
        return text.endswith("ready")

    wait_for(ready, f"never ready, but {seen}")
    assert [text.split()[-1] for text in seen] == ["waking", "loading", "ready"]
    browser.find_element("css selector", "#prompt textarea").send_keys("a lighthouse at dawn")
    browser.find_element("id", "generate").click()
    image = wait_for(lambda: browser.find_elements("css selector", "#image img"), "no image: " + state_of(browser))[0]
    wait_for(lambda: image.get_property("naturalWidth") == 512, "the image is not there")
    assert "seed" in wait_for(lambda: state_of(browser), "no state")
    assert "good-key" not in browser.page_source
    SCREENSHOT.parent.mkdir(exist_ok=True)
    browser.save_screenshot(str(SCREENSHOT))
    assert platform.tell()["starts"] == 1


@needs_browser
def test_an_error_is_shown_in_words(open_app: Open, browser: Any) -> None:
    browser.get(open_app(BASETEN_API_KEY="wrong-key"))
    sentence = "Baseten refused the key (401)"
    wait_for(lambda: sentence in state_of(browser), "no sentence")
    assert "wrong-key" not in browser.page_source


def test_the_page_generates_over_its_api_and_says_what_is_wrong(open_app: Open) -> None:
    url = open_app()
    code = """
import sys, gradio_client
page = gradio_client.Client(sys.argv[1], verbose=False)
for prompt, seed, size in (("a boat", "3", 256), (" ", "", 256), ("a boat", "x", 256), ("a boat", "", 7)):
    try:
        image, state = page.predict(prompt, seed, 1, size, api_name="/generate")
        print("image" if image else "none", "|", state)
    except Exception as error:
        print("error", "|", error)
"""
    answers = subprocess.run([APP_PYTHON, "-c", code, url], capture_output=True, text=True, timeout=300)
    lines = answers.stdout.splitlines()
    assert lines[0].startswith("image | ") and lines[0].endswith("seed 3"), answers.stdout + answers.stderr
    assert "Write a prompt first" in lines[1]
    assert "The seed is a whole number" in lines[2]
    assert lines[3].startswith("error | ")


@pytest.mark.parametrize(
    "environment", [{"BASETEN_API_KEY": ""}, {"BASETEN_MODEL_ID": ""}, {"BASETEN_MODEL_ID": "../x"}]
)
def test_the_app_does_not_start_without_a_key_or_a_model(platform: Platform, environment: dict[str, str]) -> None:
    command = [APP_PYTHON, "app.py", "--port", "0"]
    options = {"cwd": platform.project, "env": {**platform.environment(), **environment}}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
