"""An HTTP service for tunable networks: pictures in, restored pictures out, lambda by name in every request.

`tunable-ops serve` starts it; `create_app` returns it as an ASGI application for another server. docs/serve.md has its
paths, limits and answers. Needs the extra `[serve]`: FastAPI, uvicorn and prometheus-client.
"""

from tunable_ops.serve.app import create_app
from tunable_ops.serve.models import Served
from tunable_ops.serve.settings import Settings

__all__ = ["Served", "Settings", "create_app"]
