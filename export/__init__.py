"""Making graphs: exports checked against PyTorch, and the manifest that verifies them.

The package can be called: `good_rt.export(models, images, folder)` is the step
`good_rt.workflow.export.export`, since both bear one name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        # by name, since this room lies below the workflow
        step = import_module("good_rt.workflow.export").export
        return step(*arguments, **keywords)


sys.modules[__name__].__class__ = _CallablePackage
