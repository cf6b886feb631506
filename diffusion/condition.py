"""What a picture is asked to show: a prompt, a class label, or nothing, as the integers the network takes.

A condition is one value per *slot* (colour, shape, background; or the one slot "label"): 0 means none, k means the
slot's k-th word.  The all-zero condition is the unconditional one that guidance needs.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class ConditionError(ValueError):
    """A prompt or label that the family cannot draw; `field` names the request field to blame."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptConditioning(_Frozen):
    """Prompts of known words: each word belongs to a slot, filler words are skipped, a slot left out is left open."""

    kind: Literal["prompt"] = "prompt"
    template: str
    """How a full prompt reads, for people and for the page: "a {colour} {shape} on {background}"."""
    slots: dict[str, tuple[str, ...]]
    """Slot name -> its words, in the order of their values 1, 2, ...; slots in the order of the network's."""
    filler: tuple[str, ...] = ("a", "an", "the", "on", "background")
    """Words that carry no meaning here and may stand anywhere."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each slot, without 0."""
        return tuple(len(words) for words in self.slots.values())

    def encode(self, *, prompt: str | None = None, label: str | int | None = None) -> tuple[int, ...]:
        """Return the value of each slot.  Words are taken from left to right, each by the first open slot that knows it.

        Raises ConditionError for a missing or empty prompt, an unknown word, a word too many, or a label.
        """
        if label is not None:
            raise ConditionError("label", "this family takes a prompt, not a label")
        words = re.findall(r"[^\s,.;:!?]+", (prompt or "").lower())
        if not words:
            raise ConditionError("prompt", f"this family needs a prompt such as {self.example!r}; {self._known()}")
        values = dict.fromkeys(self.slots, 0)
        for word in words:
            if word in self.filler:
                continue
            knowing = [name for name, known in self.slots.items() if word in known]
            if not knowing:
                raise ConditionError("prompt", f"the word {word[:40]!r} is not known; {self._known()}")
            open_slots = [name for name in knowing if not values[name]]
            if not open_slots:
                raise ConditionError(
                    "prompt", f"{word!r} names a second {knowing[0]}; one is allowed, as in {self.example!r}"
                )
            values[open_slots[0]] = self.slots[open_slots[0]].index(word) + 1
        if not any(values.values()):
            raise ConditionError("prompt", f"the prompt names nothing to draw; {self._known()}")
        return tuple(values.values())

    def describe(self, condition: tuple[int, ...]) -> str:
        """Return the prompt that encodes to `condition`, open slots left out."""
        words = {
            name: self.slots[name][value - 1] if value else ""
            for name, value in zip(self.slots, condition, strict=True)
        }
        return re.sub(r"\s+", " ", self.template.format(**words)).strip()

    @property
    def example(self) -> str:
        """A full prompt of first words."""
        return self.describe(tuple(1 for _ in self.slots))

    def _known(self) -> str:
        return "known words: " + "; ".join(f"{name}: {', '.join(words)}" for name, words in self.slots.items())


class LabelConditioning(_Frozen):
    """Class labels, by name or by number counted from 0."""

    kind: Literal["label"] = "label"
    labels: tuple[str, ...] = Field(min_length=1)
    """Class names in the order of their numbers."""

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """The one slot, "label"."""
        return {"label": self.labels}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes."""
        return (len(self.labels),)

    def encode(self, *, prompt: str | None = None, label: str | int | None = None) -> tuple[int, ...]:
        """Return the class's value.  A name that is a class goes before a number.  Raises ConditionError for anything else."""
        if prompt is not None:
            raise ConditionError("prompt", "this family takes a label, not a prompt")
        if label is None:
            raise ConditionError("label", f"this family needs a label; {self._known()}")
        if str(label) in self.labels:
            return (self.labels.index(str(label)) + 1,)
        if str(label).isascii() and str(label).isdecimal() and len(str(label)) < 10 and int(label) < len(self.labels):
            return (int(label) + 1,)
        raise ConditionError("label", f"the label {str(label)[:40]!r} is not known; {self._known()}")

    def describe(self, condition: tuple[int, ...]) -> str:
        """Return the class's name, or an empty string for none."""
        return self.labels[condition[0] - 1] if condition[0] else ""

    def _known(self) -> str:
        shown = ", ".join(self.labels[:100]) + (", ..." if len(self.labels) > 100 else "")
        return f"known labels: 0 to {len(self.labels) - 1}, or by name: {shown}"


class NoConditioning(_Frozen):
    """A family that takes no wishes."""

    kind: Literal["none"] = "none"

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """No slots."""
        return {}

    @property
    def sizes(self) -> tuple[int, ...]:
        """No slots."""
        return ()

    def encode(self, *, prompt: str | None = None, label: str | int | None = None) -> tuple[int, ...]:
        """Return the empty condition.  Raises ConditionError when a prompt or label is given."""
        for field, value in (("prompt", prompt), ("label", label)):
            if value is not None:
                raise ConditionError(field, f"this family draws unconditionally and takes no {field}")
        return ()

    def describe(self, condition: tuple[int, ...]) -> str:
        """Return an empty string."""
        return ""


Conditioning = Annotated[PromptConditioning | LabelConditioning | NoConditioning, Field(discriminator="kind")]
"""What a family can be asked for."""
