"""Networks and knob files in folders and repositories of a hub (huggingface_hub, the extra `[hub]`).

net.push_to_hub("me/denoiser")                                  # config.json, model.safetensors, README.md
net = tunable_ops.TunableModel.from_pretrained("me/denoiser")
knob = tunable_ops.hub.KnobFile.from_pretrained("me/texture")   # a knob without its base
net = tunable_ops.load_knob(plain, knob)

Only JSON and safetensors are read. Whatever else a repository holds is named in a warning and stays where it is.
"""

from tunable_ops.extras import install

try:
    import huggingface_hub as _needed  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "huggingface_hub":
        raise
    raise ModuleNotFoundError(
        f"tunable_ops.hub: sharing needs the package 'huggingface_hub': {install('hub')}", name=error.name
    ) from None

from tunable_ops.hub.repository import KnobFile, NetworkFile, load

__all__ = ["KnobFile", "NetworkFile", "load"]
