"""Specs of models taken apart: KIND:NAME@WEIGHTS, whose names and weights may be paths.

A path may hold any of the separators itself, so they are looked for only where they can stand: a
text that exists as a path is one, and the letter of a Windows drive is no kind.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path

from good_rt.files import user_path

HUB_KINDS = ("timm", "transformers")
"""Kinds whose name is a path, or a model's name on a hub."""
Exists = Callable[[str], bool]


def split_kind(text: str) -> tuple[str, str]:
    """The kind and the rest: ("timm", "resnet18") of timm:resnet18; ("", text) without a kind."""
    kind, colon, rest = text.partition(":")
    if not colon or re.match(r"[A-Za-z]:[\\/]", text):
        return "", text
    return kind, rest


def _exists(path: str) -> bool:
    return user_path(path).exists()


def split_weights(text: str, exists: Exists = _exists) -> tuple[str, str]:
    """A spec without its weights, and the weights' path, "" for none.

    Args:
        text: The spec; of several @ the one whose two sides exist is meant.
        exists: Whether a path exists.
    """
    kind, name = split_kind(text)
    if "@" not in text or exists(text) or (kind and exists(name)):
        return text, ""
    splits = [(text[: at.start()], text[at.end() :]) for at in re.finditer("@", text)]
    whole = [(left, right) for left, right in splits if exists(split_kind(left)[1])]
    for left, right in (*whole, *splits):
        if right and exists(right):
            return left, right
    if whole:
        return whole[0]
    return splits[0] if kind else (text, "")


def resolved_spec(spec: str, resolve: Callable[[Path], Path | None]) -> Path:
    """A model's spec with its paths resolved.

    Args:
        spec: The spec.
        resolve: The path that a part of the spec names; None for what stays as it is.
    """

    def resolved(part: str) -> str:
        return f"{resolve(Path(part)) or part}" if part else ""

    name, weights = split_weights(spec, lambda path: resolve(Path(path)) is not None)
    kind, rest = split_kind(name)
    return Path(f"{kind}{':' * bool(kind)}{resolved(rest)}{'@' * bool(weights)}{resolved(weights)}")


def is_mistyped_path(text: str) -> bool:
    """Whether a text that may also be a model's name on a hub, OWNER/NAME, can only be meant as a
    path, and there is none."""
    path = user_path(text)
    if path.exists():
        return False
    is_path = bool(re.match(r"\.{1,2}[\\/]|[~/\\]|[A-Za-z]:[\\/]", text)) or text.endswith("/")
    nested = text.count("/") > 1 or "\\" in text
    return is_path or nested or ("/" in text and path.parent.is_dir()) or bool(similar_path(path))


def similar_path(path: Path) -> Path | None:
    """An existing path whose names are those of ``path``, up to a slip in each; None without."""
    parts = path.parts
    if len(parts) < 2:
        return None
    found = Path()
    for part in parts:
        if not (found / part).exists():
            try:
                names = [entry.name for entry in found.iterdir()]
            except OSError:
                return None
            part = next(iter(difflib.get_close_matches(part, names, 1, 0.7)), None) or ""
            if not part:
                return None
        found /= part
    return found


def suggestion(path: Path) -> str:
    """'; did you mean …?' where a similar path exists, else ""."""
    similar = similar_path(path)
    return "" if similar is None else f"; did you mean {similar}?"
