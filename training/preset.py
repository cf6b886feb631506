"""Presets: the settings of a family's training by name, one file of `training/presets/` each.

A preset's network has the same name in `PRESETS` of diffusion/uvit.py.  A student's preset may say method and step count
too: `imagenet64-small-cd-4` is a cell of the paper's Table 1.
"""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

FOLDER = Path(__file__).parent / "presets"
METHODS = ("cd", "ct")


def names() -> list[str]:
    """Return the names of all presets that have training settings."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Return what a preset's file holds: "about", and the settings of "train" and "distill".  Raises KeyError."""
    if name not in names():
        raise KeyError(name)
    return tomllib.loads((FOLDER / f"{name}.toml").read_text())


def network_of(name: str) -> str:
    """Return the name of a student's preset without method and step count."""
    return re.sub(rf"(-({'|'.join(METHODS)}))?(-\d+)?$", "", name)


def teacher_settings(name: str) -> dict[str, Any]:
    """Return a preset's settings of `stepdial train`; none where the preset is a network alone."""
    return read_preset(name)["train"] if name in names() else {}


def student_settings(name: str) -> dict[str, Any]:
    """Return a preset's settings of `stepdial distill`.  Raises ValueError for a name that is no preset's."""
    stem = network_of(name)
    said = re.fullmatch(rf"{re.escape(stem)}(?:-({'|'.join(METHODS)}))?(?:-(\d+))?", name)
    assert said
    if stem not in names():
        raise ValueError(f"must be one of {', '.join(names())}, with -cd or -ct and a step count or without")
    settings = read_preset(stem)["distill"]
    variants = {method: settings.pop(method) for method in METHODS if method in settings}
    method = said[1] or METHODS[0]
    if method not in variants:
        raise ValueError(f"{stem} has no {method}; it has {', '.join(variants)}")
    steps = {"steps": said[2], "whole": False} if said[2] else {}
    return settings | variants[method] | steps


class PresetSource(PydanticBaseSettingsSource):
    """Settings of the preset that other flags name, for what no flag says."""

    def __init__(self, settings_cls: type[BaseSettings], read: Callable[[str], dict[str, Any]]):
        """read: teacher_settings or student_settings."""
        super().__init__(settings_cls)
        self._read = read

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Nothing is asked field by field."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the settings; none for a name that is no preset's, which the field itself refuses."""
        try:
            return self._read(self.current_state.get("preset") or "")
        except ValueError:
            return {}
