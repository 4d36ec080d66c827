"""Plug-ins: classifier sources and scores that other installed distributions offer by entry points.

Importing this module, or good-rt, looks at none of them. When a user names a plug-in, the metadata
of the installed distributions is searched for it, and only the one named is imported.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points

from good_rt.errors import GoodRtError, first_line

CLASSIFIER_PLUGINS = "good_rt.classifiers"
"""Entry points of `good_rt.classifier.ClassifierSource` objects, for specs NAME:ARGUMENT."""
SCORE_PLUGINS = "good_rt.scores"
"""Entry points of `good_rt.method.scores.LogitScore` functions."""
PLUGIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
"""Without a dot, so that MODULE.PART:ATTR is never looked up among the plug-ins."""


def plugin_names(group: str) -> tuple[str, ...]:
    """The names of the installed plug-ins of a group, in order; none of them is imported."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def load_plugin(group: str, name: str) -> object:
    """The object that the plug-in's entry point names.

    Args:
        group: `CLASSIFIER_PLUGINS` or `SCORE_PLUGINS`.
        name: The entry point's name.

    Raises:
        GoodRtError: no distribution offers the name, several do, or its import fails.
    """
    points: list[EntryPoint] = sorted(
        set(entry_points(group=group, name=name)), key=lambda point: point.value
    )
    if not points:
        raise GoodRtError(f"no plug-in {name!r} is installed in {group}; {installed_text(group)}")
    if len(points) > 1:
        raise GoodRtError(
            f"several plug-ins are called {name!r} in {group}: "
            f"{', '.join(_origin(point) for point in points)}; uninstall all but one"
        )
    try:
        loaded: object = points[0].load()
    except Exception as error:  # the plug-in's own code may raise anything
        raise GoodRtError(
            f"the plug-in {name!r} ({_origin(points[0])}) cannot be imported: "
            f"{type(error).__name__}: {first_line(error)}; repair or reinstall it"
        ) from error
    return loaded


def installed_text(group: str) -> str:
    """Which plug-ins of a group are installed, for an error: "installed are a, b"."""
    names = plugin_names(group)
    return f"installed are {', '.join(names)}" if names else "none are installed"


def _origin(point: EntryPoint) -> str:
    distribution = point.dist
    return point.value if distribution is None else f"{point.value} of {distribution.name}"
