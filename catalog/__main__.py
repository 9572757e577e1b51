"""Write the files that follow from the catalog: `python -m catalog`. --check only compares them."""

import argparse
import sys

from catalog import ROOT, CatalogError, load
from catalog.written import outputs, stale


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the files that follow from the catalog.")
    parser.add_argument("--check", action="store_true", help="Write nothing; exit with 1 if a file is out of date.")
    parser.add_argument("--requirements", action="store_true", help="Print the packages that only some presets need.")
    arguments = parser.parse_args()
    try:
        if arguments.requirements:
            print("\n".join(sorted({pin for preset in load().values() for pin in preset.requirements})))
            return
        found = outputs()
    except CatalogError as error:
        sys.exit(str(error))
    wrong = stale(found)
    if arguments.check and wrong:
        names = ", ".join(str(path.relative_to(ROOT)) for path in wrong)
        sys.exit(f"Out of date: {names}. Run `python -m catalog`.")
    for path in wrong:
        if path not in found:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found[path], "utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
