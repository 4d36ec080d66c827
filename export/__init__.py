"""Making graphs: exports checked against PyTorch, and the manifest that verifies them.

The package can be called: `good_rt.export(models, images, folder)` is the step
`good_rt.workflow.export.export`, since both bear one name.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, cast

PACKAGE_DOC = __doc__


def _step() -> Callable[..., Any]:
    # by name, since this room lies below the workflow
    return cast(Callable[..., Any], import_module("good_rt.workflow.export").export)


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _step()(*arguments, **keywords)

    @property
    def __signature__(self) -> inspect.Signature:
        """The step's, for `inspect.signature`."""
        return inspect.signature(_step())

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """The step's signature and documentation before the package's, for `help`."""
        step = _step()
        return f"export{inspect.signature(step)}\n\n{inspect.getdoc(step)}\n\n{PACKAGE_DOC}"


sys.modules[__name__].__class__ = _CallablePackage
