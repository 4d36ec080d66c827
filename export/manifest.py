"""manifest.json beside the engines: what each file is, made from what, by what, and how close to
PyTorch it is.

Engines are loaded through it, so that a damaged file or another model's engine is found before it
runs.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from good_rt.engines.base import Engine, TensorSpec
from good_rt.engines.onnxruntime import providers_for
from good_rt.engines.open import open_engine
from good_rt.environment import CPU
from good_rt.errors import GoodRtError
from good_rt.export.parity import Parity
from good_rt.files import sha256
from good_rt.records import RecordType, Values, drop_format

MANIFEST = "manifest.json"


def _rename_unet(values: Values) -> Values:
    """Version 1 to 2: the network's graphs were called "unet", and the exporter had no number."""

    def renamed(name: str) -> str:
        return f"network{name.removeprefix('unet')}" if name.startswith("unet") else name

    graphs = {renamed(name): entry for name, entry in values["graphs"].items()}
    parity = [{**row, "graph": renamed(row["graph"])} for row in values["parity"]]
    new = {"exporter": 0, "no_gradient_rule": None}
    return {**new, **drop_format(values), "graphs": graphs, "parity": parity}


ENGINES_RECORD = RecordType("engines", "export again", (_rename_unet,))


@dataclass(frozen=True)
class GraphEntry:
    """One exported graph: its file and those of its external data, one hash of them all, inputs and
    outputs."""

    file: str
    sha256: str
    bytes: int
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """All graphs of one diffusion model and classifier.

    Attributes:
        source: Fingerprints of both models.
        opset: ONNX operator set.
        tolerance: Relative and absolute tolerance of the parity check.
        graphs: Exported graphs by name.
        parity: Differences from PyTorch.
        versions: Packages that wrote the graphs.
        exporter: The `good_rt.export.graphs.EXPORTER` that wrote them.
        no_gradient_rule: Why there are no graphs with gradients although they were wanted.
    """

    source: Mapping[str, str]
    opset: int
    tolerance: Mapping[str, float]
    graphs: Mapping[str, GraphEntry]
    parity: tuple[Parity, ...]
    versions: Mapping[str, str]
    exporter: int
    no_gradient_rule: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "cpu": platform.processor() or platform.machine()}

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder of engines.

        Args:
            folder: The folder.

        Raises:
            GoodRtError: there is no manifest, or this version cannot read it.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise GoodRtError(
                f"{folder} holds no engines ({MANIFEST} is missing); make them with `good-rt "
                "export`"
            )
        values = ENGINES_RECORD.read(path)
        values.pop("cpu", None)  # where it was exported, for people
        return ENGINES_RECORD.as_fields(cls, values, path)

    def is_of(self, source: Mapping[str, str]) -> bool:
        """Whether the graphs were made from these fingerprints (and perhaps from more)."""
        return all(self.source.get(name) == fingerprint for name, fingerprint in source.items())

    def write(self, folder: Path) -> None:
        ENGINES_RECORD.write(folder / MANIFEST, self.to_json())

    def check_files(self, folder: Path) -> None:
        """Checks that every graph's file is the one that was exported.

        Args:
            folder: The manifest's folder.

        Raises:
            GoodRtError: a file is missing, outside the folder, or has changed.
        """
        for name, entry in self.graphs.items():
            for file in (entry.file, *entry.data):
                if Path(file).name != file or file in ("", ".."):
                    raise GoodRtError(
                        f"{folder / MANIFEST}: graph {name!r} lies outside the folder; export again"
                    )
                if not (folder / file).is_file():
                    raise GoodRtError(f"{folder / file} is missing; export again")
            if graph_hash(folder / entry.file, entry.data) != entry.sha256:
                raise GoodRtError(
                    f"{folder / entry.file} is not the file that was exported (its hash differs); "
                    "export again"
                )


def graph_hash(path: Path, data: Sequence[str]) -> str:
    """The SHA-256 of an ONNX file, or of it and its files of external data (`data_files`) where it
    has them."""
    digest = hashlib.sha256(sha256(path).encode())
    for name in data:
        digest.update(f"{name} {sha256(path.parent / name)}".encode())
    return digest.hexdigest() if data else sha256(path)


def load_engines(
    folder: Path,
    source: Mapping[str, str] | None = None,
    names: Collection[str] | None = None,
    threads: int = 0,
    device: torch.device = CPU,
    precisions: Mapping[str, str] | None = None,
) -> dict[str, Engine]:
    """The engines of a folder by graph name, their files checked against the manifest.

    Inputs and outputs are float32, whatever the precision.

    Args:
        folder: Folder of the engines.
        source: Fingerprints that the models of the engines must have; None does not check them.
        names: The graphs to load; None for all.
        threads: Threads of each engine; 0 for one on each core that the process may use.
        device: Where the engines run.
        precisions: Precision by graph, "fp32" (the default), "fp16" or "bf16".

    Raises:
        GoodRtError: the folder holds no engines, one is missing or damaged, or they are of other
            models.
    """
    wanted = checked_graphs(folder, source, names)
    halves = precisions or {}
    engines = {
        name: _open(folder / entry.file, halves.get(name, "fp32"), device, threads)
        for name, entry in wanted.items()
    }
    for name, entry in wanted.items():
        engine = engines[name]
        if (dict(engine.inputs), dict(engine.outputs)) != (dict(entry.inputs), dict(entry.outputs)):
            raise GoodRtError(
                f"{folder / entry.file} has other inputs or outputs than {MANIFEST} has for "
                f"{name!r}; export again"
            )
    return engines


def _open(path: Path, precision: str, device: torch.device, threads: int) -> Engine:
    if precision == "fp32":
        return open_engine(path, providers_for(device), threads)
    from good_rt.export.precision import in_precision

    with in_precision(path, precision) as half:
        # bound, as on a GPU: an engine that is not may open its file again for a second session
        return open_engine(half, providers_for(device), threads, bind=True)


def checked_graphs(
    folder: Path, source: Mapping[str, str] | None = None, names: Collection[str] | None = None
) -> dict[str, GraphEntry]:
    """The graphs of a folder by name, their files checked against the manifest.

    Args:
        folder: Folder of the engines.
        source: Fingerprints that the models of the engines must have; None does not check them.
        names: The graphs to give; None for all.

    Raises:
        GoodRtError: the folder holds no engines, one is missing or damaged, or they are of other
            models.
    """
    manifest = Manifest.read(folder)
    if source is not None and not manifest.is_of(source):
        raise GoodRtError(
            f"the engines in {folder} are of another model or classifier; export again, or to "
            "another folder"
        )
    manifest.check_files(folder)
    lacking = sorted(set(names or ()) - manifest.graphs.keys())
    if lacking:
        raise GoodRtError(
            f"{folder / MANIFEST} has no graph {lacking[0]!r}; export again with --force"
        )
    return {
        name: entry for name, entry in manifest.graphs.items() if names is None or name in names
    }
