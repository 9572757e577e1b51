"""Print the licence notice of the weights and the next steps. Nothing else."""

import json

CONTEXT = r"""
<< cookiecutter | tojson >>
"""


def farewell(answers: dict) -> str:
    """Return what a user needs to know right after the project was made."""
    preset = answers["_presets"][answers["preset"]]
    name, fine_tune = answers["model_name"], answers["hf_repo_id"]
    weights = fine_tune or f"{preset['title']}, {preset['download_gb']} GB of weights"
    licence = f"{preset['license']}. {preset['license_notice']}"
    if fine_tune:
        licence = f"read it at https://huggingface.co/{fine_tune}. Of {preset['title']} itself: {licence}"
    secret = ""
    if preset["gated"] or fine_tune:
        secret = f"""
The weights need a token, unless they are public. Ask for access at
https://huggingface.co/{fine_tune or preset["repos"]["pipeline"]["repo_id"]}, then put a Hugging Face token
into the secret hf_access_token on Baseten, under Settings, Secrets.
"""
    return f"""
{name} is ready: {weights}.

Licence of the weights: {licence}
{secret}
Next:
  cd {name}
  make test     the tests of the real server, without GPU, Docker or weights
  make serve    the local Truss server
  truss push    to Baseten (pip install truss)
"""


if __name__ == "__main__":
    print(farewell(json.loads(CONTEXT)))
