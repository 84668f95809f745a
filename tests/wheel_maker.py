"""Wheels made by hand: good ones, and bad ones that no build tool makes."""

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

#: A package with a factory that fits any data of fixed shape.
MODELS = """
import torch
from torch import nn


def small(*, input_shape, num_outputs, width=4):
    num_inputs = torch.Size(input_shape).numel()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(num_inputs, width), nn.Tanh(), nn.Linear(width, num_outputs)
    )
"""
PACKAGE: Mapping[str, str] = {"our_models/__init__.py": MODELS}


def make_wheel(
    folder: Path,
    *,
    name: str = "our_models",
    version: str = "1.0",
    tag: str = "py3-none-any",
    files: Mapping[str, str] = PACKAGE,
    requires: Sequence[str] = (),
    requires_python: str = "",
    dist_info: Mapping[str, str | None] = {},
) -> Path:
    """Write a wheel and return its path. ``dist_info``: other contents; None: without the file."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {line}\n" for line in requires)
    metadata += f"Requires-Python: {requires_python}\n" if requires_python else ""
    said: dict[str, str | None] = {
        "METADATA": metadata,
        "WHEEL": f"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: {tag}\n",
        **dist_info,
    }
    contents = {
        **files,
        **{f"{info}/{key}": text for key, text in said.items() if text is not None},
    }
    if "RECORD" not in said:
        lines = [_record(key, text) for key, text in contents.items()]
        contents[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""])
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, text in contents.items():
            member = zipfile.ZipInfo(key)  # without the time: equal contents are equal bytes
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, text)
    return path


def _record(name: str, text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
    return f"{name},sha256={digest.decode()},{len(text.encode())}"
