"""The page in a real browser: it wakes the model before anybody types, and shows images or a sentence."""

import functools
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
from conftest import TEMPLATE
from platforms import PROJECT_PYTHON, Platform
from selenium.webdriver.common.keys import Keys

from fast_truss import InvalidInput
from fast_truss.hosting import login_of

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
    ),
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

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/config", timeout=60).json()

    @functools.cached_property
    def events(self) -> dict[str, Any]:
        """The first of each kind: of click the one that generates."""
        return {dependency["targets"][0][1]: dependency for dependency in reversed(self.config["dependencies"])}

    @functools.cached_property
    def form(self) -> dict[str, Any]:
        """The values that a visitor finds, in the order in which the page sends them."""
        shown = {each["id"]: each["props"] for each in self.config["components"]}
        return {shown[field]["elem_id"]: shown[field].get("value") for field in self.events["click"]["inputs"]}

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
    """Start the app with more options and environment."""
    started: list[Page] = []

    def start(*options: str, **environment: str) -> Page:
        port = subprocess.check_output(
            [sys.executable, "-c", "import local_server; print(local_server.free_port())"], cwd=platform.project
        )
        command = [sys.executable, "-m", "fast_truss", "app", "--port", port.decode().strip(), *options]
        log = tmp_path / "log"
        variables = {**platform.environment(), **environment, "GRADIO_TEMP_DIR": str(tmp_path / "images")}
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=platform.project, stdout=output, stderr=output, env=variables)
        url = f"http://127.0.0.1:{port.decode().strip()}"
        try:
            for _ in range(3000):
                assert process.poll() is None, log.read_text()
                if "Open http" in log.read_text():
                    break
                time.sleep(0.1)
            assert url in log.read_text()
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
    # In one go, as the page may redraw it. Without what gradio hides beside it while it works.
    script = f"(document.querySelector('#{element} .line') ?? document.getElementById('{element}'))"
    return browser.execute_script(f"return {script}?.innerText.trim() ?? ''")


def make_image(browser: Any) -> str:
    """Type a prompt, press the button, and return the page's message once the image is shown."""
    browser.find_element("css selector", "#prompt textarea").send_keys("a red door")
    browser.find_element("id", "generate").click()
    wait_for(lambda: text_of(browser, "message").startswith("Done"), "no image: " + text_of(browser, "message"))
    width = "return document.querySelector('#gallery img')?.naturalWidth"
    wait_for(lambda: browser.execute_script(width) == 512, "the image is not shown")
    return text_of(browser, "message")


def unfold(browser: Any, name: str) -> None:
    browser.execute_script(f"document.querySelector('#{name} button.label-wrap').click()")


@needs_browser
def test_opening_the_page_wakes_the_model_before_the_visitor_types(
    platform: Platform, open_app: Open, browse: Callable[..., Any]
) -> None:
    page, browser = open_app(), browse()
    # It needs the model's fields.
    assert "Waking it to read its fields." in page.log.read_text()
    platform.set(scale_to_zero=True, provision_seconds=3.0)
    before = platform.tell()["starts"]
    browser.get(page.url)
    wait_for(lambda: platform.tell()["starts"] == before + 1, "the page did not wake the model")
    seen = []

    def ready() -> bool:
        text = text_of(browser, "state").split(" (")[0]
        if text and text not in seen:
            seen.append(text)
        return text == "Ready"

    wait_for(ready, f"never ready, but {seen}")
    assert seen[-3:] == ["Waking: getting a machine", "Waking: loading the model", "Ready"]
    assert text_of(browser, "head") == browser.title == "Lighthouse"
    seed = make_image(browser).removeprefix("Done. Seed ").removesuffix(".")
    # What is typed is used. Enter sends, and with Shift it makes a line.
    browser.find_element("css selector", "#seed textarea, #seed input").send_keys(seed)
    prompt = browser.find_element("css selector", "#prompt textarea")
    assert "Enter sends" in prompt.get_property("placeholder")
    prompt.send_keys(Keys.SHIFT, Keys.ENTER)
    prompt.send_keys("at night")
    assert prompt.get_property("value") == "a red door\nat night"
    assert text_of(browser, "message") == f"Done. Seed {seed}."
    prompt.send_keys(Keys.ENTER)
    wait_for(lambda: text_of(browser, "message").startswith(("Waiting", "Image")), "it did not start")
    wait_for(lambda: text_of(browser, "message") == f"Done. Seed {seed}.", "another seed")
    assert "good-key" not in browser.page_source
    assert platform.tell()["starts"] == before + 1


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
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
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
    make_image(browser)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / f"{width}-{theme}.png"))
    unfold(browser, "more")
    wait_for(lambda: browser.find_element("id", "num_inference_steps").is_displayed(), "it does not open")
    sizes = "return [document.documentElement.scrollWidth, window.innerWidth]"
    content, window = browser.execute_script(sizes)
    assert content <= window == width
    boxes = {name: browser.find_element("id", name).rect for name in ("prompt", "generate", "gallery", "width", "seed")}
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 50 for box in boxes.values())
    # Side by side, or the image right below the button.
    assert (boxes["gallery"]["x"] > boxes["prompt"]["x"] + 200) == (width == 1280)
    assert boxes["generate"]["y"] < boxes["width"]["y"]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


FILLED_IN = {
    "prompt": "a boat",
    "width": 384,
    "height": 512,
    "seed": "3",
    "num_images": 2,
    "num_inference_steps": 1,
    "guidance_scale": 2,
    "output_format": "jpeg",
    "quality": 80,
}


def test_whatever_is_sent_to_the_page_it_answers_in_a_sentence(awake: Platform, open_app: Open) -> None:
    page = open_app()
    seen: list[str] = []

    def generate(session: str, **changes: Any) -> list[Any]:
        return page.call("click", list({**page.form, **FILLED_IN, **changes}.values()), session, seen=seen)

    gallery, message = generate("good", num_inference_steps=20)
    assert "Done. Seed 3, 4." in message
    assert [image["image"]["path"].endswith(".jpg") for image in gallery] == [False, False]
    assert [image["image"]["path"].endswith(".jpeg") for image in gallery] == [True, True]
    assert re.search(r"Image 2: step \d+ of \d+", "".join(seen))
    for number, (changes, sentence) in enumerate(
        [
            ({"prompt": None}, "Prompt is empty: fill it in first."),
            ({"prompt": " "}, "Prompt is empty: fill it in first."),
            ({"seed": "9" * 5000}, "Seed cannot be read"),
            ({"seed": "-1"}, "(400: `seed`: Input should be greater than or equal to 0)"),
            ({"mask_blur": 7}, "(400: `mask_blur`: mask_blur has no effect without mask: leave it out)"),
            ({"negative_prompt": "mud", "guidance_scale": 1}, "guidance_scale"),
        ]
    ):
        assert sentence in generate(f"bad-{number}", **changes)[1].replace("&#x27;", "'"), changes


def test_a_look_wakes_nothing(platform: Platform, open_app: Open) -> None:
    page = open_app()
    platform.set(scale_to_zero=True)
    before = platform.tell()["starts"]
    (words,) = page.call("tick", [], "visitor")
    assert "Asleep: the next image wakes the model" in words
    assert platform.tell()["starts"] == before


def test_without_a_schema_there_is_the_prompt_alone(awake: Platform, open_app: Open) -> None:
    awake.set(has_schema=False)
    page = open_app()
    assert "only the prompt can be set here" in page.log.read_text()
    assert len(page.events["click"]["inputs"]) == 1


def test_for_others_there_is_a_login(awake: Platform, open_app: Open) -> None:
    page = open_app("--listen", "0.0.0.0", FAST_TRUSS_APP_LOGIN="me:se:cret")
    assert f"http://{socket.gethostname()}:" in page.log.read_text()
    with httpx.Client(base_url=page.url, timeout=60) as visitor:
        asked = {"data": [], "fn_index": 0, "session_hash": "x"}
        assert visitor.get("/config").status_code == 401
        assert visitor.post("/gradio_api/queue/join", json=asked).status_code == 401
        assert visitor.post("/login", data={"username": "me", "password": "other"}).status_code == 400
        assert visitor.post("/login", data={"username": "me", "password": "se:cret"}).is_success
        assert visitor.get("/config").is_success
    assert "se:cret" not in page.log.read_text()


@pytest.mark.parametrize("login", ["", "me", ":secret", "me:"])
@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_without_a_login_only_this_machine_reaches_it(monkeypatch: pytest.MonkeyPatch, listen: str, login: str) -> None:
    monkeypatch.setenv("FAST_TRUSS_APP_LOGIN", login)
    with pytest.raises(InvalidInput, match="set FAST_TRUSS_APP_LOGIN to user:password"):
        login_of(listen)


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_login_and_can_have_one(monkeypatch: pytest.MonkeyPatch, listen: str) -> None:
    monkeypatch.delenv("FAST_TRUSS_APP_LOGIN", raising=False)
    assert login_of(listen) is None
    monkeypatch.setenv("FAST_TRUSS_APP_LOGIN", "me:se:cret")
    assert login_of(listen) == ("me", "se:cret")


def test_a_button_is_no_public_call_and_a_proxy_is_no_obstacle(open_app: Open) -> None:
    # Port 9 is `discard`: nothing listens there.
    page = open_app(HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9", NO_PROXY="", no_proxy="")
    assert httpx.get(f"{page.url}/gradio_api/info", timeout=60).json()["named_endpoints"] == {}
    assert {event["api_visibility"] for event in page.events.values()} == {"private"}


def test_many_visitors_share_one_watcher_and_no_threads(platform: Platform, open_app: Open) -> None:
    page = open_app()
    platform.set(scale_to_zero=True, provision_seconds=10.0)
    before = platform.tell()["starts"]
    asked = platform.tell()["asked"]
    # Each has seen its first words while the model wakes: none waits for the thread of another one.
    with ThreadPoolExecutor(VISITORS) as pool:
        seen = list(pool.map(lambda number: page.call("load", [], f"visitor-{number}", first=True), range(VISITORS)))
    assert all("Waking" in words for (words,) in seen)
    wait_for(lambda: platform.tell()["status"] == "ACTIVE", "never ready")
    assert platform.tell()["starts"] == before + 1
    assert platform.tell()["asked"] - asked < VISITORS


def test_a_busy_port_is_a_sentence(platform: Platform) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "fast_truss", "app", "--port", str(listener.getsockname()[1])]
        options = {"cwd": platform.project, "env": platform.environment()}
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert result.returncode == 2
    assert "Cannot listen on 127.0.0.1" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "environment", [{"BASETEN_API_KEY": ""}, {"BASETEN_MODEL_ID": "../x"}, {"BASETEN_API_KEY": "wrong-key"}]
)
def test_the_app_does_not_start_without_a_key_or_a_model(platform: Platform, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "fast_truss", "app"]
    options = {"cwd": platform.project, "env": {**platform.environment(), **environment}}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert result.returncode == (1 if "wrong-key" in environment.values() else 2)
    assert "Traceback" not in result.stderr
    assert "wrong-key" not in result.stderr
    assert len(result.stderr.splitlines()) == 1
