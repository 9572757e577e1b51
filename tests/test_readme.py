"""The README tells what cookiecutter.json holds."""

from conftest import CONTEXT, TEMPLATE


def preset_rows() -> str:
    rows = []
    for name, facts in CONTEXT["_presets"].items():
        cells = [
            f"`{name}`",
            facts["repos"]["pipeline"]["repo_id"],
            f"{facts['size']} px",
            str(facts["num_inference_steps"]),
            str(facts["download_gb"]),
            facts["accelerator"],
            facts["license"],
            "yes" if facts["gated"] else "no",
        ]
        rows.append(f"| {' | '.join(cells)} |\n")
    return "".join(rows)


def test_the_table_of_presets_is_that_of_the_catalog() -> None:
    readme = (TEMPLATE / "README.md").read_text("utf-8")
    header = "| preset | weights | size | steps | download GB | GPU | licence | gated |\n|" + " --- |" * 8 + "\n"
    table = readme.split(header)[1].split("\n\n")[0] + "\n"
    assert table == preset_rows(), f"Put this into README.md:\n{preset_rows()}"


def test_every_answer_is_documented() -> None:
    readme = (TEMPLATE / "README.md").read_text("utf-8")
    for name in CONTEXT:
        if not name.startswith("_"):
            assert f"| `{name}` |" in readme
