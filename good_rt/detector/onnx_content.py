"""What stands in an ONNX file, read without the package onnx, and whether a detector may hold it.

A runtime believes its file: it opens other files as weights, repeats loops without end, and expands
what is small. A detector needs none of that, so a file with it is refused before a runtime sees it.
The fields are those of onnx.proto, in protobuf's wire format.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from good_rt.errors import GoodRtError

VARINT, LENGTH = 0, 2
"""Protobuf's wire types of whole numbers, and of what begins with its length."""
WIDTHS = {1: 8, 5: 4}
"""Bytes of the wire types of fixed width."""
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 14: "property"},
    "graph": {1: "node", 5: "tensor"},
    "node": {4: "operator", 5: "attribute", 7: "domain"},
    "attribute": {5: "tensor", 10: "tensor"},
    "tensor": {1: "dims"},
    "property": {1: "key", 2: "value"},
}
"""The fields of each kind of message that are read, by number, and what they hold."""
INNER_GRAPH, SPARSE, ELSEWHERE = (
    "a graph within its graph (a loop or a condition)",
    "sparse weights",
    "weights in another file",
)
REFUSED_FIELDS = {
    ("model", 20): "training steps",
    ("model", 25): "functions",
    ("graph", 15): SPARSE,
    ("attribute", 6): INNER_GRAPH,
    ("attribute", 11): INNER_GRAPH,
    ("attribute", 22): SPARSE,
    ("attribute", 23): SPARSE,
    ("tensor", 13): ELSEWHERE,
    ("tensor", 14): ELSEWHERE,
}
"""The fields that no detector has: a runtime follows them elsewhere, repeats or expands them."""
DOMAINS = (b"", b"ai.onnx")
"""The names of ONNX's own set of operators."""
UNBOUNDED = re.compile(rb"Loop|Scan|If|.*(Sequence|String|Regex|Optional|TfIdf|ImageDecoder).*")
"""Operators whose time or memory does not follow from the sizes of tensors of numbers."""
LARGEST_METADATA = 2**23
"""Bytes of metadata; names and scales of 20,000 classes take less than half of it."""
HASHED_AT_ONCE = 2**20
NO_MESSAGE = "its bytes are no protobuf message"
HASH_DIGITS = 64
"""Of a SHA-256 in hexadecimal."""


class _RefusedContentError(ValueError):
    """A file holds what no detector may hold."""


@dataclass
class OnnxContent:
    """What `read_onnx_content` found in a file.

    Attributes:
        metadata: The metadata properties by key.
        lengths: Lengths of the weights that are vectors, or matrices of one row.
    """

    metadata: dict[bytes, bytes] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)


def read_onnx_content(path: Path) -> OnnxContent:
    """The metadata of a detector file and the sizes of its weights, after a look at all its nodes.

    Args:
        path: The file.

    Raises:
        GoodRtError: it is no ONNX file, or holds what no detector may hold.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).content()
    except _RefusedContentError as error:
        raise GoodRtError(
            f"{path} holds {error}, which a detector may not; take one that `good-rt detector "
            "build` has written"
        ) from None
    except ValueError as error:
        raise GoodRtError(
            f"{path} is damaged or not an ONNX file ({error}); build it again"
        ) from None
    except OSError as error:
        raise GoodRtError(f"cannot read {path} ({error.strerror})") from None


def content_hash(path: Path, digits: bytes) -> str | None:
    """SHA-256 of a file's bytes, with the hash that stands in it replaced by zeros.

    Args:
        path: The file.
        digits: The hash that stands in it, `HASH_DIGITS` of them.

    Returns:
        The hexadecimal hash; None where the digits don't stand in the file exactly once.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(digits)
        end = place + len(digits)
        if place < 0 or data.find(digits, place + 1) >= 0:
            return None
        digest = hashlib.sha256()
        for first, last in ((0, place), (end, len(data))):
            if first:
                digest.update(b"0" * len(digits))
            for start in range(first, last, HASHED_AT_ONCE):
                digest.update(data[start : min(start + HASHED_AT_ONCE, last)])
    return digest.hexdigest()


class _Reader:
    """Reads the messages of a file, and refuses what must not be in them."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._content = OnnxContent()

    def content(self) -> OnnxContent:
        self._read("model", 0, len(self._data))
        return self._content

    def _read(self, kind: str, place: int, end: int) -> None:
        """Reads one message: the bytes from ``place`` to ``end``."""
        parts = FIELDS[kind]
        texts: dict[str, bytes] = {}
        dims: list[int] = []
        for number, wire, first, last in self._fields(place, end):
            refused = REFUSED_FIELDS.get((kind, number))
            # the one harmless value: data_location says that the data are here
            if refused and (kind, number, wire, first) != ("tensor", 14, VARINT, 0):
                raise _RefusedContentError(refused)
            part = parts.get(number)
            if part == "dims":
                dims += [first] if wire == VARINT else self._whole_numbers(first, last)
            elif part is None or wire != LENGTH:
                continue
            elif part in FIELDS:
                self._read(part, first, last)
            else:
                texts[part] = self._text(part, first, last)
        if kind == "property":
            self._add_property(texts.get("key", b""), texts.get("value", b""))
        elif kind == "tensor" and dims and all(length == 1 for length in dims[:-1]):
            self._content.lengths.add(dims[-1])

    def _text(self, part: str, first: int, last: int) -> bytes:
        """A text of a node or a property; each is looked at, whichever the runtime would take."""
        if last - first > LARGEST_METADATA:
            raise ValueError(f"a text of {last - first:,} bytes")
        text = self._data[first:last]
        if part == "domain" and text not in DOMAINS:
            raise _RefusedContentError(f"operators of {_shown(text)}, not of ONNX")
        if part == "operator" and UNBOUNDED.fullmatch(text):
            raise _RefusedContentError(f"the operator {_shown(text)}")
        return text

    def _add_property(self, key: bytes, value: bytes) -> None:
        if key in self._content.metadata:
            raise ValueError(f"it has the metadata property {_shown(key)} twice")
        self._content.metadata[key] = value

    def _fields(self, place: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, and the place of each field's bytes; a whole number in their stead."""
        while place < end:
            tag, place = self._whole_number(place)
            number, wire = tag >> 3, tag & 7
            if number < 1:
                raise ValueError(NO_MESSAGE)
            if wire == VARINT:
                first, place = self._whole_number(place)
                yield number, wire, first, place
                continue
            if wire == LENGTH:
                size, place = self._whole_number(place)
            elif wire in WIDTHS:
                size = WIDTHS[wire]
            else:
                raise ValueError(NO_MESSAGE)
            if place + size > end:
                raise ValueError(NO_MESSAGE)
            yield number, wire, place, place + size
            place += size

    def _whole_number(self, place: int) -> tuple[int, int]:
        """A whole number, and the place after it."""
        number, shift = 0, 0
        while shift < 70:
            try:
                byte = self._data[place]
            except IndexError:
                break
            place += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, place
            shift += 7
        raise ValueError(NO_MESSAGE)

    def _whole_numbers(self, place: int, end: int) -> Iterator[int]:
        while place < end:
            number, place = self._whole_number(place)
            yield number


def _shown(text: bytes) -> str:
    """A text of a file in an error."""
    return repr(text[:60].decode(errors="backslashreplace"))
