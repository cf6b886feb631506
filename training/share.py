"""How a global batch is shared: by several processes, and by each in several turns, without changing what is in it."""

from dataclasses import dataclass


def nearest_multiples(number: int, of: int) -> str:
    """Return the multiples on both sides of a number that is none, for people: "32 or 34"; above 0."""
    below = number // of * of
    return f"{below} or {below + of}" if below else f"{of}"


@dataclass(frozen=True)
class Share:
    """One of the equal shares of a global batch: what one process computes at a time.

    Of a batch whose parts learn different things (one network for the whole dial) every share has as much of each part.
    """

    batch: int
    """Images of the global batch."""
    index: int = 0
    """Which share, from 0."""
    of: int = 1
    """How many shares there are: processes times turns."""
    parts: tuple[int, ...] = (1,)
    """Parts of the batch that learn different things, in order: how large each is in proportion to the others."""

    def __post_init__(self) -> None:
        """Raise ValueError for a batch that cannot be shared equally."""
        least = self.of * sum(self.parts)
        if self.batch % least:
            parts = f", each with its part of {sum(self.parts)}" if sum(self.parts) > 1 else ""
            raise ValueError(
                f"--batch {self.batch} cannot be divided equally among {self.of} shares (processes times turns){parts}; "
                f"{nearest_multiples(self.batch, least)} can"
            )

    @property
    def size(self) -> int:
        """Images of this share."""
        return self.batch // self.of

    @property
    def runs(self) -> list[range]:
        """The share's places in the batch: a run of each part."""
        runs, first = [], 0
        for part in self.parts:
            images = self.batch * part // sum(self.parts)
            run = images // self.of
            runs.append(range(first + self.index * run, first + (self.index + 1) * run))
            first += images
        return runs

    @property
    def places(self) -> list[int]:
        """The share's places in the batch, in the order in which it has them."""
        return [place for run in self.runs for place in run]
