"""The commands that measure, change and check a deployment, against the platform of the tests."""

import contextlib
import functools
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import control_plane
import pytest
from platforms import PROJECT_PYTHON, SMALL, Platform
from test_wake import refused

pytestmark = [
    pytest.mark.skipif(
        PROJECT_PYTHON is None, reason="PROJECT_PYTHON is not set: `make test` makes that environment and names it"
    ),
    # One platform for all of them, beside that of the other tests.
    pytest.mark.xdist_group("commands"),
]
FAST = ["--width", "64", "--height", "64", "--num-inference-steps", "1"]
REPAIR = "fast-truss autoscaling --model model --environment production --min-replica 0 --scale-down-delay 900"


def wait_for(what: Callable[[], Any], message: str) -> Any:
    for _ in range(1200):
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(message)


def delay_of(platform: Platform) -> int:
    return platform.tell()["autoscaling"]["scale_down_delay"]


@pytest.fixture
def waiting(awake: Platform, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen]]:
    """Start a coldstart that has changed the settings, and waits for a zero that does not come."""
    awake.set(in_flight=1)
    started: list[subprocess.Popen] = []

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "fast_truss", "coldstart", "--yes"]
        with (tmp_path / "log").open("w") as log:
            options = {"cwd": awake.project, "env": awake.environment(), "stdin": subprocess.DEVNULL}
            # In a background job of a shell it is ignored, and children inherit that.
            options["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
            started.append(subprocess.Popen(command, stdout=log, stderr=log, **options))
        wait_for(lambda: delay_of(awake) == 0, "it changed nothing: " + (tmp_path / "log").read_text())
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
    awake.set(in_flight=0)


def test_coldstart_shows_one_waterfall_and_puts_the_settings_back(awake: Platform, tmp_path: Path) -> None:
    png = tmp_path / "cold.png"
    result = awake.run("coldstart", "--yes", "--png", str(png))
    assert result.returncode == 0, result.stderr
    names = [line.split(":")[0].split()[0] for line in result.stdout.splitlines()]
    order = ["SCHEDULING", "IMAGE_PULL", "READINESS", "server_start", "import_torch", "read_weights", "first", "wake"]
    assert [name for name in names if name in order] == order
    assert "wake to ready" in result.stdout
    assert REPAIR in result.stderr
    assert "The settings are as before: min_replica 0, scale_down_delay 900." in result.stderr
    assert png.read_bytes().startswith(b"\x89PNG")
    assert delay_of(awake) == 900
    for where in ([], ["--deployment", "dep1"]):
        assert "READINESS" in awake.run("coldstart", "--history", *where).stdout


def test_coldstart_without_the_record_shows_what_it_has(awake: Platform) -> None:
    awake.set(has_startups=False)
    result = awake.run("coldstart", "--yes", "--json")
    assert result.returncode == 0, result.stderr
    phases = json.loads(result.stdout)["phases"]
    assert {"LOADING_MODEL", "import_torch", "first image"} <= {phase["name"] for phase in phases}
    assert "record of startups (a beta) tells nothing" in result.stderr
    refused(awake.run("coldstart", "--history"), "record of startups (a beta) is not there")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_however_coldstart_is_killed_the_settings_come_back(
    awake: Platform, waiting: Callable[[], subprocess.Popen], number: int
) -> None:
    process = waiting()
    # The platform is in trouble just then.
    awake.set(management_faults=[503, 429, 503])
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    wait_for(lambda: delay_of(awake) == 900, "the settings did not come back")


def test_settings_that_do_not_come_back_are_the_last_line(
    awake: Platform, waiting: Callable[[], subprocess.Popen], tmp_path: Path
) -> None:
    process = waiting()
    # What no try can mend.
    awake.set(management_faults=[401])
    process.terminate()
    assert process.wait(timeout=60) != 0
    assert (tmp_path / "log").read_text().splitlines()[-1].endswith(f"Do it by hand: {REPAIR}")


def test_two_coldstarts_exclude_each_other(awake: Platform, waiting: Callable[[], subprocess.Popen]) -> None:
    process = waiting()
    refused(awake.run("coldstart", "--yes"), "Another coldstart of production is under way here", 2)
    process.terminate()
    process.wait(timeout=60)
    assert delay_of(awake) == 900


def test_coldstart_asks_before_it_touches_production(awake: Platform) -> None:
    # By its name, or as the deployment that serves it.
    for arguments in ([], ["--deployment", "dep1"]):
        result = awake.run("coldstart", *arguments)
        assert result.returncode == 2
        assert "This scales production to zero" in result.stderr.splitlines()[-1]
    assert awake.tell()["settings"] == []


def test_a_delay_of_zero_is_questioned(awake: Platform) -> None:
    awake.set(autoscaling={**awake.tell()["autoscaling"], "scale_down_delay": 0}, in_flight=1)
    refused(awake.run("coldstart", "--yes"), "Repair it first: fast-truss autoscaling", 2)
    assert awake.tell()["settings"] == []
    awake.set(in_flight=0)
    result = awake.run("coldstart", "--yes", "--after-delay", "600")
    assert result.returncode == 0, result.stderr
    assert delay_of(awake) == 600


def test_settings_that_are_not_known_are_not_touched(awake: Platform) -> None:
    # An environment always tells its own.
    awake.set(hide_autoscaling=True)
    result = awake.run("coldstart", "--yes", "--deployment", "dep1")
    refused(result, "Baseten does not tell min_replica and scale_down_delay")
    assert awake.tell()["settings"] == []


def test_a_place_that_cannot_be_written_is_said_before_anything_is_done(awake: Platform, tmp_path: Path) -> None:
    refused(awake.run("coldstart", "--yes", "--png", str(tmp_path / "no" / "x.png")), "its folder does not exist", 2)
    refused(awake.run("coldstart", "--yes", "--png", str(tmp_path / "x.jpg")), "ends in .png", 2)
    for name, sentence in (("no/x.png", "its folder"), ("x.gif", "ends in .png, .jpg"), (".", "ends in")):
        refused(awake.run("generate", "a boat", "-o", str(tmp_path / name)), sentence, 2)
    (tmp_path / "x-2.png").mkdir()
    result = awake.run("generate", "a boat", "--num-images", "2", "-o", str(tmp_path / "x.png"))
    refused(result, "x-2.png': this is a folder", 2)
    assert awake.tell()["settings"] == []


def test_schedules_are_set_shown_and_deleted(awake: Platform) -> None:
    assert awake.run("schedule").stdout == "production has no schedules.\n"
    office = ["--weekdays", "mon-fri", "--from", "08:45", "--to", "18:00", "--timezone", "Europe/Berlin"]
    result = awake.run("schedule", *office, "--min-replica", "1")
    assert result.returncode == 0, result.stderr
    assert "Mon, Tue, Wed, Thu, Fri 08:45 to 18:00" in result.stdout
    # The same name replaces it.
    assert awake.run("schedule", *office, "--to", "19:00").returncode == 0
    assert (
        awake.run("schedule", "--on", "2099-03-31", "--from", "9:00", "--to", "12:00", "--name", "demo").returncode == 0
    )
    told = awake.tell()
    assert told["timezone"] == "Europe/Berlin"
    assert [each["name"] for each in told["schedules"]] == ["office hours", "demo"]
    assert (told["schedules"][0]["end_hour"], told["schedules"][0]["end_minute"]) == (19, 0)
    assert told["schedules"][1]["start_at"] == "2099-03-31T09:00:00+02:00"
    assert "demo" not in awake.run("schedule", "--delete", "demo").stdout
    assert awake.run("schedule", "--delete", "all").stdout == "production has no schedules.\n"


def test_a_workspace_without_schedules_is_told_of_the_workflow(awake: Platform) -> None:
    awake.set(has_schedules=False)
    assert ".github/workflows/wake.yml" in awake.run("schedule").stdout
    result = awake.run("schedule", "--from", "08:45", "--to", "18:00", "--timezone", "UTC")
    refused(result, ".github/workflows/wake.yml wakes on a schedule instead")


def test_an_async_request_is_queued_and_asked_for(awake: Platform, tmp_path: Path) -> None:
    result = awake.run("generate", "a boat", *FAST, "--webhook", "https://example.com/done", "--json")
    assert json.loads(result.stdout) == {"request_id": "request-1"}, result.stderr
    (queued,) = awake.tell()["queued"]
    assert queued["webhook"] == "https://example.com/done"
    assert queued["model_input"]["prompt"] == "a boat"
    assert awake.run("status", "--request", "request-1").stdout.startswith("QUEUED since ")
    refused(awake.run("status", "--request", "other"), "no such model or deployment")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(200 * 1024))
    refused(awake.run("generate", "x", "--webhook", "https://example.com/", "--image", str(large)), "256 KiB", 2)


def test_generate_takes_what_people_expect(awake: Platform, tmp_path: Path) -> None:
    output = tmp_path / "out.jpg"
    options = [*FAST, "--guidance-scale", "2", "--num-images", "2", "--seed", "5", "--quality", "70"]
    result = awake.run("generate", "a boat", *options, "-o", str(output), "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    files = [Path(image["file"]) for image in answer["images"]]
    assert [file.name for file in files] == ["out-1.jpg", "out-2.jpg"]
    assert all(file.read_bytes().startswith(b"\xff\xd8") for file in files)
    assert [image["seed"] for image in answer["images"]] == [5, 6]
    options = [*FAST, "--num-inference-steps", "3", "--image", str(files[0]), "--strength", "0.9", "-o", "again.png"]
    result = awake.run("generate", "a boat", *options)
    assert result.returncode == 0, result.stderr
    assert (awake.project / "again.png").read_bytes().startswith(b"\x89PNG")


def test_steps_come_as_they_are_made_and_who_leaves_ends_the_work(awake: Platform) -> None:
    body = {**SMALL, "num_inference_steps": 100, "num_images": 4, "stream": True}
    with awake.http.stream("POST", f"{awake.url}/model-model/production/predict", json=body) as response:
        parts = response.iter_raw()
        assert next(parts) == b"event: queued\ndata: {}\n\n"
        # Parts of their own, however many are in one.
        assert [b"event: step" in next(parts) for _ in range(10)] == [True] * 10
    assert awake.post("predict", **SMALL).is_success


def test_a_terminal_shows_the_steps(awake: Platform, tmp_path: Path) -> None:
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "fast_truss", "generate", "a boat", *FAST, "-o", str(tmp_path / "out.png")]
    environment = {**awake.environment(), "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(
        command, cwd=awake.project, env=environment, stdin=follower, stdout=subprocess.PIPE, stderr=follower
    )
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # when the other end is closed
        while part := os.read(leader, 65536):
            shown += part
    os.close(leader)
    assert process.communicate()[0].startswith(str(tmp_path).encode()), shown
    assert process.returncode == 0
    assert re.search(rb"step \d+ of \d+", shown), shown


def test_a_stream_that_breaks_off_is_one_sentence_and_not_asked_for_again(awake: Platform, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    awake.set(faults=["event: queued\ndata: {}\n\n"])
    refused(awake.run("generate", "a boat", "--stream", "-o", str(output)), "broke in the middle of the answer")
    assert not output.exists()


def test_an_older_deployment_is_asked_without_a_stream(awake: Platform, tmp_path: Path) -> None:
    sentence = "Input Parsing Error:\n  `stream`: Extra inputs are not permitted."
    awake.set(faults=[503, ["model", 400, sentence]])
    result = awake.run("generate", "a boat", *FAST, "--stream", "-o", str(tmp_path / "out.png"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_s_own_error_is_said_once(awake: Platform, tmp_path: Path) -> None:
    awake.set(faults=[["model", 503, "The GPU has too little memory for this request."], 200])
    result = awake.run("generate", "a boat", "-o", str(tmp_path / "out.png"))
    refused(result, "The model failed (503: The GPU has too little memory for this request)")
    assert "Trying again" not in result.stderr
    failed = 'event: error\ndata: {"error": "The GPU has too little memory for this request.", "status": 503}\n\n'
    awake.set(faults=[failed, 200])
    result = awake.run("generate", "a boat", "--stream", "-o", str(tmp_path / "out.png"))
    refused(result, "The model failed (503: The GPU has too little memory for this request)")


def test_a_bad_field_is_the_model_s_sentence(awake: Platform, tmp_path: Path) -> None:
    result = awake.run("generate", "a boat", "--width", "63", "-o", str(tmp_path / "out.png"))
    refused(result, "`width`")


def test_a_lora_that_is_not_there_is_the_model_s_sentence(awake: Platform, tmp_path: Path) -> None:
    result = awake.run("generate", "a boat", "--lora", "ink:0.5", "--lora", "oil", "-o", str(tmp_path / "out.png"))
    refused(result, "loras cannot be used by this model")


def test_load_counts_and_prices(awake: Platform) -> None:
    result = awake.run("load", "--requests", "6", "--concurrency", "3", *FAST, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["requests"], found["images"], found["errors"]) == (6, 6, {})
    assert 0 < found["p50"] <= found["p95"] <= found["p99"]
    assert found["usd_per_1000_images"] == pytest.approx(0.01 * 1000 / found["images_per_minute"])
    awake.set(faults=[["model", 500, "x"], ["model", 400, "x"]])
    result = awake.run("load", "--requests", "3", *FAST, "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["errors"] == {"ModelFailed 500": 1, "RequestRefused 400": 1}
    table = awake.run("load", "--requests", "2", *FAST).stdout
    assert "USD for 1,000 images" in table


def test_a_local_server_is_asked_past_a_proxy(awake: Platform, tmp_path: Path) -> None:
    url = awake.tell()["url"].removeprefix("http://")
    # Port 9 is `discard`: nothing listens there. No key: a local server needs none.
    environment = {name: value for name, value in awake.environment().items() if name != "NO_PROXY"}
    environment |= dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    environment |= {"BASETEN_API_KEY": "", "BASETEN_MODEL_ID": ""}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "fast_truss", *arguments, "--url", url]
        options = {"cwd": awake.project, "env": environment, "timeout": 120}
        return subprocess.run(command, capture_output=True, text=True, **options)

    assert run("status").stdout == "ACTIVE, 1 replica, ready\n"
    assert run("wake", "--wait").stdout.startswith("Ready after")
    made = run("generate", "a boat", *FAST, "-o", str(tmp_path / "out.png"))
    assert made.returncode == 0, made.stderr
    assert json.loads(run("load", "--requests", "2", *FAST, "--json").stdout)["usd_per_1000_images"] is None
    assert "image: " in run("doctor").stdout
    refused(run("autoscaling"), "leave out --url", 2)


def test_a_timeout_is_kept_by_a_server_that_falls_silent(awake: Platform, tmp_path: Path) -> None:
    awake.set(faults=[-1])
    result = awake.run("generate", "a boat", "--timeout", "2", "-o", str(tmp_path / "out.png"))
    refused(result, "did not answer in time")


def test_doctor_checks_before_and_after_a_push(awake: Platform, hub: "Hub") -> None:
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hub-token"}
    result = doctor(awake, **environment)
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert {name: check["outcome"] for name, check in checks.items()} == {
        "config.yaml": "ok",
        "key": "ok",
        "secrets": "ok",
        "accelerator": "ok",
        "weights of stable-diffusion-v1-5/stable-diffusion-v1-5": "ok",
        "status": "ok",
        "promoted": "ok",
        "image": "ok",
        "cold start": "skipped",
    }, result.stdout
    assert result.returncode == 0
    assert "hub-token" not in result.stdout + result.stderr
    assert hub.tokens == {"Bearer hub-token"}


@pytest.mark.parametrize(
    ("gone", "found"),
    [("unet/config.json", "does not hold unet/config.json"), ("*", "RepositoryNotFoundError"), ("gated", "GatedRepo")],
)
def test_doctor_names_what_cannot_be_fetched(awake: Platform, hub: "Hub", gone: str, found: str) -> None:
    hub.gone = gone
    result = doctor(awake, "--no-image", HF_ENDPOINT=hub.url)
    weights = next(check for check in json.loads(result.stdout) if check["name"].startswith("weights"))
    assert weights["outcome"] == "failed"
    assert found in weights["found"]
    assert weights["cure"]
    assert result.returncode == 1


def test_a_name_of_a_model_that_is_none_is_no_matter_of_the_key(awake: Platform) -> None:
    refused(awake.run("doctor", "--model", "../x"), "model_id is '../x'", 2)
    refused(awake.run("doctor", "--deployment", "a b", model=""), "name is 'a b'", 2)


def test_doctor_without_a_key_checks_the_rest(awake: Platform, hub: "Hub") -> None:
    result = doctor(awake, "--no-image", HF_ENDPOINT=hub.url, BASETEN_API_KEY="", BASETEN_MODEL_ID="")
    outcomes = {check["name"].split()[0]: check["outcome"] for check in json.loads(result.stdout)}
    assert outcomes == {"config.yaml": "ok", "key": "failed", "weights": "ok"}
    assert result.returncode == 1


def doctor(platform: Platform, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fast_truss", "doctor", "--json", *arguments]
    options = {"cwd": platform.project, "env": {**platform.environment(), **environment}}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert "Traceback" not in result.stderr, result.stderr
    return result


class Hub(http.server.ThreadingHTTPServer):
    """What doctor asks Hugging Face for. gone: a file that is missing, * for the repository, or gated."""

    gone = ""
    files = ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt")
    weights = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def names(self) -> list[str]:
        weights = [f"{name}.fp16.safetensors" for name in self.weights]
        configs = [f"{Path(name).parent}/config.json" for name in self.weights]
        return [name for name in (*self.files, *weights, *configs) if name != self.gone]


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization", ""))
        listed = [{"rfilename": name} for name in self.server.names()]
        body = json.dumps({"id": "x/y", "sha": "a" * 40, "siblings": listed}).encode()
        self.answer(404 if self.server.gone == "*" else 200, {"X-Error-Code": "RepoNotFound"}, body)

    def do_HEAD(self) -> None:
        headers = {"ETag": '"x"', "X-Repo-Commit": "a" * 40, "X-Error-Code": "GatedRepo"}
        self.answer(403 if self.server.gone == "gated" else 200, headers, b"")

    def answer(self, code: int, headers: dict[str, str], body: bytes) -> None:
        if code == 200:
            headers.pop("X-Error-Code", None)
        self.send_response(code)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def make(platform: Platform, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run make in the project, in the environment that is there: -o takes it for made, so nothing is installed."""
    venv = Path(PROJECT_PYTHON).parent.parent
    command = ["make", "-o", f"{venv}/.ready", f"VENV={venv}", *arguments]
    around = {name: value for name, value in platform.environment().items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    options = {"cwd": platform.project, "env": {**around, **environment}}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


def test_make_check_asks_nobody_unless_told_to(awake: Platform, hub: Hub) -> None:
    asked = awake.tell()["asked"]
    result = make(awake, "check", HF_ENDPOINT=hub.url)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (awake.tell()["asked"], hub.tokens) == (asked, set())


def test_make_check_online_asks_for_what_a_push_needs(awake: Platform, hub: Hub) -> None:
    # Of a model that is not there yet, nothing is asked.
    result = make(awake, "check", "ONLINE=1", HF_ENDPOINT=hub.url, HF_TOKEN="hub-token", BASETEN_MODEL_ID="other")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line.split(":")[0].split(maxsplit=1) for line in result.stdout.splitlines() if line.startswith("ok ")]
    repo = "weights of stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert [name for _, name in lines] == ["config.yaml", "key", "secrets", "accelerator", repo]
    assert hub.tokens == {"Bearer hub-token"}
    hub.gone = "gated"
    result = make(awake, "check", "ONLINE=1", HF_ENDPOINT=hub.url)
    assert result.returncode != 0
    assert "ask for access, and set HF_TOKEN" in " ".join(result.stdout.split())


# Truss asks api.baseten.co for a deployment, whatever its remote is. Nothing else of it is changed.
OTHER_ADDRESS = """
import os, sys
if any(argument.endswith("/bin/truss") for argument in sys.orig_argv[:2]):
    import truss.remote.baseten.api
    truss.remote.baseten.api.DEFAULT_API_DOMAIN = os.environ["BASETEN_TRUSS_AUTH_REMOTE_URL"]
"""


@pytest.fixture
def plane() -> Iterator[control_plane.ControlPlane]:
    """A control plane whose model is that of the platform."""
    with control_plane.control_plane() as plane:
        plane.model_id, plane.version_id = "model", "dep1"
        yield plane


def make_push(platform: Platform, plane: control_plane.ControlPlane, folder: Path, **changes: str) -> Any:
    (folder / "sitecustomize.py").write_text(OTHER_ADDRESS)
    environment = {
        "HOME": str(folder),
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "BASETEN_TRUSS_AUTH_REMOTE_URL": plane.url,
        "BASETEN_TRUSS_AUTH_API_KEY": control_plane.KEY,
        "TRUSS_NO_UPDATE_CHECK": "1",
    }
    (platform.project / "image.png").unlink(missing_ok=True)
    return make(platform, "push", **{**environment, **changes})


def test_make_push_ends_with_the_first_image_and_its_cold_start(
    platform: Platform, plane: control_plane.ControlPlane, tmp_path: Path
) -> None:
    plane.statuses = ["BUILDING", "LOADING_MODEL", "ACTIVE"]
    result = make_push(platform, plane, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (created,) = plane.created
    assert created["environment_name"] == "production"
    found = [line for line in result.stdout.splitlines() if line.startswith("ok ")]
    assert [line.split(":")[0].split(maxsplit=1)[1] for line in found] == ["status", "image", "cold start"]
    assert "read_weights" in found[-1]
    assert (platform.project / "image.png").read_bytes().startswith(b"\x89PNG")
    assert control_plane.KEY not in result.stdout + result.stderr


def test_make_push_without_a_key_of_its_own_says_how_to_see_the_rest(
    awake: Platform, plane: control_plane.ControlPlane, tmp_path: Path
) -> None:
    result = make_push(awake, plane, tmp_path, BASETEN_API_KEY="")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == (
        "Pushed. To see its first image and cold start, put a key into BASETEN_API_KEY: "
        "fast-truss doctor --model model --deployment dep1"
    )
    assert not (awake.project / "image.png").exists()


@pytest.mark.parametrize(
    ("statuses", "key", "said"),
    [(["BUILDING", "BUILD_FAILED"], control_plane.KEY, "status BUILD_FAILED"), (["ACTIVE"], "wrong-key", "403")],
)
def test_make_push_fails_where_the_push_does(
    awake: Platform,
    plane: control_plane.ControlPlane,
    tmp_path: Path,
    statuses: list[str],
    key: str,
    said: str,
) -> None:
    plane.statuses = statuses
    result = make_push(awake, plane, tmp_path, BASETEN_TRUSS_AUTH_API_KEY=key)
    assert result.returncode != 0
    assert said in result.stderr
    assert not (awake.project / "image.png").exists()


def test_make_push_fails_where_what_was_pushed_makes_no_image(
    awake: Platform, plane: control_plane.ControlPlane, tmp_path: Path
) -> None:
    awake.set(faults=[["model", 500, "x"]])
    result = make_push(awake, plane, tmp_path)
    assert result.returncode != 0
    assert "failed  image: The model failed" in result.stdout


def test_make_push_asks_for_a_key_where_there_is_none(
    awake: Platform, plane: control_plane.ControlPlane, tmp_path: Path
) -> None:
    nowhere = {"BASETEN_TRUSS_AUTH_REMOTE_URL": "", "BASETEN_TRUSS_AUTH_API_KEY": ""}
    result = make_push(awake, plane, tmp_path, **nowhere)
    assert result.returncode != 0
    # `truss login` asks on a terminal, and here there is none.
    assert "--browser or --api-key" in " ".join((result.stdout + result.stderr).split())
    assert plane.created == []


@pytest.mark.parametrize("content", ["", "[]", '{"error": {"message": "no"}}', '{"model_id": "m"}'])
def test_what_a_push_did_not_write_is_a_sentence(awake: Platform, tmp_path: Path, content: str) -> None:
    file = tmp_path / "pushed.json"
    refused(awake.run("pushed", str(file)), "cannot be read", 2)
    file.write_text(content)
    refused(awake.run("pushed", str(file)), "is not what `truss push --output json` writes", 2)


def test_what_is_said_around_the_record_of_a_push_does_no_harm(awake: Platform, tmp_path: Path) -> None:
    record = json.dumps({"model_id": "model", "model_version_id": "dep1"}, indent=2)
    (tmp_path / "pushed.json").write_text(f"a warning of somebody's\n{record}\nand more\n")
    result = awake.run("pushed", str(tmp_path / "pushed.json"))
    assert "is not what" not in result.stderr
    assert result.stdout.startswith("ok ")


@pytest.mark.parametrize(
    "command", ["", "wake", "generate", "coldstart", "schedule", "doctor", "pushed", "load", "app"]
)
def test_help_is_there_and_imports_nothing_heavy(awake: Platform, command: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['client', {f'{command!r}, ' if command else ''}'--help']\n"
        "try: runpy.run_module('client', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'httpx', 'baseten', 'gradio', 'PIL', 'matplotlib', 'yaml', 'truss', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    output = subprocess.check_output([PROJECT_PYTHON, "-c", code], cwd=awake.project, env=environment, text=True)
    assert "Usage" in output
    assert output.splitlines()[-1] == "[]"
