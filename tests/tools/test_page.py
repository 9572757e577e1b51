"""The page in a real browser: it wakes the model before anybody types, and shows pictures or a sentence."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import CATALOG, PRESETS, TEMPLATE, BakedProject, render
from platforms import PROJECT_PYTHON, Platform

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
    ),
    pytest.mark.xdist_group("platform"),
]
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not on the PATH (Debian: chromium-driver)"
)
SCREENSHOTS = TEMPLATE / "build" / "page"
# More than the 40 threads that gradio has.
VISITORS = 60


class Page:
    """A running page, and its events as any client can call them."""

    def __init__(self, url: str, process: subprocess.Popen, log: Path) -> None:
        self.url = url
        self.process = process
        self.log = log
        config = httpx.get(f"{url}/config", timeout=60).json()
        self.events = {dependency["targets"][0][1]: dependency for dependency in config["dependencies"]}

    def call(
        self, event: str, data: list[Any], session: str, first: bool = False, seen: list[str] | None = None
    ) -> list[Any]:
        """Return the outputs of an event: the last ones, or the first ones that it gives. seen: gets all lines."""
        body = {"data": data, "fn_index": self.events[event]["id"], "session_hash": session}
        httpx.post(f"{self.url}/gradio_api/queue/join", json=body, timeout=60).raise_for_status()
        data_url = f"{self.url}/gradio_api/queue/data?session_hash={session}"
        with httpx.stream("GET", data_url, timeout=300) as stream:
            for line in stream.iter_lines():
                if seen is not None:
                    seen.append(line)
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == ("process_generating" if first else "process_completed"):
                    assert message["success"], message
                    return message["output"]["data"]
        raise AssertionError("the page closed the stream")


Open = Callable[..., Page]


@pytest.fixture
def open_app(platform: Platform, tmp_path: Path) -> Iterator[Open]:
    """Start the app with more environment."""
    started: list[Page] = []

    def start(**environment: str) -> Page:
        port = subprocess.check_output(
            [sys.executable, "-c", "import local_server; print(local_server.free_port())"], cwd=platform.project
        )
        command = [sys.executable, "-m", "fast_truss", "app", "--port", port.decode().strip()]
        log = tmp_path / "log"
        options = {"env": {**platform.environment(), **environment, "GRADIO_TEMP_DIR": str(tmp_path / "pictures")}}
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=platform.project, stdout=output, stderr=output, **options)
        url = f"http://127.0.0.1:{port.decode().strip()}"
        try:
            for _ in range(600):
                assert process.poll() is None, log.read_text()
                try:
                    httpx.get(url, timeout=5)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            started.append(Page(url, process, log))
        except BaseException:
            process.kill()
            raise
        return started[-1]

    yield start
    for page in started:
        page.process.terminate()
        page.process.wait(timeout=30)
        text = page.log.read_text()
        assert "good-key" not in text
        assert "Traceback" not in text, text


@pytest.fixture
def browse() -> Iterator[Callable[..., Any]]:
    from selenium import webdriver

    drivers = []

    def open_browser(width: int = 1280) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},1100"):
            options.add_argument(argument)
        if width < 500:  # no window is as narrow as a phone
            metrics = {"width": width, "height": 1100, "pixelRatio": 1.0}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        drivers.append(webdriver.Chrome(options, webdriver.ChromeService(DRIVER)))
        return drivers[-1]

    yield open_browser
    for driver in drivers:
        driver.quit()


def wait_for(what: Callable[[], Any], message: str) -> Any:
    for _ in range(1200):
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(message)


def text_of(browser: Any, element: str) -> str:
    # The page may redraw it between the two.
    return browser.execute_script(f"return document.getElementById('{element}')?.innerText.trim() ?? ''")


def make_picture(browser: Any) -> str:
    """Write a prompt, press the button, and return what the page says when the picture is there."""
    browser.find_element("css selector", "#prompt textarea").send_keys("a red door")
    browser.find_element("id", "generate").click()
    wait_for(lambda: text_of(browser, "message").startswith("Done"), "no picture: " + text_of(browser, "message"))
    width = "return document.querySelector('#gallery img')?.naturalWidth"
    wait_for(lambda: browser.execute_script(width) == 512, "the picture is not shown")
    return text_of(browser, "message")


def unfold(browser: Any, name: str) -> None:
    browser.execute_script(f"document.querySelector('#{name} button.label-wrap').click()")


@needs_browser
def test_opening_the_page_wakes_the_model_before_the_visitor_types(
    platform: Platform, open_app: Open, browse: Callable[..., Any]
) -> None:
    platform.set(provision_seconds=3.0)
    page, browser = open_app(), browse()
    assert platform.tell()["starts"] == 0
    browser.get(page.url)
    wait_for(lambda: platform.tell()["starts"] == 1, "the page did not wake the model")
    seen = []

    def ready() -> bool:
        text = text_of(browser, "state").split(" (")[0]
        if text and text not in seen:
            seen.append(text)
        return text == "Ready"

    wait_for(ready, f"never ready, but {seen}")
    assert seen[-3:] == ["Waking: getting a machine", "Waking: loading the model", "Ready"]
    seed = make_picture(browser).removeprefix("Done. Seed ").removesuffix(".")
    assert browser.find_element("css selector", "#seed input, #seed textarea").get_property("value") == seed
    # Kept: without a new seed the same picture comes again.
    browser.find_element("css selector", "#random_seed input").click()
    browser.find_element("id", "generate").click()
    started = ("Generating", "Step")
    wait_for(lambda: text_of(browser, "message").startswith(started), "it did not start again")
    wait_for(lambda: text_of(browser, "message") == f"Done. Seed {seed}.", "another seed")
    assert "good-key" not in browser.page_source
    assert platform.tell()["starts"] == 1


HOUSE_AND_MASK = """
import sys
from PIL import Image, ImageDraw
house, mask = Image.new("RGB", (512, 512), "skyblue"), Image.new("L", (512, 512))
draw = ImageDraw.Draw(house)
draw.rectangle((0, 360, 512, 512), fill="olivedrab")
draw.rectangle((140, 200, 380, 400), fill="tan")
draw.polygon([(120, 200), (260, 90), (400, 200)], fill="brown")
draw.rectangle((230, 300, 290, 400), fill="saddlebrown")
ImageDraw.Draw(mask).rectangle((220, 290, 300, 410), fill=255)
house.save(sys.argv[1])
mask.save(sys.argv[2])
"""


@needs_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_the_screen(
    awake: Platform, open_app: Open, browse: Callable[..., Any], tmp_path: Path, width: int, theme: str
) -> None:
    page, browser = open_app(), browse(width)
    browser.get(f"{page.url}/?__theme={theme}")
    wait_for(lambda: text_of(browser, "state") == "Ready", "not ready")
    files = {name: tmp_path / f"{name}.png" for name in ("image", "mask")}
    subprocess.run([PROJECT_PYTHON, "-c", HOUSE_AND_MASK, *files.values()], check=True)
    unfold(browser, "start")
    for name, file in files.items():
        browser.find_element("css selector", f"#{name} input[type=file]").send_keys(str(file))
        loaded = f"return document.querySelector('#{name} img')?.naturalWidth"
        wait_for(lambda script=loaded: browser.execute_script(script) == 512, f"{name} is not shown")
    make_picture(browser)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / f"{width}-{theme}.png"))
    unfold(browser, "more")
    wait_for(lambda: browser.find_element("id", "steps").is_displayed(), "it does not open")
    sizes = "return [document.documentElement.scrollWidth, window.innerWidth]"
    content, window = browser.execute_script(sizes)
    assert content <= window == width
    boxes = {name: browser.find_element("id", name).rect for name in ("prompt", "generate", "gallery", "width", "seed")}
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 50 for box in boxes.values())
    # Side by side, or the picture right below the button.
    assert (boxes["gallery"]["x"] > boxes["prompt"]["x"] + 200) == (width == 1280)
    assert boxes["generate"]["y"] < boxes["width"]["y"]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@needs_browser
def test_an_error_is_shown_in_words(open_app: Open, browse: Callable[..., Any]) -> None:
    page, browser = open_app(BASETEN_API_KEY="wrong-key"), browse()
    browser.get(page.url)
    sentence = "Baseten refused the key (401"
    wait_for(lambda: sentence in text_of(browser, "state"), "no sentence")
    browser.find_element("id", "generate").click()
    wait_for(lambda: text_of(browser, "message") == "Write a prompt first.", "no sentence beside the button")
    assert "wrong-key" not in browser.page_source


FORM = {
    "prompt": "a boat",
    "negative_prompt": "",
    "image": None,
    "mask": None,
    "strength": 0.6,
    "width": 384,
    "height": 512,
    "seed": "3",
    "random_seed": False,
    "num_images": 2,
    "steps": 1,
    "guidance_scale": 2,
    "output_format": "jpeg",
    "quality": 80,
}
# As the page has them: see page.py.
ORDER = ["prompt", "negative_prompt", "image", "mask", "strength", "width", "height", "seed", "random_seed"]
ORDER += ["num_images", "steps", "guidance_scale", "output_format", "quality"]


def test_whatever_is_sent_to_the_page_it_answers_in_a_sentence(awake: Platform, open_app: Open) -> None:
    page = open_app()

    def generate(session: str, **changes: Any) -> list[Any]:
        form = {**FORM, **changes}
        return page.call("click", [form[name] for name in ORDER], session)

    gallery, message, seed, _ = generate("good")
    assert "Done. Seed 3, 4." in message
    assert seed == "3"
    assert [picture["image"]["path"].endswith(".jpg") for picture in gallery] == [True, True]
    for number, (changes, sentence) in enumerate(
        [
            ({"prompt": None}, "The prompt is text"),
            ({"prompt": " "}, "Write a prompt first."),
            ({"seed": "9" * 5000}, "The seed is a whole number"),
            ({"seed": "-1"}, "The seed is a whole number"),
            ({"seed": "\u0663"}, "The seed is a whole number"),
            ({"negative_prompt": "mud", "guidance_scale": 1}, "guidance_scale"),
        ]
    ):
        assert sentence in generate(f"bad-{number}", **changes)[1], changes


LABELS = """
import json, sys
from fast_truss import AsyncClient, Target
from fast_truss.page import page
for config in json.load(sys.stdin):
    blocks = page(AsyncClient(Target("local"), url="http://127.0.0.1:9"), config)
    print(json.dumps([each["props"].get("label") or "" for each in blocks.get_config_file()["components"]]))
"""


def test_the_page_asks_for_nothing_that_the_family_cannot_use(bake: Callable[..., BakedProject]) -> None:
    configs = [yaml.safe_load(render("config.yaml", preset=preset)) for preset in PRESETS]
    options = {"cwd": bake(preset="sd15").path, "input": json.dumps(configs), "capture_output": True, "text": True}
    result = subprocess.run([sys.executable, "-c", LABELS], **options)
    assert result.returncode == 0, result.stderr
    for preset, line in zip(PRESETS, result.stdout.splitlines(), strict=True):
        facts, labels = CATALOG[preset], json.loads(line)
        for start, expected in {
            "Negative prompt": facts["negative_prompt"],
            "Guidance": facts["max_guidance_scale"] > 1,
            "Picture": facts["image_to_image"] and not facts["reference_images"],
            "Pictures that the prompt may speak of": facts["reference_images"],
            "Strength": facts["image_to_image"],
            "Mask": facts["inpaint"],
            "Styles": False,
        }.items():
            # "Pictures" are how many to make.
            found = [label for label in labels if label == start or label.startswith((f"{start}:", f"{start},"))]
            assert len(found) == bool(expected), (preset, start, labels)


def test_the_page_tells_the_steps(awake: Platform, open_app: Open) -> None:
    page = open_app()
    seen: list[str] = []
    form = {**FORM, "steps": 40, "num_images": 4}
    _, message, *_ = page.call("click", [form[name] for name in ORDER], "steps", seen=seen)
    assert "Done. Seed 3, 4, 5, 6." in message
    assert re.search(r"Picture \d of 4: Step \d+ of \d+ \(\d+ s\)", "".join(seen))


def test_a_button_is_no_public_call_and_a_proxy_is_no_obstacle(open_app: Open) -> None:
    # Port 9 is `discard`: nothing listens there.
    page = open_app(HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9", NO_PROXY="", no_proxy="")
    assert httpx.get(f"{page.url}/gradio_api/info", timeout=60).json()["named_endpoints"] == {}
    assert {event["api_visibility"] for event in page.events.values()} == {"private"}


def test_many_visitors_share_one_watcher_and_no_threads(platform: Platform, open_app: Open) -> None:
    platform.set(provision_seconds=10.0)
    page = open_app()
    asked = platform.tell()["asked"]
    # Each has seen its first words while the model wakes: none waits for the thread of another one.
    with ThreadPoolExecutor(VISITORS) as pool:
        seen = list(pool.map(lambda number: page.call("load", [], f"visitor-{number}", first=True), range(VISITORS)))
    assert all("Waking" in words for (words,) in seen)
    wait_for(lambda: platform.tell()["status"] == "ACTIVE", "never ready")
    assert platform.tell()["starts"] == 1
    assert platform.tell()["asked"] - asked < VISITORS


def test_a_busy_port_is_a_sentence(platform: Platform) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "fast_truss", "app", "--port", str(listener.getsockname()[1])]
        options = {"cwd": platform.project, "env": platform.environment()}
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert result.returncode == 2
    assert "cannot be used" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "environment", [{"BASETEN_API_KEY": ""}, {"BASETEN_MODEL_ID": ""}, {"BASETEN_MODEL_ID": "../x"}]
)
def test_the_app_does_not_start_without_a_key_or_a_model(platform: Platform, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "fast_truss", "app"]
    options = {"cwd": platform.project, "env": {**platform.environment(), **environment}}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
