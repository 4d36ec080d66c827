"""The step `generate`: guided OOD images of two models into a folder, resumable.

It exports engines where they are missing, puts a `Generator` together, and fills a `GeneratedSet`
batch by batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from good_rt.config.settings import ENGINE_FOLDER, BackendConfig, ExportConfig, GenerationConfig
from good_rt.data.generated_set import GeneratedSet, Rejected, Row
from good_rt.data.id_data import IdData
from good_rt.engines.base import Engine
from good_rt.engines.onnxruntime import check_providers, providers_for
from good_rt.errors import GoodRtError
from good_rt.export.manifest import checked_graphs, load_engines
from good_rt.files import sole_user
from good_rt.method.acceptance import Candidate, Kept, rejection
from good_rt.method.sampler import sample_seeds
from good_rt.models import Models, ModelSpec
from good_rt.progress import SILENT, Progress
from good_rt.workflow.export import export
from good_rt.workflow.generator import (
    Generator,
    MeasuredImages,
    generation_record,
    make_generator,
    pick_batch,
    strength_of,
)

PLAIN_GRAPHS = ("network", "vae_decoder")
FUSED_GRAPH = "guidance_vjp"
"""The graph of decoder, classifier and discrepancies: the only one here that depends on the
classifier."""
GRADIENT_GRAPHS = (
    *PLAIN_GRAPHS,
    "network_forward",
    "network_backward",
    "decoder_forward",
    "decoder_backward",
    FUSED_GRAPH,
)
"""The graphs that sampling runs, without and with gradients by engines; a pixel model has none of
the decoder's."""


def generate(
    models: Models | ModelSpec,
    id_data: IdData | Path | str,
    out: Path | str,
    config: GenerationConfig = GenerationConfig(),
    engine_folder: Path | str = ENGINE_FOLDER,
    progress: Progress = SILENT,
) -> GeneratedSet:
    """Generates ``config.count`` images into the folder ``out``, or those that it still lacks.

    Args:
        models: Diffusion model and classifier.
        id_data: In-distribution images, for the discrepancies and their scales.
        out: Folder of the generated set.
        config: What is generated, and what runs the models.
        engine_folder: Folder of the exported engines, exported there where missing.
        progress: Hears of every batch.

    Returns:
        The set in ``out``.

    Raises:
        GoodRtError: ``out`` belongs to another job, another process is at work in it, or it cannot
            be written.
        NonFiniteError: a value is not finite; it names step and image.
    """
    models = models.load() if isinstance(models, ModelSpec) else models
    id_data = IdData.of(id_data)
    generator = open_generator(models, id_data, config, Path(engine_folder), progress)
    config = with_batch(config, generator, Path(out))
    record = generation_record(models, config, generator.gradients)
    written = GeneratedSet(Path(out)).settings()
    if not written or "data" in written:  # 0.1.0 did not record the ID images
        record["data"] = id_data.splits.fingerprint
    return fill(generator, config, Path(out), record, progress)


def open_generator(
    models: Models,
    id_data: IdData,
    config: GenerationConfig,
    engine_folder: Path,
    progress: Progress = SILENT,
    exported: Models | None = None,
) -> Generator:
    """The generator of a configuration, with the engines that its backend asks for.

    It serves every configuration with the same sampler, bank and backend. Engines that were
    exported with another classifier serve as well, except for the graph that this classifier is
    part of: PyTorch then computes the gradient of the classifier.

    Args:
        models: Diffusion model and classifier.
        id_data: In-distribution images, for the discrepancies and their scales.
        config: What is generated; TensorRT plans hold batches of up to ``config.batch``.
        engine_folder: Folder of the exported engines, exported there where missing.
        progress: Hears of every part.
        exported: What the engines are exported of: the same diffusion model with another
            classifier; None for ``models``.

    Raises:
        GoodRtError: the backend does not run here, or images do not fit.
        ParityError: an engine does not compute what PyTorch computes.
    """
    engines = None
    if config.backend.uses_engines:
        check_backend(config.backend, models.device)  # before the work of exporting
        engines = _engines(
            exported or models, id_data, config, engine_folder, progress, exported is None
        )
    with progress.task("computing ID features"):
        return make_generator(models, id_data, config, engines)


def check_backend(backend: BackendConfig, device: torch.device) -> None:
    """Checks that what the backend needs is installed and runs on the device.

    Args:
        backend: What runs the models.
        device: Where they run.

    Raises:
        GoodRtError: a library is missing, or the device does not compute in that precision.
    """
    if not backend.uses_engines:
        return
    if backend.engine == "onnx":
        check_providers(providers_for(device))
        if backend.precision not in (None, "fp32") and device.type == "cpu":
            raise GoodRtError(
                f"ONNX Runtime only computes in {backend.precision} on a GPU: add --device cuda"
            )
        return
    from good_rt.engines.tensorrt import load_library, present_architecture

    if device.type == "cpu":
        raise GoodRtError("TensorRT needs --device cuda")
    load_library(architecture=present_architecture())


def wants_gradient_engines(backend: BackendConfig, device: torch.device) -> bool:
    """Whether gradients are to be computed by engines, as far as there are rules for them.

    `auto` means engines on the CPU, where docs/results.md measures them as faster; none has been
    measured on a GPU, so PyTorch computes them there.
    """
    if backend.gradients == "auto":
        return backend.uses_engines and device.type == "cpu"
    return backend.gradients == "engine"


def _engines(
    models: Models,
    id_data: IdData,
    config: GenerationConfig,
    folder: Path,
    progress: Progress,
    fused: bool,
) -> Mapping[str, Engine]:
    """The engines that sampling runs, exported where missing; without ``fused`` those that do not
    depend on the classifier."""
    backend = config.backend
    vjp = wants_gradient_engines(backend, models.device)
    exported = export(models, id_data, folder, ExportConfig(vjp=vjp), config.bank, progress)
    no_rule = exported.manifest.no_gradient_rule
    if vjp and no_rule is not None:
        if backend.gradients == "engine":
            raise GoodRtError(f"{no_rule}; use gradients auto or torch")
        progress.note("PyTorch computes the gradients")
        vjp = False
    names = [
        name
        for name in (GRADIENT_GRAPHS if vjp else PLAIN_GRAPHS)
        if (models.diffusion.decoder is not None or "decoder" not in name)
        and (fused or name != FUSED_GRAPH)
    ]
    if config.sampler.start == "id" and models.diffusion.encoder is not None:
        names.append("vae_encoder")
    precision = backend.precision or "fp32"
    if backend.engine == "onnx":
        precisions = dict.fromkeys(PLAIN_GRAPHS, precision)
        return load_engines(
            folder, models.fingerprints, names, device=models.device, precisions=precisions
        )
    return _plans(models, config, folder, names, progress)


def _plans(
    models: Models,
    config: GenerationConfig,
    folder: Path,
    names: Sequence[str],
    progress: Progress,
) -> Mapping[str, Engine]:
    """The engines as TensorRT plans for the configuration's batch: of the network twice as many
    with classifier-free guidance, which evaluates it with and without the condition.

    Gradients lose too much in half precision, and stay in float32.
    """
    from good_rt.export.tensorrt import PlanConfig, load_plan, plan_path

    if config.batch == "auto":
        raise GoodRtError("TensorRT plans are built for one batch size: give --batch N")
    precision = config.backend.precision or "fp32"
    graphs, plans = checked_graphs(folder, models.fingerprints, names), dict[str, Engine]()
    with progress.task("loading TensorRT plans, building missing ones", len(graphs)) as advance:
        for name, entry in graphs.items():
            pairs = config.sampler.cfg != 1 and name.startswith("network")
            size = 2 * config.batch if pairs else config.batch
            plan = PlanConfig(
                precision=precision if name in PLAIN_GRAPHS else "fp32",
                profile={"batch": (1, size, size)},
            )
            plans[name] = load_plan(folder / entry.file, plan, plan_path(folder, name, plan))
            advance(1)
    return plans


def with_batch(config: GenerationConfig, generator: Generator, out: Path) -> GenerationConfig:
    """The configuration with a batch of a fixed size, at most its count.

    For "auto" an interrupted set keeps the size that it began with; otherwise `pick_batch` chooses
    it.

    Args:
        config: What is generated.
        generator: The generator to time.
        out: Folder of the generated set.
    """
    if config.batch != "auto":
        return replace(config, batch=min(config.batch, config.count))
    begun = GeneratedSet(out).begun()
    return replace(config, batch=begun.batch or pick_batch(generator, config.count))


def fill(
    generator: Generator,
    config: GenerationConfig,
    out: Path,
    record: Mapping[str, Any],
    progress: Progress = SILENT,
) -> GeneratedSet:
    """Samples the images that a set lacks, and writes its contact sheet.

    Args:
        generator: The models.
        config: What is generated; ``config.batch`` is a number.
        out: Folder of the generated set.
        record: What job.json says of the set; a folder is only resumed with the same record.
        progress: Hears of every batch.

    Raises:
        GoodRtError: ``out`` belongs to another job, another process is at work in it, or it cannot
            be written.
        NonFiniteError: a value is not finite; it names step and image.
    """
    generated = GeneratedSet(out)
    text = f"sampling, guidance {config.kind}, batches of {config.batch}"
    with sole_user(out), progress.task(text, config.count) as advance:
        generated.begin(record)
        _sample_missing(generated, generator, config, advance)
        generated.write_contact_sheet()
    return generated


def _sample_missing(
    generated: GeneratedSet,
    generator: Generator,
    config: GenerationConfig,
    on_images: Callable[[int], None],
) -> None:
    """Samples batch by batch, in the order of the indices, until enough images are kept.

    Without criteria of acceptance every sample is kept, so that the indices are 0 to count − 1.
    """
    assert config.batch != "auto"
    rows, before_now = generated.rows(), generated.rejections()
    rejected, done = Counter(before_now.values()), {row.index for row in rows} | before_now.keys()
    kept = Kept(config.count, len(generator.classifier.config.classes))
    held = rows[: config.count]
    features: Iterable[Any] = [None] * len(held)
    if held and config.accept.gap > 0:
        features = generator.measure(generated.images(held), config).features
    for row, feature in zip(held, features, strict=True):
        kept.add(row.label, feature)
    on_images(min(len(rows), config.count))
    limit = round(config.accept.budget * config.count) if config.accept.active else config.count
    band, id_images = config.accept.p_value, len(generator.id_levels[1])
    if band is not None and band[1] < 1 / (1 + id_images):
        raise GoodRtError(
            f"accept_p_value ends at {band[1]:g}, below {1 / (1 + id_images):.3g}, the smallest "
            f"p-value by {id_images} held-out images; raise it, or add images"
        )
    for first in range(0, limit, config.batch):
        if kept.is_full:
            break
        # always a whole batch, so that its bytes never change
        indices = list(range(first, first + config.batch))
        missing = [
            position
            for position, index in enumerate(indices)
            if index < limit and index not in done
        ]
        if not missing:
            continue
        images = generator.images(config, indices)
        measured = generator.measure(images, config)
        labels = generator.labels(indices).tolist()
        accepted, rejections = _judge(config, kept, measured, labels, missing)
        before = None
        if config.kind == "none":
            before = measured
        elif config.twins and accepted:
            before = generator.measure(generator.images(config, indices, guided=False), config)
        seeds, start_rows = (
            sample_seeds(config.seed, indices),
            generator.start_rows(config, indices),
        )
        generated.reject([Rejected(indices[place], reason) for place, reason in rejections.items()])
        generated.append(
            images[accepted],
            [
                Row(
                    index=indices[position],
                    file=f"images/{indices[position]:06d}.png",
                    seed=seeds[position],
                    label=labels[position],
                    guidance=config.kind,
                    strength=strength_of(config, indices[position]),
                    energy=float(measured.energy[position]),
                    knn_distance=float(measured.knn_distance[position]),
                    energy_before=float(before.energy[position]) if before else None,
                    knn_distance_before=float(before.knn_distance[position]) if before else None,
                    start_row=start_rows[position],
                )
                for position in accepted
            ],
        )
        rejected.update(rejections.values())
        on_images(len(accepted))
    if not kept.is_full:
        reasons = ", ".join(f"{count} by {reason}" for reason, count in rejected.most_common())
        raise GoodRtError(
            f"{generated.folder}: only {kept.number} of {config.count} images were kept of "
            f"{limit} samples (rejected: {reasons}); widen these bands, change mu or start, or "
            "raise budget, and run it again: it resumes"
        )


def _judge(
    config: GenerationConfig,
    kept: Kept,
    measured: MeasuredImages,
    labels: Sequence[int],
    positions: Sequence[int],
) -> tuple[list[int], dict[int, str]]:
    """The positions of a batch that are kept, and the reason of each that is rejected; those after
    the last one that is needed are in neither."""
    accepted, rejections = list[int](), dict[int, str]()
    for position in positions:
        if kept.is_full:
            break
        candidate = Candidate(
            labels[position],
            float(measured.energy[position]),
            float(measured.knn_distance[position]),
            float(measured.p_value[position]),
            measured.features[position],
        )
        reason = rejection(config.accept, candidate, kept) if config.accept.active else None
        if reason is None:
            kept.add(candidate.label, candidate.feature if config.accept.gap > 0 else None)
            accepted.append(position)
        else:
            rejections[position] = reason
    return accepted, rejections
