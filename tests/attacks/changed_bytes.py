"""A file whose bytes are not those that were written: on the way, or by somebody."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import onnx
from attack import Attack
from detector_files import V3, float_weights, write_sealed

MESSAGE = r"damaged|not an ONNX file|which a detector may not|record of type|not a good-rt detector"
FLIPS = 12


def attacks(folder: Path) -> Iterator[Attack]:
    whole = write_sealed(onnx.load(V3), folder / "whole.onnx").read_bytes()
    chance = random.Random(0)
    for number in range(FLIPS):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path = folder / f"flip-{number}.onnx"
        path.write_bytes(damaged)
        yield Attack(f"bit {number}", path, MESSAGE)

    # the smallest change of a weight, of α and of a class's name
    hash_message = "damaged .its bytes are not those that weights_sha256 was made of"
    model = onnx.load(folder / "whole.onnx")
    weight = next(float_weights(model)).raw_data[:16]
    changes = {
        "weight": (weight, bytes([weight[0] ^ 1]) + weight[1:]),
        "alpha": (b'"alpha": 0.1', b'"alpha": 0.9'),
        "class": (b'"sandal"', b'"vandal"'),
    }
    for name, (old, new) in changes.items():
        assert whole.count(old) == 1, name
        path = folder / f"{name}.onnx"
        path.write_bytes(whole.replace(old, new))
        yield Attack(f"another {name}", path, hash_message)

    path = folder / "more.onnx"
    path.write_bytes(whole + bytes([0x1A, 1, ord("x")]))  # the field producer_version
    yield Attack("bytes at the end", path, hash_message)
