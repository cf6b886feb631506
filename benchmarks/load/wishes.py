"""What requests ask for: dial positions in a weighted mix, and prompts or labels that the family knows."""

from collections.abc import Mapping
from random import Random
from typing import Any, Literal

Steps = int | Literal["auto"]
"""A dial position, or the server's choice."""
Endpoint = Literal["generate", "openai"]
"""Which shape requests have: POST /generate, or POST /v1/images/generations."""
PATHS: dict[Endpoint, str] = {"generate": "/generate", "openai": "/v1/images/generations"}


def weights(text: str) -> dict[Steps, float]:
    """Read "1:5,4:3,16" as weights by dial position, 1 where none is given. Raises ValueError."""
    found: dict[Steps, float] = {}
    for part in text.split(","):
        steps, _, weight = part.strip().partition(":")
        try:
            found["auto" if steps == "auto" else int(steps)] = float(weight or 1)
        except ValueError:
            raise ValueError(f"{part.strip()!r} is not a dial position and its weight, such as 4:3") from None
    if not all(steps == "auto" or steps > 0 for steps in found) or not all(0 < w < 1e9 for w in found.values()):
        raise ValueError("dial positions and weights are positive")
    return found


class Wishes:
    """Draws request bodies. Seeds of images are left to the server, so that no answer comes from a cache."""

    def __init__(
        self, model: Mapping[str, Any], mix: Mapping[Steps, float], random: Random, *, endpoint: Endpoint = "generate",
        **fields: Any,
    ):  # fmt: skip
        self._model = model
        self._mix = mix
        self._random = random
        self._endpoint = endpoint
        shape = {"response_format": "b64_json"} if endpoint == "openai" else {}
        self._fields = {"model": model["name"]} | shape | {name: f for name, f in fields.items() if f is not None}

    def next(self) -> tuple[Steps, dict[str, Any]]:
        """Return the dial position and the body of one more request."""
        steps = self._random.choices([*self._mix], [*self._mix.values()])[0]
        chosen = {"quality": "auto"} if (steps, self._endpoint) == ("auto", "openai") else {"steps": steps}
        return steps, self._fields | chosen | self._condition()

    def _condition(self) -> dict[str, Any]:
        known = self._model["conditioning"]
        if known["kind"] == "prompt":
            words = {slot: self._random.choice(words) for slot, words in known["slots"].items()}
            return {"prompt": known["template"].format(**words)}
        return {"label": self._random.choice(known["labels"])} if known["kind"] == "label" else {}
