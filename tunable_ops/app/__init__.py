"""A page in the browser: a picture, a network, its sliders, and what they do to the picture.

`tunable-ops app` starts it; `create_app` returns it as Gradio's Blocks, and `mount` puts that into another application.
docs/app.md says what it does and how fast. Needs the extra `[app]`: Gradio.
"""

from tunable_ops.app.page import create_app, launch, mount
from tunable_ops.app.settings import Refused, Settings

__all__ = ["Refused", "Settings", "create_app", "launch", "mount"]
