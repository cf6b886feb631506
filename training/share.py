"""How a global batch is shared: by several processes, and by each in several turns, without changing what is in it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One of the equal shares of a global batch: what one process computes at a time.

    In a batch whose equal parts learn different things (one network for the whole dial) every share has as much of each part.
    """

    batch: int
    """Images of the global batch."""
    index: int = 0
    """Which share, from 0."""
    of: int = 1
    """How many shares there are: processes times turns."""
    parts: int = 1
    """Equal parts of the batch that learn different things."""

    def __post_init__(self) -> None:
        """Raise ValueError for a batch that cannot be shared equally."""
        if self.batch % (self.of * self.parts):
            parts = f" of {self.parts} equal parts" if self.parts > 1 else ""
            raise ValueError(
                f"a batch of {self.batch}{parts} cannot be divided equally among {self.of} shares (processes times turns); "
                f"{self.of * self.parts} must divide it"
            )

    @property
    def size(self) -> int:
        """Images of this share."""
        return self.batch // self.of

    @property
    def runs(self) -> list[range]:
        """The share's places in the batch: a run of each part."""
        run = self.size // self.parts
        firsts = range(self.index * run, self.batch, self.batch // self.parts)
        return [range(first, first + run) for first in firsts]

    @property
    def places(self) -> list[int]:
        """The share's places in the batch, in the order in which it has them."""
        return [place for run in self.runs for place in run]
