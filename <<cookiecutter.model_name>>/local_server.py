"""Serve this Truss on this machine: the server that the image runs, without Docker, GPU or network.

`truss image build-context` writes what the image is built from. This puts its parts side by side,
as the image does, points the copy of config.yaml at weights on this machine, and starts main.py.
"""

import argparse
import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent
REAL_WEIGHTS = PROJECT / ".weights"
PREDICT = "/v1/models/model:predict"
READY = "/v1/models/model/loaded"


def read_config() -> dict[str, Any]:
    """Return config.yaml of this project."""
    return yaml.safe_load((PROJECT / "config.yaml").read_text("utf-8"))


def build_context(target: Path) -> None:
    """Write the image's build context to target. Raises CalledProcessError if Truss refuses the project.

    With model_cache in the config Truss asks the Hub for the list of files. So it gets a copy without.
    """
    config = read_config()
    for delivery in ("model_cache", "weights"):
        config.pop(delivery, None)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        (copy / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
        for folder in ("model", "data", "packages"):
            if (PROJECT / folder).is_dir():
                shutil.copytree(PROJECT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        truss = Path(sys.executable).parent / "truss"
        command = [truss, "image", "build-context", "--non-interactive", target, copy]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def build_app(app: Path, weights: Path) -> None:
    """Lay out app as /app is in the image, with weights (a folder) in the place of the cache."""
    build_context(app / "context")
    shutil.copytree(app / "context" / "server", app, dirs_exist_ok=True)
    shutil.copytree(app / "context" / "model", app / "model")
    # Truss fills in its defaults: the server needs its copy, not the one in this repository.
    config = yaml.safe_load((app / "context" / "config.yaml").read_text("utf-8"))
    config["model_metadata"]["pipeline"]["weights_dir"] = str(weights.resolve())
    (app / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")


def start(app: Path, port: int, **options: Any) -> subprocess.Popen:
    """Start the server on port. options go to subprocess.Popen."""
    declared = read_config()["environment_variables"]
    declared = {name: re.sub("^/app/", f"{app}/", value) for name, value in declared.items()}
    # The server leaves a mark in the home folder when load() fails: keep it out of the user's.
    environment = {**os.environ, **declared, "INFERENCE_SERVER_PORT": str(port), "HOME": str(app)}
    return subprocess.Popen([sys.executable, "main.py"], cwd=app, env=environment, **options)


def wait_until_ready(process: subprocess.Popen, url: str, timeout: float = 600) -> None:
    """Return when load() is done. Raises RuntimeError if the server ends, TimeoutError after timeout seconds."""
    import requests

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError("The server stopped before it was ready: its log says why.")
        try:
            if requests.get(url + READY, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"The server was not ready after {timeout:.0f} s.")


def stop(process: subprocess.Popen) -> None:
    """End the server: it has 20 s to finish the answers that it works on."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cached_repos() -> list[dict[str, Any]]:
    """Return what the image gets from Hugging Face: repo_id, revision, folder and allow_patterns of each."""
    config = read_config()
    repos = [{**repo, "folder": repo["volume_folder"]} for repo in config.get("model_cache", [])]
    for source in config.get("weights", []):
        repo_id, revision = source["source"].removeprefix("hf://").split("@")
        folder = Path(source["mount_location"]).name
        repos.append({**source, "repo_id": repo_id, "revision": revision, "folder": folder})
    return [{key: repo[key] for key in ("repo_id", "revision", "folder", "allow_patterns")} for repo in repos]


def download_weights() -> Path:
    """Fetch what the image would get, at its commits, into .weights. Returns the folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for repo in cached_repos():
        folder = REAL_WEIGHTS / repo["folder"]
        try:
            snapshot_download(
                repo["repo_id"], revision=repo["revision"], allow_patterns=repo["allow_patterns"], local_dir=folder
            )
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            sys.exit(
                f"{repo['repo_id']} cannot be downloaded: check the network, and for a private or gated repository "
                f"set HF_TOKEN.\n{error}"
            )
    return REAL_WEIGHTS


def find_weights(choice: str, temporary: Path) -> Path:
    """Return the folder that --weights means; the tiny pipeline is made in temporary."""
    if choice == "real":
        return download_weights()
    if choice != "tiny":
        return Path(choice)
    # A process of its own: this one stays light, and needs no torch.
    tiny = temporary / "weights"
    subprocess.run([sys.executable, PROJECT / "tests" / "tiny_pipeline.py", tiny], check=True)
    return tiny


def save_first_image(url: str, prompt: str, output: Path) -> None:
    """Send prompt, write the PNG, and print where the cold start went."""
    import requests

    config = read_config()["model_metadata"]
    body = {**config["example_model_input"], "prompt": prompt}
    response = requests.post(url + PREDICT, json=body, timeout=3600)
    if not response.ok:
        sys.exit(f"The server answered {response.status_code}: {response.text}")
    answer = response.json()
    output.write_bytes(base64.b64decode(answer["images"][0]["image"]))
    print(f"\nImage: {output} (seed {answer['images'][0]['seed']})\nCold start, in seconds:")
    for name, seconds in answer["timings"]["cold_start"].items():
        print(f"  {name:<18}{seconds:8.2f}")


def parse_arguments() -> argparse.Namespace:
    """Return the arguments. Exits with 2 if they are wrong."""
    parser = argparse.ArgumentParser(description="Serve this Truss on this machine.")
    parser.add_argument(
        "--weights",
        default="tiny",
        metavar="tiny|real|DIR",
        help="tiny: random weights of the same family, made here. real: downloaded at the commit in config.yaml. "
        "DIR: a folder that holds them as .weights does. Default: tiny.",
    )
    parser.add_argument("--port", type=int, default=8000, help="Default: 8000. 0: any free port.")
    parser.add_argument("--prompt", help="Make one image, print the phases of the cold start, and stop.")
    parser.add_argument("--output", type=Path, default=Path("image.png"), help="Where --prompt puts the PNG.")
    parser.add_argument("--context", type=Path, help="Only write the image's build context to this folder.")
    arguments = parser.parse_args()
    if arguments.weights not in ("tiny", "real") and not Path(arguments.weights).is_dir():
        parser.error(f"--weights must be tiny, real or a folder, and {arguments.weights!r} is none of them.")
    if not 0 <= arguments.port <= 65535:
        parser.error(f"--port must be 0 to 65535, and is {arguments.port}.")
    return arguments


def main() -> None:
    """Serve until Ctrl-C, SIGTERM or the one image of --prompt, and then end the server."""
    arguments = parse_arguments()
    if arguments.context:
        return build_context(arguments.context)
    # Whatever ends this process ends the server too: see finally.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    port = arguments.port or free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="truss-") as temporary:
        app = Path(temporary) / "app"
        build_app(app, find_weights(arguments.weights, Path(temporary)))
        process = start(app, port)
        try:
            wait_until_ready(process, url)
            if arguments.prompt is not None:
                return save_first_image(url, arguments.prompt, arguments.output)
            print(
                f'\nReady. Ctrl-C stops it. Try:\n  curl {url}{PREDICT} -d \'{{"prompt": "a lighthouse"}}\'\n',
                flush=True,
            )
            process.wait()
        except KeyboardInterrupt:
            pass
        except (RuntimeError, TimeoutError) as error:
            sys.exit(str(error))
        finally:
            stop(process)


if __name__ == "__main__":
    main()
