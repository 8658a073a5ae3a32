"""The model card of a network or a knob: README.md of its repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import ModelCardData

from tunable_ops import models
from tunable_ops.extras import command
from tunable_ops.knob_files import whole_fingerprint

__all__ = ["About", "write"]

# what a hub knows by name; anything else is "other"
_LICENCES = {
    *("agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *("cc-by-sa-4.0", "cc0-1.0", "gpl-2.0", "gpl-3.0", "isc", "lgpl-3.0", "mit", "mpl-2.0", "unlicense"),
}
_METRICS = ("psnr", "ssim", "lpips", "dists", "niqe")


@dataclass(frozen=True)
class About:
    """What a card says and a file does not know.

    Args:
        purpose: What the network is for, in a sentence; default: the note "purpose".
        licence: Default: that of the knob file, or the note "licence".
        measured: Quality over lambda: the record that `tunable-ops eval --json` writes, or names of positions with a
            number each, or with a number for each metric. Default: the note "validation_psnr".
        base_model: Repository "owner/name" of the network that it was made of.

    Raises:
        TypeError: One of another type.
    """

    purpose: str | None = None
    licence: str | None = None
    measured: Mapping[str, Any] | None = None
    base_model: str | None = None

    def __post_init__(self) -> None:
        for name in ("purpose", "licence", "base_model"):
            if not isinstance(value := getattr(self, name), str | None):
                raise TypeError(f"hub: {name} must be a string; got {value!r}")
        if not isinstance(self.measured, Mapping | None):
            raise TypeError(f"hub: measured must map positions to numbers; got {type(self.measured).__name__}")
        _curve(self.measured, ())


def write(metadata: Mapping[str, Any], about: About, name: str, repo_id: str | None) -> str:
    """Return the text of a card.

    Args:
        metadata: Of the file.
        about: What the caller says.
        name: The title.
        repo_id: Where it goes; None: a folder.
    """
    notes = _mapping(metadata.get("notes"))
    noted = _string(metadata.get("licence")) or _string(notes.get("licence"))
    licence = about.licence or noted
    is_knob = "base" in metadata
    data = ModelCardData(
        library_name="tunable_ops",
        pipeline_tag="image-to-image",
        tags=["tunable-convolutions", *(["knob"] if is_knob else [])],
        base_model=about.base_model,
        **_licence(licence),
    )
    purpose = _line(about.purpose or "") or _paragraph(_string(notes.get("purpose")))
    parts = [f"---\n{data.to_yaml()}\n---", f"# {_text(name)}"]
    if purpose:
        parts.append(purpose)
    parts.append(_what(metadata, is_knob))
    parts.append("## Knobs\n\n" + _knobs(metadata["spec"]))
    parts.append("## Use\n\n" + _use(metadata, is_knob, repo_id or f"path/to/{name}"))
    if is_knob:
        parts.append("## Base network\n\n" + _base(metadata, about.base_model))
    parts.append("## Training\n\n" + _training(notes, metadata["architecture"]))
    names = metadata["spec"]["names"]
    curve = _curve(about.measured, names) or _noted_curve(notes.get("validation_psnr"), names)
    if curve:
        source = "" if about.measured else "On the validation pictures of the training, PSNR in dB.\n\n"
        parts.append("## Measured\n\n" + source + _table(curve))
    parts.append(f"## Licence\n\n{_line(about.licence or '') or _paragraph(noted) or 'Not stated.'}")
    return "\n\n".join(parts) + "\n"


def _what(metadata: Mapping[str, Any], is_knob: bool) -> str:
    kind = "A knob without its base network" if is_knob else "A network with a slider"
    return (
        f"{kind}: its convolutions hold several kernels, which are blended with weights (lambda) that you set at every "
        "call. Made with tunable_ops."
    )


def _knobs(spec: Mapping[str, Any]) -> str:
    names = spec["names"]
    units = spec.get("units") or [""] * len(names)
    rows = [["knob", "from", "to", "unit", "default"]]
    for name, unit, (low, high), default in zip(names, units, spec["ranges"], spec["defaults"], strict=True):
        rows.append([_code(name), f"{low:g}", f"{high:g}", _text(unit), f"{default:g}"])
    sums = "\n\nThey are weights that sum to 1." if spec["domain"] == "simplex" else ""
    return _table(rows) + sums


def _use(metadata: Mapping[str, Any], is_knob: bool, source: str) -> str:
    spec = metadata["spec"]
    lam = ", ".join(
        f"{_literal(name)}: {default:g}" for name, default in zip(spec["names"], spec["defaults"], strict=True)
    )
    call = f"y = net(x, {{{lam}}})  # x: pictures [B, C, H, W] in [0, 1]"
    own = metadata["architecture"] in models.ARCHITECTURES
    plain = f"plain = ...  # {_line(_call(metadata))} with its published weights"
    if is_knob:
        lines = [
            "import tunable_ops",
            plain,
            f"knob = tunable_ops.hub.KnobFile.from_pretrained({_literal(source)})",
            "net = tunable_ops.load_knob(plain, knob)",
        ]
    elif own:
        lines = ["import tunable_ops", f"net = tunable_ops.TunableModel.from_pretrained({_literal(source)})"]
    else:
        lines = [
            "import tunable_ops",
            f"plain = ...  # {_line(_call(metadata))}, with any weights",
            f"net = tunable_ops.TunableModel.from_pretrained({_literal(source)}, network=plain)",
        ]
    code = "\n".join([*lines, call])
    return f"```bash\n{command('hub,train')}  # in a checkout of tunable_ops\n```\n\n```python\n{code}\n```"


def _base(metadata: Mapping[str, Any], base_model: str | None) -> str:
    where = f" It is [{base_model}](https://huggingface.co/{base_model})." if base_model else ""
    return (
        f"{_code(_call(metadata))}, fingerprint `{whole_fingerprint(metadata['base'])}` over "
        f"{len(metadata['base'])} layers; any other network is refused.{where} With every knob at 0 the network is its "
        "base, if training left that alone."
    )


def _call(metadata: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value!r}" for key, value in _mapping(metadata.get("arguments")).items())
    return f"{metadata['architecture']}({arguments})"


def _training(notes: Mapping[str, Any], architecture: str) -> str:
    lines = [f"Architecture: {_code(architecture)}."]
    for of, each in _sources(notes):
        said = list(_trained(each))
        lines += [f"{of}{said[0]}", *said[1:]] if said else []
    if len(lines) == 1:
        lines.append("On what it was trained is not stated.")
    return "\n\n".join(lines)


def _sources(notes: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the notes of a network and of every knob that was loaded into it."""
    yield "", notes
    for entry in map(_mapping, _list(notes.get("knobs"))):
        names = ", ".join(filter(_string, _list(entry.get("names")))) or "without a name"
        licence = _string(entry.get("licence"))
        yield f"Knob {_text(f'{names} ({licence})' if licence else names)}: ", _mapping(entry.get("notes"))


def _trained(notes: Mapping[str, Any]) -> Iterator[str]:
    config, pictures = _mapping(notes.get("config")), _mapping(notes.get("pictures"))
    if notes.get("trained_on"):
        yield f"Trained on {_text(notes['trained_on'])}."
    elif source := _string(_mapping(config.get("data")).get("source")):
        yield f"Trained on the pictures {_code(PurePosixPath(source).name or source)}."
    if licences := _mapping(pictures.get("licences")):
        yield "Licences of the pictures: " + _text(", ".join(f"{key} ({n})" for key, n in licences.items())) + "."
    if authors := _list(pictures.get("authors")):
        yield "Authors of the pictures: " + _text(", ".join(map(str, authors))) + "."
    objectives = [each for each in _list(config.get("objectives")) if isinstance(each, Mapping)]
    if objectives:
        named = [f"{each.get('name')} ({each.get('loss')})" for each in objectives]
        yield f"Objectives: {_text(', '.join(named))}."


def _curve(measured: Any, names: Sequence[str]) -> list[list[str]]:
    """Return the rows of a table, a position each; nothing where nothing was measured."""
    if not measured:
        return []
    if "scores" in measured:
        measured = _means(measured["scores"], names)
    rows = {str(label): value if isinstance(value, Mapping) else {"value": value} for label, value in measured.items()}
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    for label, row in rows.items():
        for metric, value in row.items():
            if not isinstance(value, int | float | None):
                raise TypeError(f"hub: measured must hold numbers; got {value!r} for {metric!r} at {label!r}")
    cells = [[_text(label), *(_number(row.get(metric)) for metric in metrics)] for label, row in rows.items()]
    return [["position", *map(_text, metrics)], *cells]


def _noted_curve(measured: Any, names: Sequence[str]) -> list[list[str]]:
    """Return what `_curve` does, of somebody's notes: what is no number is left out."""

    def readable(label: str, value: Any) -> bool:
        try:
            return bool(_curve({label: value}, names))
        except (TypeError, OverflowError):  # the latter for integers beyond floating point
            return False

    return _curve({label: value for label, value in _mapping(measured).items() if readable(label, value)}, names)


def _means(scores: Any, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the means over the pictures of what `tunable-ops eval --json` wrote, by position and set."""
    found: dict[str, dict[str, list[float]]] = {}
    try:
        for score in scores:
            lam = score["lam"]
            label = "input" if lam is None else ", ".join(_pairs(names, lam))
            row = found.setdefault(f"{label} ({score['set']})" if score.get("set") else label, {})
            for metric in _METRICS:
                if score.get(metric) is not None:
                    row.setdefault(metric, []).append(float(score[metric]))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise TypeError(f"hub: measured must be a record of `tunable-ops eval --json`; got {error!r} in it") from None
    return {label: {metric: sum(v) / len(v) for metric, v in row.items()} for label, row in found.items()}


def _pairs(names: Sequence[str], lam: Sequence[float]) -> list[str]:
    labels = names if len(names) == len(lam) else [""] * len(lam)
    return [f"{name} {value:g}".strip() for name, value in zip(labels, lam, strict=True)]


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("---" for _ in rows[0]) + " |")
    return "\n".join(lines)


def _licence(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    first = re.split(r"[,;(]", text)[0].strip().lower()
    return {"license": first} if first in _LICENCES else {"license": "other", "license_name": _line(text)[:60]}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


# What notes and files of strangers say, by type, and as text of a card


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else []


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _line(text: Any) -> str:
    """Return a text in one line, without HTML."""
    plain = text if isinstance(text, str) else json.dumps(text)
    plain = plain.encode("utf-8", "replace").decode()  # JSON can hold lone surrogates, a file cannot
    return " ".join(plain.replace("<", "&lt;").split())


def _text(text: Any) -> str:
    """Return a text in one line that Markdown shows as it is: no links, pictures, emphasis or code."""
    return re.sub(r"([\\`*_\[\]!])", r"\\\1", _line(text))


def _paragraph(text: str) -> str:
    """Return `_text` as a paragraph of its own: no heading, fence, quotation, list or table."""
    return re.sub(r"^([#~>+=|-])", r"\\\1", _text(text))


def _code(text: str) -> str:
    """Return a text in one line between backticks, without others."""
    return f"`{_line(text).replace('`', chr(39))}`"


def _literal(text: str) -> str:
    """Return a string of Python, in double quotes where that is how it reads."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)
