"""The client against a platform that scales the real local Truss server to zero and back."""

import concurrent.futures
import os
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from platforms import SMALL, Platform

from fast_truss import Client, InvalidInput, RequestRefused, Target, image_bytes


def test_wake_shows_the_status_until_the_model_is_ready(platform: Platform) -> None:
    platform.set(load_seconds=1.5)  # it looks once a second
    assert "SCALED_TO_ZERO" in platform.run("status").stdout
    result = platform.run("wake", "--wait")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Ready after ")
    # WAKING_UP may be over before the first look.
    assert "LOADING_MODEL, 0 replicas" in result.stderr
    assert "ACTIVE, 1 replica" in result.stderr
    assert platform.run("status").stdout == "ACTIVE, 1 replica, ready\n"
    assert platform.tell()["starts"] == 1


def test_generate_goes_through_a_cold_start_and_tells_it(platform: Platform, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    arguments = ["--seed", "7", "--width", "64", "--height", "64", "--num-inference-steps", "1", "-o", str(output)]
    result = platform.run("generate", "a boat", *arguments)
    assert result.returncode == 0, result.stderr
    assert output.read_bytes().startswith(b"\x89PNG")
    assert "(seed 7)" in result.stdout
    assert "wait_for_weights" in result.stderr
    assert platform.tell()["starts"] == 1


def test_fifty_at_once_start_one_replica_and_lose_nothing(platform: Platform) -> None:
    def call(number: int) -> httpx.Response:
        return platform.post("wake") if number % 2 else platform.post("predict", **{**SMALL, "seed": number})

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        responses = list(pool.map(call, range(50)))
    assert [response.status_code for response in responses] == [200, 202] * 25
    assert [response.json()["images"][0]["seed"] for response in responses[::2]] == list(range(0, 50, 2))
    assert platform.tell()["starts"] == 1


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("model-model/production", []),
        ("model-model/environments/staging", ["--environment", "staging"]),
        ("model-model-staging", ["--environment", "staging", "--regional"]),
        ("model-model/development", ["--development"]),
        ("model-model/deployment/dep1", ["--deployment", "dep1"]),
    ],
)
def test_every_target_wakes_and_generates(awake: Platform, tmp_path: Path, path: str, arguments: list[str]) -> None:
    assert awake.http.post(f"{awake.url}/{path}/wake").status_code == 202
    result = awake.run("wake", "--wait", *arguments)
    assert result.returncode == 0, result.stderr
    small = ["--width", "64", "--height", "64", "--num-inference-steps", "1", "-o", str(tmp_path / "out.webp")]
    result = awake.run("generate", "a boat " * 50, *small, *arguments)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.webp").read_bytes().startswith(b"RIFF")
    # The unread part of the prompt is reported.
    assert "prompt: the model reads 75 tokens" in result.stderr


def test_wake_on_an_active_model_says_so(awake: Platform) -> None:
    assert awake.run("wake").stdout == "The model is already awake.\n"


def test_the_local_server_is_asked_as_the_deployment_is(awake: Platform) -> None:
    client = Client(Target("local"), url=awake.tell()["url"])
    fields = client.schema()["properties"]
    assert {"prompt", "seed", "width"} <= set(fields)
    assert client.status().ready
    kinds = [event.kind for event in client.events(**SMALL)]
    assert (kinds[0], kinds[-1], "step" in kinds) == ("queued", "result", True)
    assert len(image_bytes(client.generate(**SMALL))) == 1
    with pytest.raises(RequestRefused, match="`stepz`"):
        client.generate("a boat", stepz=1)
    with pytest.raises(InvalidInput, match="Only Baseten has this"):
        client.autoscaling()


def test_options_that_exclude_each_other_are_a_sentence(awake: Platform) -> None:
    refused(awake.run("status", "--deployment", "dep1", "--development"), "exclude each other", 2)
    refused(awake.run("status", model=""), "--model is missing", 2)
    refused(awake.run("status", "--model", "../x"), "model_id is '../x'", 2)


def test_autoscaling_is_shown_changed_and_checked(awake: Platform) -> None:
    assert "scale_down_delay: 900" in awake.run("autoscaling").stdout
    assert "max_replica: 1\n" in awake.run("autoscaling", "--scale-down-delay", "800").stdout
    assert "scale_down_delay: 800" in awake.run("autoscaling").stdout
    assert awake.run("autoscaling", "--scale-down-delay", "900").returncode == 0
    for bad in (["--min-replica", "-1"], ["--min-replica", "x"], ["--replicas", "2"]):
        result = awake.run("autoscaling", *bad)
        assert result.returncode != 0
        assert "Traceback" not in result.stderr
    refused = awake.http.patch(f"{awake.url}/v1/models/model/deployments/dep1/autoscaling_settings", json={"x": 1})
    assert refused.status_code == 400


def test_generate_tries_again_when_told_to(awake: Platform, tmp_path: Path) -> None:
    awake.set(faults=[429, 500, 503])
    output = tmp_path / "out.png"
    result = awake.run("generate", "a boat", "--width", "64", "--height", "64", "-o", str(output))
    assert result.returncode == 0, result.stderr
    assert output.exists()


def test_the_emitted_workflow_wakes(platform: Platform) -> None:
    workflow = yaml.safe_load((platform.project / ".github" / "workflows" / "wake.yml").read_text("utf-8"))
    (step,) = workflow["jobs"]["wake"]["steps"]
    given = {"BASETEN_API_KEY": "good-key", "BASETEN_MODEL_ID": "model", "ENVIRONMENT": "production"}
    assert set(step["env"]) == set(given)
    script = step["run"].replace("sleep 5", "sleep 0.2")
    for host, path in (
        ("https://model-$BASETEN_MODEL_ID.api.baseten.co", "/model-model"),
        ("https://api.baseten.co", ""),
    ):
        assert host in script
        script = script.replace(host, platform.url + path)

    def run() -> subprocess.CompletedProcess:
        command = ["bash", "-e", "-c", script]
        environment = {**given, "PATH": os.environ["PATH"]}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    result = run()
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "ACTIVE, replicas: 1"
    assert platform.tell()["starts"] == 1
    given["BASETEN_API_KEY"] = "bad-key"
    assert run().returncode != 0


def refused(result: subprocess.CompletedProcess, sentence: str, code: int = 1) -> None:
    assert result.returncode == code
    assert sentence in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    # Beside the sentence, only why it tried again.
    assert [line for line in result.stderr.strip().splitlines()[:-1] if "Trying again in" not in line] == []


@pytest.mark.parametrize(
    "command",
    [["wake"], ["status"], ["generate", "a boat"], ["autoscaling"], ["coldstart", "--yes"], ["load"]],
)
def test_a_wrong_key_is_one_sentence(awake: Platform, command: list[str]) -> None:
    refused(awake.run(*command, key="wrong-key"), "Baseten refused the key (401")


@pytest.mark.parametrize("command", [["wake"], ["status"], ["generate", "a boat"]])
def test_an_unknown_model_is_one_sentence(awake: Platform, command: list[str]) -> None:
    refused(awake.run(*command, model="other"), "The model or deployment does not exist")


@pytest.mark.parametrize("command", [["wake"], ["generate", "a boat"]])
def test_a_deactivated_deployment_is_one_sentence(awake: Platform, command: list[str]) -> None:
    awake.set(deactivated=True)
    refused(awake.run(*command), "The deployment is INACTIVE: activate it on Baseten")


@pytest.mark.parametrize("command", [["wake"], ["status"], ["generate", "a boat"]])
def test_a_network_that_is_down_is_one_sentence(awake: Platform, command: list[str]) -> None:
    # Port 9 is `discard`: nothing listens there.
    refused(awake.run(*command, url="http://127.0.0.1:9"), "cannot be reached")


def test_a_half_sent_answer_is_one_sentence_and_leaves_no_file(awake: Platform, tmp_path: Path) -> None:
    awake.set(faults=[0])
    output = tmp_path / "out.png"
    refused(awake.run("generate", "a boat", "-o", str(output)), "broke during the answer")
    assert not output.exists()


def test_a_wake_that_never_becomes_ready_is_one_sentence(platform: Platform) -> None:
    platform.set(stuck=True)
    result = platform.run("wake", "--wait", "--timeout", "2")
    assert result.returncode == 1
    assert "The model is still WAKING_UP after 2 s: wait longer." in result.stderr
    assert "Traceback" not in result.stderr


def test_a_request_that_was_parked_for_too_long_is_tried_again_and_given_up(platform: Platform) -> None:
    platform.set(stuck=True, park_seconds=0.2)
    result = platform.run("generate", "a boat", "--timeout", "5")
    assert result.returncode == 1
    assert "There was no answer within 5 s. Last error: Baseten cannot answer now (500" in result.stderr
