"""Show newer commits of the catalog's repositories, and optionally write them into catalog/presets/.

python -m catalog.refresh           show
python -m catalog.refresh --write   write
"""

import argparse
import sys
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from catalog import ROOT, load
from catalog.schema import Preset

OFFLINE = "The Hugging Face Hub cannot be reached: connect this machine to the network and try again."


def newer_commits(presets: dict[str, Preset]) -> dict[str, tuple[str, str]]:
    """Return (pinned, newest) for each repository with a newer commit."""
    pinned = {repo.repo_id: repo.revision for preset in presets.values() for repo in preset.repos.values()}
    newest = {repo_id: str(HfApi().model_info(repo_id).sha) for repo_id in sorted(pinned)}
    return {repo_id: (pinned[repo_id], sha) for repo_id, sha in newest.items() if sha != pinned[repo_id]}


def main(root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(description="Show newer commits of the catalog's repositories.")
    parser.add_argument("--write", action="store_true", help="Write them into catalog/presets/.")
    arguments = parser.parse_args()
    try:
        newer = newer_commits(load(root))
    except (httpx2.TransportError, OfflineModeIsEnabled):
        sys.exit(OFFLINE)
    except HfHubHTTPError as error:
        sys.exit(f"The Hugging Face Hub refused: {error}")
    for repo_id, (old, new) in newer.items():
        print(f"{repo_id}: {old} -> {new}")
    if not newer:
        print("All commits are up to date.")
    if not arguments.write or not newer:
        return
    for file in (root / "catalog" / "presets").glob("*.yaml"):
        text = file.read_text("utf-8")
        for old, new in newer.values():
            text = text.replace(f"revision: {old}\n", f"revision: {new}\n")
        file.write_text(text, "utf-8")
    print("Written. Run `python -m catalog`, the tests, and the tests marked network: the files may have changed too.")


if __name__ == "__main__":
    main()
