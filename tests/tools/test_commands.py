"""The commands that measure, change and check a deployment, against the platform of the tests."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub.constants
import pytest
import typer.main
from hub import Hub, hub
from PIL import Image
from platforms import SMALL, Platform
from rich.console import Console
from test_wake import refused

from fast_truss import cli, generation

__all__ = ["hub"]
FAST = ["--width", "64", "--height", "64", "--num-inference-steps", "1"]


def wait_for(what: Callable[[], Any], message: str) -> Any:
    for _ in range(600):
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(message)


def run_elsewhere(platform: Platform, *arguments: str, **options: Any) -> subprocess.Popen:
    """Start the command line in a process of its own, where signals reach it."""
    command = [sys.executable, "-m", "fast_truss", *arguments]
    return subprocess.Popen(command, cwd=platform.project, env=platform.environment(), text=True, **options)


# A cold start.


def test_coldstart_ends_one_replica_and_changes_no_setting(awake: Platform, tmp_path: Path) -> None:
    before, png = awake.tell(), tmp_path / "cold.png"
    result = awake.run("coldstart", "--yes", "--png", str(png))
    assert result.returncode == 0, result.stderr
    names = [line.split(":")[0].split()[0] for line in result.stdout.splitlines()]
    order = ["SCHEDULING", "IMAGE_PULL", "READINESS", "server_start", "import_torch", "read_weights", "first", "ready"]
    assert [name for name in names if name in order] == order
    with Image.open(png) as image:
        assert image.width > 1000
    after = awake.tell()
    path = f"/v1/models/model/deployments/dep1/replicas/{before['replica_id']}"
    # Nothing to put back: no PATCH was sent.
    assert after["changed"] == [f"DELETE {path}"]
    assert (after["settings"], after["autoscaling"]) == ([], before["autoscaling"])
    assert after["replica_id"] != before["replica_id"]


def test_coldstart_wakes_a_model_that_is_at_zero(platform: Platform) -> None:
    result = platform.run("coldstart", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert 0 < found["ready"] <= found["image"]
    assert platform.tell()["changed"] == []
    assert platform.tell()["starts"] == 1


def test_coldstart_wakes_what_the_platform_does_not_replace(awake: Platform) -> None:
    awake.set(replaces=False)
    result = awake.run("coldstart", "--yes")
    assert result.returncode == 0, result.stderr
    assert "SCALED_TO_ZERO, 0 replicas" in result.stderr
    assert awake.tell()["settings"] == []


def test_coldstart_asks_before_it_ends_the_only_replica(awake: Platform) -> None:
    for arguments in ([], ["--deployment", "dep1"], ["--environment", "staging"]):
        refused(awake.run("coldstart", *arguments), "This ends the only replica", 2)
    assert awake.tell()["changed"] == []


def test_of_several_replicas_one_may_end(awake: Platform) -> None:
    awake.set(others=1)
    result = awake.run("coldstart")
    assert result.returncode == 0, result.stderr
    assert "1 replica left" in result.stderr


def test_a_replica_can_be_named_and_must_be_there(awake: Platform) -> None:
    refused(awake.run("coldstart", "--yes", "--replica", "other"), "There is no replica other")
    awake.set(has_startups=False)
    refused(awake.run("coldstart", "--yes"), "names no running replica: set --replica")
    result = awake.run("coldstart", "--yes", "--replica", awake.tell()["replica_id"], "--json")
    assert result.returncode == 0, result.stderr
    # Without the record it shows what it has.
    phases = json.loads(result.stdout)["phases"]
    assert {"LOADING_MODEL", "import_torch", "first image"} <= {phase["name"] for phase in phases}
    assert "no record of this startup" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_ends_coldstart_finds_the_settings_as_they_were(awake: Platform, number: int) -> None:
    awake.set(provision_seconds=60.0)
    process = run_elsewhere(awake, "coldstart", "--yes", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: awake.tell()["changed"], "it ended no replica")
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    assert awake.tell()["settings"] == []
    assert [change.split()[0] for change in awake.tell()["changed"]] == ["DELETE"]


def test_a_chart_without_matplotlib_is_a_sentence(
    awake: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(awake.run("coldstart", "--yes", "--png", str(tmp_path / "x.png")), 'pip install "fast-truss[plots]"', 2)
    assert awake.tell()["changed"] == []


def test_a_place_that_cannot_be_written_is_said_before_anything_is_done(awake: Platform, tmp_path: Path) -> None:
    refused(awake.run("coldstart", "--yes", "--png", str(tmp_path / "no" / "x.png")), "No such file or directory", 2)
    refused(awake.run("coldstart", "--yes", "--png", str(tmp_path / "x.jpg")), "ends in .png", 2)
    for name, sentence in (("no/x.png", "No such file"), ("x.gif", "ends in .png, .jpg"), (".", "ends in")):
        refused(awake.run("generate", "a boat", "-o", str(tmp_path / name)), sentence, 2)
    (tmp_path / "x-2.png").mkdir()
    result = awake.run("generate", "a boat", "--num-images", "2", "-o", str(tmp_path / "x.png"))
    refused(result, "x-2.png': it cannot be written (Is a directory)", 2)
    assert awake.tell()["changed"] == []
    assert [file.name for file in tmp_path.iterdir()] == ["x-2.png"]


# Settings.


def test_autoscaling_says_what_baseten_answered_and_what_it_has_then(awake: Platform) -> None:
    result = awake.run("autoscaling", "--scale-down-delay", "800")
    assert result.stdout.startswith("ACCEPTED: Done.\n")
    assert "scale_down_delay: 800\n" in result.stdout
    assert awake.run("autoscaling", "--scale-down-delay", "800").stdout.startswith("UNCHANGED: ")
    awake.set(queues_changes=True)
    for where in ([], ["--deployment", "dep1"]):
        result = awake.run("autoscaling", "--scale-down-delay", "600", *where)
        assert result.stdout.startswith("QUEUED: A deployment is under way.\n")
        assert "scale_down_delay: 800 (you asked for 600)\n" in result.stdout
    found = json.loads(awake.run("autoscaling", "--scale-down-delay", "600", "--json").stdout)
    assert (found["status"], found["scale_down_delay"]) == ("QUEUED", 800)


# Images.


def test_generate_takes_the_fields_of_the_model(awake: Platform, tmp_path: Path) -> None:
    output = tmp_path / "out.jpg"
    options = [*FAST, "--guidance-scale=2", "--num-images", "2", "--seed", "5", "--quality", "70"]
    # Before the prompt or after it.
    result = awake.run("generate", *options, "a boat", "-o", str(output), "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    files = [Path(image["file"]) for image in answer["images"]]
    assert [file.name for file in files] == ["out-1.jpg", "out-2.jpg"]
    assert all(file.read_bytes().startswith(b"\xff\xd8") for file in files)
    assert [image["seed"] for image in answer["images"]] == [5, 6]
    options = ["--width", "64", "--num-inference-steps", "3", "--image", str(files[0]), "--strength", ".9"]
    options += ["-o", "again.png"]
    result = awake.run("generate", "a boat", *options)
    assert result.returncode == 0, result.stderr
    assert (awake.project / "again.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--widht", "64"], "--widht is not a field of this model: use one of prompt, "),
        (["--width"], "--width needs a value"),
        (["--width", "wide"], "--width is 'wide': it cannot be read as integer"),
        (["--width", "64.5"], "--width is '64.5': it cannot be read as integer"),
        (["--guidance-scale", "much"], "--guidance-scale is 'much': it cannot be read as number"),
        (["--image", "none.png"], "--image is 'none.png': it cannot be read"),
        (["--lora", "ink:0.5"], "--lora is not a field of this model: use one of prompt, "),
        (["--output-format", "png"], "--output-format cannot be set"),
        (["a", "second", "prompt"], "There are 4 prompts: use one, in quotes."),
    ],
)
def test_a_wrong_field_is_a_sentence(awake: Platform, words: list[str], sentence: str) -> None:
    before = awake.tell()["predicts"]
    refused(awake.run("generate", "a boat", *words), sentence, 2)
    assert awake.tell()["predicts"] == before


def test_a_bad_value_is_the_model_s_sentence(awake: Platform, tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "out.png")]
    refused(awake.run("generate", "a boat", "--width", "63", *output), "`width`")
    refused(awake.run("generate", "a boat", "--width", "64", "--width", "72", *output), "`width`")
    refused(awake.run("generate", "a boat", "--num-inference-steps", "0", *output), "`num_inference_steps`")


def test_a_deployment_without_a_schema_gets_what_json_makes_of_it(awake: Platform, tmp_path: Path) -> None:
    awake.set(has_schema=False)
    output = tmp_path / "out.png"
    result = awake.run("generate", "a boat", *FAST, "--negative-prompt", "a mast", "-o", str(output))
    assert result.returncode == 0, result.stderr
    with Image.open(output) as image:
        assert image.size == (64, 64)
    refused(awake.run("generate", "a boat", "--widht", "64", "-o", str(output)), "`widht`")
    refused(awake.run("fields"), "model or deployment does not exist")


def test_fields_are_those_of_the_model(awake: Platform) -> None:
    shown = awake.run("fields").stdout
    assert re.search(r"width +│ integer +│ minimum 64, maximum 1024, multipleOf 8 +│ 512 +│ In pixels", shown)
    assert "'png', 'jpeg', 'webp'" in shown
    assert "prompt" in json.loads(awake.run("fields", "--json").stdout)["properties"]


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
    words = ["generate", "a boat", *FAST, "-o", str(tmp_path / "out.png")]
    command = [sys.executable, "-m", "fast_truss", *words]
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


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are asked for as on a terminal, which shows each step."""
    shown = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(generation, "console", lambda: shown)


@pytest.mark.usefixtures("terminal")
def test_a_stream_that_breaks_off_is_one_sentence_and_not_asked_for_again(awake: Platform, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    awake.set(faults=["event: queued\ndata: {}\n\n"])
    refused(awake.run("generate", "a boat", "-o", str(output)), "broke during the answer")
    assert not output.exists()


@pytest.mark.usefixtures("terminal")
def test_an_older_deployment_is_asked_without_a_stream(awake: Platform, tmp_path: Path) -> None:
    sentence = "Input Parsing Error:\n  `stream`: Extra inputs are not permitted."
    awake.set(faults=[503, ["model", 400, sentence]])
    result = awake.run("generate", "a boat", *FAST, "-o", str(tmp_path / "out.png"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


FULL = "The GPU has too little memory for this request"
IN_A_STREAM = f'event: error\ndata: {{"error": "{FULL}.", "status": 503}}\n\n'


@pytest.mark.parametrize(("asked_as", "fault"), [("generate", ["model", 503, f"{FULL}."]), ("terminal", IN_A_STREAM)])
def test_the_model_s_own_error_is_said_once(
    awake: Platform, tmp_path: Path, request: pytest.FixtureRequest, asked_as: str, fault: Any
) -> None:
    if asked_as == "terminal":
        request.getfixturevalue("terminal")
    awake.set(faults=[fault, 200])
    result = awake.run("generate", "a boat", "-o", str(tmp_path / "out.png"))
    refused(result, f"The model failed (503: {FULL})")
    assert "Trying again" not in result.stderr


def test_a_timeout_is_kept_by_a_server_that_falls_silent(awake: Platform, tmp_path: Path) -> None:
    awake.set(faults=[-1])
    result = awake.run("generate", "a boat", "--timeout", "2", "-o", str(tmp_path / "out.png"))
    refused(result, "did not answer in time")


# A load.


def test_load_counts_and_prices(awake: Platform) -> None:
    result = awake.run("load", "--requests", "6", "--concurrency", "3", *FAST, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["requests"], found["images"], found["errors"]) == (6, 6, {})
    assert 0 < found["p50"] <= found["p95"] <= found["p99"] <= found["max"]
    assert found["loop"] == "closed loop, 3 at once"
    assert found["usd_per_1000_images"] == pytest.approx(0.01 / 60 * found["replica_seconds"] / 6 * 1000)
    awake.set(faults=[["model", 500, "x"], ["model", 400, "x"]])
    result = awake.run("load", "--requests", "3", *FAST, "--json")
    assert result.returncode == 1
    errors = json.loads(result.stdout)["errors"]
    assert sorted(errors.values()) == [1, 1]
    assert any(error.startswith("The model failed (500: x)") for error in errors), errors
    table = awake.run("load", "--requests", "2", *FAST).stdout
    assert "usd per 1000 images" in table
    assert "A closed loop" in table
    refused(awake.run("load", "a boat"), "set the prompt with --prompt", 2)


def test_an_open_loop_asks_while_others_wait(awake: Platform) -> None:
    # One at a time takes 0.4 s: at ten a second the last of eight is late, and that is its time.
    awake.set(image_seconds=0.4)
    awake.set(scale_to_zero=True)
    assert awake.post("predict", **SMALL).is_success
    slow = json.loads(awake.run("load", "--requests", "8", "--rate", "10", *FAST, "--json").stdout)
    assert slow["loop"] == "open loop, 10 per second"
    assert slow["max"] > 8 * 0.4 - 0.7 - 0.1
    closed = json.loads(awake.run("load", "--requests", "4", "--concurrency", "1", *FAST, "--json").stdout)
    assert closed["max"] < slow["max"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_load_that_is_ended_prints_the_report_so_far(awake: Platform, number: int) -> None:
    awake.set(image_seconds=0.2)
    awake.set(scale_to_zero=True)
    assert awake.post("predict", **SMALL).is_success
    words = ["load", "--requests", "1000", "--concurrency", "1", "--json"]
    # In a background job of a shell SIGINT is ignored, and children inherit that.
    default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = run_elsewhere(awake, *words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **default)
    first = awake.tell()["predicts"]
    wait_for(lambda: awake.tell()["predicts"] >= first + 3, "it asked for nothing")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(output)["images"] >= 2


# A local server.


def test_a_local_server_is_asked_past_a_proxy(awake: Platform, tmp_path: Path) -> None:
    url = awake.tell()["url"].removeprefix("http://")
    # Port 9 is `discard`: nothing listens there. No key: a local server needs none.
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return awake.run(*arguments, "--url", url, model="", NO_PROXY="", no_proxy="", BASETEN_API_KEY="", **proxies)

    assert run("status").stdout == "ACTIVE, 1 replica, ready\n"
    assert run("wake", "--wait").stdout.startswith("Ready after")
    made = run("generate", "a boat", *FAST, "-o", str(tmp_path / "out.png"))
    assert made.returncode == 0, made.stderr
    assert json.loads(run("load", "--requests", "2", *FAST, "--json").stdout)["usd_per_1000_images"] is None
    assert "image: " in run("doctor").stdout
    assert "num_inference_steps" in run("fields").stdout
    refused(run("autoscaling"), "leave out --url", 2)
    refused(run("coldstart"), "leave out --url", 2)


# Before and after a push.


def doctor(platform: Platform, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Return the result, and its lines: each is ok or failed, a name, and what was found."""
    # huggingface_hub reads that when it is imported.
    endpoint = environment.pop("HF_ENDPOINT", "http://127.0.0.1:9")
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    with mock.patch.multiple(huggingface_hub.constants, ENDPOINT=endpoint, HUGGINGFACE_CO_URL_TEMPLATE=template):
        result = platform.run("doctor", *arguments, **environment)
    assert "Traceback" not in result.stderr, result.stderr
    lines = result.stdout.splitlines()
    assert result.returncode == any(line.startswith("failed  ") for line in lines), result.stdout
    return result, lines


def weights_of(lines: list[str]) -> str:
    (weights,) = (line for line in lines if " weights of " in line)
    return weights


def test_doctor_checks_before_and_after_a_push(awake: Platform, hub: Hub) -> None:
    result, lines = doctor(awake, HF_ENDPOINT=hub.url, HF_TOKEN="hub-token")
    assert [line.split(": ")[0] for line in lines] == [
        "ok      config.yaml",
        "ok      key and secrets",
        "ok      weights of stable-diffusion-v1-5/stable-diffusion-v1-5",
        "ok      status",
        "ok      image",
    ], result.stdout
    assert (awake.project / "image.png").read_bytes().startswith(b"\x89PNG")
    assert "hub-token" not in result.stdout + result.stderr
    assert hub.tokens == {"Bearer hub-token"}


@pytest.mark.parametrize(
    ("gone", "found"),
    [("unet/config.json", "has no unet/config.json"), ("*", "RepositoryNotFoundError"), ("gated", "GatedRepo")],
)
def test_doctor_names_what_cannot_be_fetched(awake: Platform, hub: Hub, gone: str, found: str) -> None:
    hub.gone = gone
    _, lines = doctor(awake, "--no-image", HF_ENDPOINT=hub.url)
    weights = weights_of(lines)
    assert weights.startswith("failed  ")
    assert found in weights
    assert "ask for access and set HF_TOKEN" in weights


def test_doctor_without_a_network_says_so(awake: Platform) -> None:
    _, lines = doctor(awake, "--no-image")
    assert "ConnectError" in weights_of(lines)
    assert "Check the network" in weights_of(lines)


def test_doctor_names_the_secrets_that_the_workspace_lacks(awake: Platform, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("secrets: {hf_access_token: null, other: null}")
    for there, outcome, found in (
        (["hf_access_token"], "failed", "This workspace has no other"),
        (["hf_access_token", "other"], "ok", "secrets needed: hf_access_token, other"),
    ):
        awake.set(secrets=there)
        _, lines = doctor(awake, "--project", str(tmp_path), model="")
        assert lines[-1].startswith(f"{outcome:<8}key and secrets: ")
        assert found in lines[-1]


def test_doctor_reads_the_project_that_it_is_told(awake: Platform, tmp_path: Path) -> None:
    _, lines = doctor(awake, "--no-image", "--project", str(tmp_path))
    assert lines[0].startswith("failed  config.yaml: ")
    assert "--project" in lines[0]


@pytest.mark.parametrize("status", ["BUILD_FAILED", "FAILED", "INACTIVE"])
def test_a_deployment_that_never_becomes_ready_is_no_success(awake: Platform, tmp_path: Path, status: str) -> None:
    awake.set(status=status)
    record = tmp_path / "pushed.json"
    record.write_text(json.dumps({"model_id": "model", "model_version_id": "dep1"}))
    _, lines = doctor(awake)
    assert lines[-1].startswith(f"failed  status: The deployment is {status}")
    result = awake.run("pushed", str(record))
    assert result.returncode == 1
    assert f"status: The deployment is {status}" in result.stdout
    for words in (["wake"], ["wake", "--wait"]):
        result = awake.run(*words)
        assert result.returncode == 1
        assert f"The deployment is {status}" in result.stderr


def test_a_name_of_a_model_that_is_none_is_no_matter_of_the_key(awake: Platform) -> None:
    refused(awake.run("doctor", "--model", "../x"), "model_id is '../x'", 2)
    refused(awake.run("doctor", "--deployment", "a b", model=""), "--model is missing", 2)
    refused(awake.run("doctor", "--deployment", "a b"), "name is 'a b'", 2)


def test_doctor_without_a_key_checks_the_rest(awake: Platform, hub: Hub) -> None:
    _, lines = doctor(awake, HF_ENDPOINT=hub.url, BASETEN_API_KEY="", BASETEN_MODEL_ID="")
    assert [line.split()[0] for line in lines] == ["ok", "failed", "ok"]
    assert lines[1].startswith("failed  key and secrets: BASETEN_API_KEY is not set")


@pytest.mark.parametrize("content", ["", "[]", '{"error": {"message": "no"}}', '{"model_id": "m"}', "{" * 10_000])
def test_what_a_push_did_not_write_is_a_sentence(awake: Platform, tmp_path: Path, content: str) -> None:
    file = tmp_path / "pushed.json"
    result = awake.run("pushed", str(file))
    assert result.returncode == 2
    assert "No such file" in result.stderr
    file.write_text(content)
    refused(awake.run("pushed", str(file)), "is not the output of `truss push --output json`", 2)


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("a warning of {somebody}'s\n", "\nand {more}\n"), ('{"level": "warning"}\n', ""), ("Pushing... ", "x")],
)
def test_what_is_said_around_the_record_of_a_push_does_no_harm(
    awake: Platform, tmp_path: Path, before: str, after: str
) -> None:
    file = tmp_path / "pushed.json"
    record = {"model_id": "model", "model_version_id": "dep1", "predict_url": "https://x"}
    file.write_text(before + json.dumps(record, indent=2) + after)
    told = awake.run("pushed", str(file), BASETEN_API_KEY="").stdout
    assert "fast-truss doctor --model model --deployment dep1" in told


def test_pushed_ends_with_the_first_image(awake: Platform, tmp_path: Path) -> None:
    file = tmp_path / "pushed.json"
    file.write_text(json.dumps({"model_id": "model", "model_version_id": "dep1"}))
    (awake.project / "image.png").unlink(missing_ok=True)
    result = awake.run("pushed", str(file))
    assert result.returncode == 0, result.stdout
    assert [line.split(":")[0] for line in result.stdout.splitlines() if line[0] == "o"] == [
        "ok      status",
        "ok      image",
    ]
    assert (awake.project / "image.png").read_bytes().startswith(b"\x89PNG")
    assert "BASETEN_API_KEY and run: fast-truss doctor --model model --deployment dep1" in (
        awake.run("pushed", str(file), BASETEN_API_KEY="").stdout
    )


# Help.

COMMANDS = typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_is_a_command(awake: Platform, command: str) -> None:
    result = awake.run(command, "--help")
    assert result.returncode == 0
    (example,) = re.findall(r"Example: fast-truss (\S+)", result.stdout)
    assert example == command


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fast_truss import cli\n"
        "sys.argv = ['fast-truss', 'generate', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'httpx', 'baseten', 'gradio', 'PIL', 'matplotlib', 'yaml', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "Usage" in output
    assert output.splitlines()[-1] == "[]"
