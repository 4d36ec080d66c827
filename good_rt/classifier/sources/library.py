"""Importing the optional classifier libraries, and what is said when one is missing or does not fit
this PyTorch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from good_rt.classifier.weights import INDEX
from good_rt.errors import GoodRtError, first_line
from good_rt.files import read_json

EXTRA = "classifiers"


def import_library(name: str) -> Any:
    """Imports a library of the extra `classifiers`.

    Args:
        name: The module to import.

    Raises:
        GoodRtError: the library is missing or broken; it names the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = (error.name or name).partition(".")[0]
        raise GoodRtError(
            f"{name} classifiers need {missing}; install it with: pip install 'good-rt[{EXTRA}]'"
        ) from None
    except (
        RuntimeError,
        AttributeError,
    ) as error:  # a torchvision that was built for another PyTorch
        reason = first_line(error)
        raise GoodRtError(
            f"{name} cannot be imported ({reason}); install versions of torch and torchvision that "
            "belong together"
        ) from None


def hub_file(repository: str, name: str, spec: str) -> Path:
    """The path of a Hugging Face repository's file, from the cache or downloaded.

    Args:
        repository: OWNER/NAME.
        name: The file in the repository.
        spec: The classifier's spec, for errors.

    Raises:
        GoodRtError: there is no such repository or file, or there is neither a network nor a cached
            copy.
    """
    import_library("huggingface_hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repository, name))
    except RepositoryNotFoundError:
        raise GoodRtError(
            f"{spec}: the hub has no repository {repository!r}; check its name"
        ) from None
    except EntryNotFoundError as error:
        if type(error).__name__ != "LocalEntryNotFoundError":
            raise GoodRtError(
                f"{spec}: the repository {repository!r} has no {name}; pickles are not read"
            ) from None
        raise GoodRtError(unreachable(spec, repository)) from None
    except Exception:  # what the HTTP libraries raise without a network is of many kinds
        raise GoodRtError(unreachable(spec, repository)) from None


def hub_weights(repository: str, spec: str) -> Path:
    """The path of a repository's weights: model.safetensors, or the index of several files, which
    are then there as well.

    Args:
        repository: OWNER/NAME.
        spec: The classifier's spec, for errors.

    Raises:
        GoodRtError: there are none, or they cannot be fetched.
    """
    plain = "model.safetensors"
    try:
        return hub_file(repository, plain, spec)
    except GoodRtError as error:
        try:
            index = hub_file(repository, plain + INDEX, spec)
        except GoodRtError:
            raise error from None
    files = read_json(index).get("weight_map")
    for name in sorted(set(files.values())) if isinstance(files, dict) else ():
        hub_file(repository, str(name), spec)
    return index


def unreachable(spec: str, repository: str) -> str:
    """What is said when the hub cannot be reached."""
    return (
        f"{spec}: {repository!r} is not in the local cache and cannot be fetched from the hub; "
        "connect to the network "
        "once, or give local weights"
    )
