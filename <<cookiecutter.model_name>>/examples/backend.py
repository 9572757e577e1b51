"""A backend for your app: it wakes the model when a person opens the page, and waits through the cold start.

    python -m uvicorn --app-dir examples backend:app --port 8080    # in the folder of the project

It needs fast-truss (see the README), fastapi and uvicorn. BASETEN_API_KEY and BASETEN_MODEL_ID name the deployment;
MODEL_URL=http://127.0.0.1:8000 uses `make serve` instead. Limit who may call it: every image costs money.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator

from fast_truss import AsyncClient, ClientError, InvalidInput, RequestRefused, Target
from fast_truss.watcher import Watcher
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

# The script wakes the model, so health probes and link previews, which run no scripts, cost nothing.
PAGE = """<!doctype html><meta charset=utf-8><title>Text to image</title><p id=now role=status>Waking the model</p>
<form><input id=text required autofocus placeholder=Prompt> <input id=file type=file accept=image/* hidden>
<button>Generate</button></form><img id=image alt><script>
fetch("wake", {method: "POST"}).then(() => { const events = new EventSource("status"); events.onmessage = event => {
  const {kind, words} = JSON.parse(event.data); now.textContent = words; if (kind === "ready") events.close(); }; });
document.forms[0].onsubmit = async event => { event.preventDefault(); now.textContent = "Generating";
  const reader = new FileReader(), chosen = file.files[0];
  if (chosen) await new Promise(done => { reader.onloadend = done; reader.readAsDataURL(chosen); });
  const wish = JSON.stringify({prompt: text.value, image: reader.result});
  const answer = await fetch("generate", {method: "POST", body: wish});
  const body = await answer.json(); now.textContent = body.error || "";
  file.hidden &&= !/`image`/.test(body.error);  // a model that edits images has asked for one
  if (answer.ok) image.src = `data:${body.content_type};base64,${body.images[0].image}`; };</script>"""
log, url = logging.getLogger("uvicorn.error"), os.environ.get("MODEL_URL") or None
try:
    model = AsyncClient(Target(os.environ.get("BASETEN_MODEL_ID") or ("local" if url else "")), url)
except ClientError as error:
    raise SystemExit(f"Set BASETEN_API_KEY and BASETEN_MODEL_ID, or MODEL_URL. {error}") from None
watcher, app = Watcher(model), FastAPI()
app.get("/", response_class=HTMLResponse)(lambda: PAGE)
app.get("/health")(lambda: {"status": "ok"})
app.get("/status")(lambda: StreamingResponse(events(), media_type="text/event-stream"))


@app.post("/wake", status_code=202)
async def wake() -> None:
    watcher.start()


async def events() -> AsyncIterator[str]:
    """Yield events {"kind": "waking" or "ready", "words": ...} until the model is ready."""
    while True:
        kind, words, failed = watcher.kind, watcher.words(), watcher.kind == "error"
        if failed:  # log the reason instead of showing it to visitors; the server may not listen yet
            log.error("The model does not start: %s", words)
            kind, words = "waking", "The model does not start. Retrying."
        yield f"data: {json.dumps({'kind': kind, 'words': words})}\n\n"
        if not failed and not watcher.waiting:
            return
        await asyncio.sleep(5 if failed else 1)
        if failed:
            watcher.start()


@app.post("/generate")
async def generate(request: Request) -> JSONResponse:
    """Return the model's answer. The model checks the fields."""
    try:
        wish = json.loads(await request.body())
    except (ValueError, RecursionError):
        wish = None
    if not isinstance(wish, dict) or "timeout" in wish:
        raise InvalidInput("Send a JSON object with the fields of the model, such as `prompt`.")
    return JSONResponse(await model.generate(wish.pop("prompt", None), 300, **wish))


@app.exception_handler(ClientError)
async def tell(_: Request, error: ClientError) -> JSONResponse:
    """Answer 4xx with the error if the visitor can correct it, otherwise 5xx, and log the error."""
    if isinstance(error, InvalidInput) or (isinstance(error, RequestRefused) and error.status in (400, 413, 422)):
        return JSONResponse({"error": str(error)}, error.status or 400)
    log.error("%s: %s", type(error).__name__, error)
    if error.retryable:
        return JSONResponse({"error": "The model is busy. Try again soon."}, 503, headers={"Retry-After": "30"})
    return JSONResponse({"error": "The image could not be generated. This is a problem on our side."}, 502)
