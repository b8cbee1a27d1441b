"""The package's extras, as its metadata names them, and which of them brings a missing module.

Every hint of the kind `pip install 'compllm[...]'` is made here, so that it names the extra that
holds the module. pyproject.toml stays the one list.
"""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PACKAGE = "compllm"
# Distributions whose name is not that of the module they bring.
_DISTRIBUTIONS = {
    "bio": "biopython",
    "pytriton": "nvidia-pytriton",
    "sklearn": "scikit-learn",
}


def extra_names() -> tuple[str, ...]:
    """Every extra of the package; none where it has no metadata."""
    try:
        return tuple(importlib.metadata.metadata(_PACKAGE).get_all("Provides-Extra") or ())
    except importlib.metadata.PackageNotFoundError:
        return ()


def requirements(extra: str = "") -> tuple[Requirement, ...]:
    """What the package needs here, or what this extra of it adds; extras within it left out."""
    try:
        lines = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    found = (Requirement(line) for line in lines)
    return tuple(each for each in found if each.name != _PACKAGE and _is_of(each, extra))


def problem_of(requirement: Requirement) -> str | None:
    """Why what is installed does not meet it; None where it does."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} is {version}, needed is {requirement.specifier}"


def install_command(extra: str = "") -> str:
    """The line that installs the extra, or again what the package itself needs."""
    return f"pip install '{_PACKAGE}[{extra}]'" if extra else f"pip install {_PACKAGE}"


def hint(error: ImportError) -> str:
    """The line that installs the module that the error misses.

    The smallest extra that names it; [embedded] where none does: that one brings most of what
    other packages ask for when they run. [gpu] is for NVIDIA's image alone.
    """
    distribution = distribution_of(error.name or "")
    if any(canonicalize_name(each.name) == distribution for each in requirements()):
        return install_command()
    holders = [
        (len(held), extra)
        for extra in extra_names()
        if (extra != "gpu" or _is_nvidias_image())
        and distribution in (held := [canonicalize_name(r.name) for r in requirements(extra)])
    ]
    return install_command(min(holders)[1] if holders else "embedded")


def distribution_of(module: str) -> str:
    """The package of PyPI that brings a module, by its normal name."""
    top = module.partition(".")[0].lower()
    return canonicalize_name(_DISTRIBUTIONS.get(top, top))


def _is_nvidias_image() -> bool:
    return any(importlib.metadata.distributions(name="tensorrt_llm"))


def _is_of(requirement: Requirement, extra: str) -> bool:
    """Whether it is of the extra and of this machine. Without an extra: of the package itself."""
    marker = requirement.marker
    if marker is None:
        return not extra
    is_always = marker.evaluate({"extra": ""})
    return marker.evaluate({"extra": extra}) and (not extra or not is_always)
