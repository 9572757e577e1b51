"""A backend for your app: it wakes the model when the page is opened, and tells a visitor's fault from its own.

    python -m uvicorn --app-dir examples backend:app --port 8080    # in the folder of the project

BASETEN_API_KEY and BASETEN_MODEL_ID name the deployment. MODEL_URL=http://127.0.0.1:8000 asks the server of
`make serve` instead. It needs requirements-client.txt, fastapi and uvicorn: the environment of `make test` (.venv) has
them, because Truss's server runs on them, and that of `make app` (.venv-app), because gradio does; elsewhere
`pip install -r requirements-client.txt fastapi uvicorn`. It is not pushed. Before you show it to the world, limit what
each visitor may ask: every image is paid for.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

from fast_truss import AsyncClient, ClientError, InvalidInput, RequestRefused, Target, TimedOut
from fast_truss.watcher import Watcher
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

# Of one image, cold start included: nobody waits longer at a page.
PREDICT_SECONDS = 300.0
TICK_SECONDS = 1.0
# What the visitor can mend. Another answer, such as 401, is about this backend.
VISITORS_FAULT = (400, 413, 422)
log = logging.getLogger("uvicorn.error")


def client_of(environment: dict[str, str]) -> AsyncClient:
    """Return the client that the environment describes. Ends the process with a sentence if it does not."""
    url, model_id = environment.get("MODEL_URL"), environment.get("BASETEN_MODEL_ID")
    if not url and not model_id:
        sys.exit("BASETEN_MODEL_ID is not set: put the id of the model on Baseten there, or an address into MODEL_URL.")
    try:
        return AsyncClient(Target(model_id or "local"), url=url or None)
    except ClientError as error:
        sys.exit(str(error))


model = client_of(dict(os.environ))
watcher = Watcher(model)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with model:  # connections are kept between requests
        yield


app = FastAPI(lifespan=lifespan)


class Wish(BaseModel):
    """What a visitor may ask. The model checks the rest, and its bounds are in config.yaml."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1)
    negative_prompt: str | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None


@app.get("/")
async def opened() -> HTMLResponse:
    """The page. The model starts in the background, while the visitor reads and types."""
    watcher.start()
    return HTMLResponse(PAGE)


@app.get("/status")
async def status() -> StreamingResponse:
    """Server-sent events, {"kind": "waking", "ready" or "error", "words": ...}, until the model is ready or fails."""
    watcher.start()
    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def events() -> AsyncIterator[str]:
    while True:
        # What went wrong is for the log, and not for a visitor.
        words = "The model does not start." if watcher.kind == "error" else watcher.words()
        yield f"data: {json.dumps({'kind': watcher.kind, 'words': words})}\n\n"
        if not watcher.waiting:
            if watcher.kind == "error":
                log.error("The model does not start: %s", watcher.words())
            return
        await asyncio.sleep(TICK_SECONDS)


@app.post("/predict")
async def predict(wish: Wish) -> dict[str, Any]:
    """Make an image. It goes through what is left of the cold start. Returns the model's answer."""
    return await model.generate(**wish.model_dump(exclude_none=True), timeout=PREDICT_SECONDS)


@app.exception_handler(ClientError)
async def tell(_: Request, error: ClientError) -> JSONResponse:
    """4xx with a sentence where the visitor can mend it; else 5xx, and the sentence goes into the log."""
    if isinstance(error, InvalidInput) or (isinstance(error, RequestRefused) and error.status in VISITORS_FAULT):
        return JSONResponse({"error": str(error)}, error.status or 400)
    log.error("%s: %s", type(error).__name__, error)
    if error.retryable or isinstance(error, TimedOut):
        seconds = str(round(error.retry_after or 30))
        return JSONResponse({"error": "The model is busy: try again soon."}, 503, headers={"Retry-After": seconds})
    return JSONResponse({"error": "The image could not be made. That is our fault, not yours."}, 502)


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Text to image</title>
<p id="status" role="status">Waking the model</p>
<form>
  <label>Prompt <input id="prompt" required autofocus size="60"></label>
  <button>Generate</button>
</form>
<p id="message" role="alert"></p>
<img id="image" alt="">
<script>
  const show = (id, text) => { document.getElementById(id).textContent = text; };
  const events = new EventSource("status");
  events.onmessage = (event) => {
    const now = JSON.parse(event.data);
    show("status", now.words);
    if (now.kind !== "waking") events.close();
  };
  document.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    show("message", "Generating");
    const wish = { prompt: document.getElementById("prompt").value };
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(wish) };
    const answer = await fetch("predict", options);
    const body = await answer.json();
    show("message", answer.ok ? "" : body.error || "This cannot be asked for.");
    if (answer.ok) {
      document.getElementById("image").src = `data:${body.content_type};base64,${body.images[0].image}`;
    }
  };
</script>
</html>
"""
