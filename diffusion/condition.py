"""What a picture is asked to show: a prompt, a class label, or nothing, as the integers the network takes.

A condition is one value per *slot* (colour, shape, background; or the one slot "label"): 0 means none, k means the
slot's k-th word.  The all-zero condition is the unconditional one that guidance needs.
"""

import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

GUIDANCE_PARTS = 1000
"""A network that is told its guidance w finds it in a column of the condition after the slots, in whole thousandths."""


class ConditionError(ValueError):
    """A prompt or label that the family cannot draw; `field` names the request field to blame."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Relation(_Frozen):
    """How a prompt about two things is read: the words before the relation fill the first slots, those after it the second.

    The slot's first word says that there is no second thing, and is meant where a prompt names no relation.
    """

    slot: str = "relation"
    """The slot that holds it."""
    second: dict[str, str]
    """Slot of the first thing -> the same slot of the second thing."""
    reversed: dict[str, str] = {}
    """Words that say a relation the other way round: "right of" -> "left of" with the two things exchanged."""
    template: str
    """How a full prompt about two things reads."""


class PromptConditioning(_Frozen):
    """Prompts of known words: each word belongs to a slot, filler words are skipped, a slot left out is left open."""

    kind: Literal["prompt"] = "prompt"
    template: str
    """How a full prompt reads, for people and for the page: "a {colour} {shape} on {background}"."""
    slots: dict[str, tuple[str, ...]]
    """Slot name -> its words, in the order of their values 1, 2, ...; slots in the order of the network's."""
    filler: tuple[str, ...] = ("a", "an", "the", "on", "background")
    """Words that carry no meaning here and may stand anywhere."""
    relation: Relation | None = None
    """For prompts that may name two things."""

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
        words = [word for word in words if word not in self.filler]
        values = dict.fromkeys(self.slots, 0)
        if self.relation is None:
            self._fill(values, words, self.slots)
        else:
            self._fill_related(values, words, self.relation)
        named = [slot for slot, value in values.items() if value and not (self.relation and slot == self.relation.slot)]
        if not named:
            raise ConditionError("prompt", f"the prompt names nothing to draw; {self._known()}")
        return tuple(values.values())

    def describe(self, condition: tuple[int, ...]) -> str:
        """Return the prompt that encodes to `condition`, open slots left out."""
        words = {
            name: self.slots[name][value - 1] if value else ""
            for name, value in zip(self.slots, condition, strict=True)
        }
        two = self.relation and words[self.relation.slot] not in ("", self.slots[self.relation.slot][0])
        template = self.relation.template if self.relation and two else self.template
        said = re.sub(r"\s+", " ", template.format(**words)).strip()
        return re.sub(r"\ba (?=[aeiou])", "an ", said) if "an" in self.filler else said

    def draw(self, rng: random.Random) -> tuple[int, ...]:
        """Return a random condition that names everything."""
        values = {slot: rng.randint(1, len(words)) for slot, words in self.slots.items()}
        if self.relation and values[self.relation.slot] == 1:
            values |= dict.fromkeys(self.relation.second.values(), 0)
        return tuple(values.values())

    @property
    def example(self) -> str:
        """A full prompt of first words, about two things where a prompt may name two."""
        first = {slot: 1 for slot in self.slots}
        if self.relation:
            first[self.relation.slot] = 2
        return self.describe(tuple(first.values()))

    def _fill_related(self, values: dict[str, int], words: list[str], relation: Relation) -> None:
        """Part the words at the relation, fill both sides, and exchange the things of a relation said in reverse."""
        # a relation is known by the first word of its phrase, the rest ("of") is filler
        phrases = {phrase.split()[0]: phrase for phrase in (*self.slots[relation.slot], *relation.reversed)}
        places = [place for place, word in enumerate(words) if word in phrases]
        first = [slot for slot in self.slots if slot != relation.slot and slot not in relation.second.values()]
        if not places:
            values[relation.slot] = 1
            return self._fill(values, words, first)
        if len(places) > 1:
            raise ConditionError(
                "prompt", f"{words[places[1]]!r} names a second relation; one is allowed, as in {self.example!r}"
            )
        phrase = phrases[words[places[0]]]
        told = relation.reversed.get(phrase, phrase)
        values[relation.slot] = self.slots[relation.slot].index(told) + 1
        self._fill(values, words[: places[0]], first)
        beyond = [relation.second.get(slot, slot) for slot in first]
        if values[relation.slot] == 1:
            beyond = first
        self._fill(values, words[places[0] + 1 :], beyond)
        if told != phrase:
            for one, other in relation.second.items():
                values[one], values[other] = values[other], values[one]

    def _fill(self, values: dict[str, int], words: list[str], slots: Iterable[str]) -> None:
        """Give each word to the first open one of `slots` that knows it."""
        for word in words:
            knowing = [slot for slot in slots if word in self.slots[slot]]
            if not knowing:
                raise ConditionError("prompt", f"the word {word[:40]!r} is not known; {self._known()}")
            open_slots = [slot for slot in knowing if not values[slot]]
            if not open_slots:
                raise ConditionError(
                    "prompt", f"{word!r} names a second {knowing[0]}; one is allowed, as in {self.example!r}"
                )
            values[open_slots[0]] = self.slots[open_slots[0]].index(word) + 1

    def _known(self) -> str:
        repeated = self.relation.second.values() if self.relation else ()
        known = {slot: words for slot, words in self.slots.items() if slot not in repeated}
        if self.relation:
            known[self.relation.slot] = (*known[self.relation.slot][1:], *self.relation.reversed)
        return "known words: " + "; ".join(f"{slot}: {', '.join(words)}" for slot, words in known.items())


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

    def draw(self, rng: random.Random) -> tuple[int, ...]:
        """Return a random class's value."""
        return (rng.randint(1, len(self.labels)),)

    def describe(self, condition: tuple[int, ...]) -> str:
        """Return the class's name, or an empty string for none."""
        return self.labels[condition[0] - 1] if condition[0] else ""

    def _known(self) -> str:
        shown = ", ".join(self.labels[:100]) + (", ..." if len(self.labels) > 100 else "")
        return f"known labels: 0 to {len(self.labels) - 1}, or by name: {shown}"


class Tokenizer(_Frozen):
    """What cuts prompts into tokens for one text encoder, in a file of the family as the tokenizers library writes it."""

    file: str = Field(pattern=r"^[A-Za-z0-9._-]+\.json$")
    """Name inside the family's folder."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of its bytes, in hexadecimal."""
    length: int = Field(ge=3)
    """Tokens that the encoder reads: a shorter prompt is filled up."""
    vocabulary: int = Field(ge=3)
    """Number of tokens there are."""
    pad: int = Field(ge=0)
    """The token that fills up."""


class TextConditioning(_Frozen):
    """Prompts of any words, read by text encoders: one slot for every token, its value the token's number plus 1."""

    kind: Literal["text"] = "text"
    tokenizers: tuple[Tokenizer, ...] = Field(min_length=1)
    """One for each text encoder; all read the same prompt."""
    example: str = "a cat on a mat, photograph"
    """A prompt for who has none."""
    _readers: tuple[Any, ...] = PrivateAttr(default=())

    def open(self, folder: Path) -> None:
        """Read the tokenizers' files, which were checked.  Raises ModuleNotFoundError where their library is missing."""
        from tokenizers import Tokenizer as Reader

        readers = tuple(Reader.from_file(str(folder / tokenizer.file)) for tokenizer in self.tokenizers)
        for reader in readers:
            reader.no_truncation()
            reader.no_padding()
        self._readers = readers

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """Slots by name have no words to choose from here: a prompt may hold any."""
        return {}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values of each token's slot."""
        return tuple(part.vocabulary for part in self.tokenizers for _ in range(part.length))

    def encode(self, *, prompt: str | None = None, label: str | int | None = None) -> tuple[int, ...]:
        """Return the tokens, those of each encoder in turn.  An empty prompt is one.

        Raises ConditionError for no prompt, for more tokens than an encoder reads, or for a label.
        """
        if label is not None:
            raise ConditionError("label", "this family takes a prompt, not a label")
        if prompt is None:
            raise ConditionError("prompt", f"this family needs a prompt such as {self.example!r}")
        values: list[int] = []
        for tokenizer, reader in zip(self.tokenizers, self._readers, strict=True):
            ids = reader.encode(prompt).ids
            if len(ids) > tokenizer.length:
                raise ConditionError("prompt", f"the prompt has {len(ids)} tokens; {tokenizer.length} are read at most")
            values += [1 + token for token in (*ids, *[tokenizer.pad] * (tokenizer.length - len(ids)))]
        return tuple(values)

    def describe(self, condition: tuple[int, ...]) -> str:
        """Return the words of a condition."""
        ids = [value - 1 for value in condition[: self.tokenizers[0].length] if value]
        text: str = self._readers[0].decode(ids, skip_special_tokens=True)
        return text.replace("</w>", " ").strip()

    def draw(self, rng: random.Random) -> tuple[int, ...]:
        """Return the example's condition: there is no telling which words make sense."""
        return self.encode(prompt=self.example)


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

    def draw(self, rng: random.Random) -> tuple[int, ...]:
        """Return the empty condition."""
        return ()

    def describe(self, condition: tuple[int, ...]) -> str:
        """Return an empty string."""
        return ""


Conditioning = Annotated[
    PromptConditioning | TextConditioning | LabelConditioning | NoConditioning, Field(discriminator="kind")
]
"""What a family can be asked for."""
Prompts = PromptConditioning | TextConditioning
"""How captions are read."""
