"""To be removed when no module imports it: see client.py and blocking.py."""

from fast_truss.blocking import Client
from fast_truss.client import AsyncClient, image_bytes, is_ready
from fast_truss.policy import ASK_SECONDS

__all__ = ["ASK_SECONDS", "AsyncClient", "Client", "image_bytes", "is_ready"]
