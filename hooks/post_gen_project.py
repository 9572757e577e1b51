"""Print the licence notice of the weights and the next steps. Nothing else."""

import json

CONTEXT = r"""
<< cookiecutter | tojson >>
"""


def farewell(answers: dict) -> str:
    """Return what a user needs to know right after the project was made."""
    preset = answers["_presets"][answers["preset"]]
    name = answers["model_name"]
    return f"""
{name} is ready: {preset["title"]}, {preset["download_gb"]} GB of weights.

Licence of the weights: {preset["license"]}. {preset["license_notice"]}

Next:
  cd {name}
  make test     the tests of the real server, without GPU, Docker or weights
  make serve    the local Truss server
  truss push    to Baseten (pip install truss)
"""


if __name__ == "__main__":
    print(farewell(json.loads(CONTEXT)))
