"""Release a version: `make release VERSION=1.1.0`.

Sets the version in pyproject.toml and what `python -m catalog` writes from it, heads the newest section of CHANGELOG.md
with the version and today's date, commits, and tags vVERSION. It pushes nothing.
"""

import datetime
import re
import subprocess
import sys
import tomllib

from catalog import ROOT
from catalog.written import outputs, stale


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def problem(version: str, current: str, changelog: str) -> str | None:
    """Return why the version cannot be released, in one sentence, or None."""
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", version):
        return f"VERSION is {version!r}: use three numbers, such as 1.1.0."
    if parts(version) < parts(current):
        return f"VERSION is {version}, and pyproject.toml is at {current}: use a newer one."
    if git("tag", "--list", f"v{version}"):
        return f"The tag v{version} exists: use a newer version."
    if git("status", "--porcelain"):
        return "The working tree has changes: commit or stash them first."
    if not re.search(heading(version), changelog):
        return f"CHANGELOG.md has no section '## Unreleased' or '## {version}': say there what changed."
    return None


def heading(version: str) -> str:
    return rf"(?m)^## (Unreleased|{re.escape(version)})$"


def main(version: str) -> None:
    pyproject, changes = ROOT / "pyproject.toml", ROOT / "CHANGELOG.md"
    text, changelog = pyproject.read_text("utf-8"), changes.read_text("utf-8")
    current = tomllib.loads(text)["project"]["version"]
    if wrong := problem(version, current, changelog):
        sys.exit(wrong)
    pyproject.write_text(text.replace(f'\nversion = "{current}"\n', f'\nversion = "{version}"\n', 1), "utf-8")
    dated = f"## {version} ({datetime.date.today()})"
    changes.write_text(re.sub(heading(version), dated, changelog, count=1), "utf-8")
    found = outputs()
    for path in stale(found):
        path.write_text(found[path], "utf-8")
    git("commit", "--all", "--message", f"Release {version}")
    git("tag", "--annotate", f"v{version}", "--message", f"fast-truss {version}")
    print(f"Tagged v{version}. Publish it with: git push --follow-tags")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Name the version: make release VERSION=1.1.0")
    main(sys.argv[1])
