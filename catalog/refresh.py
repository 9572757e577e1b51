"""Show newer commits of the catalog's repositories, and write them into cookiecutter.json when told.

python tests/refresh_catalog.py           show
python tests/refresh_catalog.py --write   write
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

CATALOG = Path(__file__).resolve().parent.parent / "cookiecutter.json"
OFFLINE = "The Hugging Face Hub cannot be reached: connect this machine to the network and try again."


def newer_commits(presets: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the pinned and the newest commit of each repository that has a newer one."""
    pinned = {repo["repo_id"]: repo["revision"] for preset in presets.values() for repo in preset["repos"].values()}
    newest = {repo_id: HfApi().model_info(repo_id).sha for repo_id in sorted(pinned)}
    return {repo_id: (pinned[repo_id], sha) for repo_id, sha in newest.items() if sha != pinned[repo_id]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Show newer commits of the catalog's repositories.")
    parser.add_argument("--write", action="store_true", help="Write them into cookiecutter.json.")
    arguments = parser.parse_args()
    context = json.loads(CATALOG.read_text("utf-8"))
    try:
        newer = newer_commits(context["_presets"])
    except (httpx2.TransportError, OfflineModeIsEnabled):
        sys.exit(OFFLINE)
    except HfHubHTTPError as error:
        sys.exit(f"The Hugging Face Hub refused: {error}")
    for repo_id, (old, new) in newer.items():
        print(f"{repo_id}: {old} -> {new}")
    if not newer:
        print("Every commit is the newest.")
    if not arguments.write or not newer:
        return
    for preset in context["_presets"].values():
        for repo in preset["repos"].values():
            if repo["repo_id"] in newer:
                repo["revision"] = newer[repo["repo_id"]][1]
    CATALOG.write_text(json.dumps(context, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print("Written. Run the tests, then those marked network: the files may have changed too.")


if __name__ == "__main__":
    main()
