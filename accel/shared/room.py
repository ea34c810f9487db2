"""Where the columns of a layer's cache lie in buffers that have room: plain integers, known without asking a device.

    | forgotten | held: start … start + size | room to capacity |

Appending writes after what is held, evicting moves what stays to the front, and forgetting the oldest only moves
`start`. A layer with a budget settles in one buffer of budget + chunk columns.
"""

from __future__ import annotations

from dataclasses import dataclass

SPARE = 256  # columns that a buffer grows by at least: an answer


@dataclass
class Room:
    """The columns of one layer; every KV head holds equally many."""

    capacity: int
    start: int = 0
    size: int = 0
    newest: int = -1  # the last position held
    consecutive: bool = True  # whether the positions held have no gap

    @property
    def end(self) -> int:
        """One past the last column held."""
        return self.start + self.size

    @property
    def oldest(self) -> int:
        """The first position held, where they have no gap."""
        return self.newest - self.size + 1

    def wanted_for(self, tokens: int) -> int:
        """The capacity that buffers need before so many columns can be appended; the present one where they fit."""
        if self.size + tokens <= self.capacity:
            return self.capacity
        return max(self.capacity, self.size + tokens + max(self.size // 2, SPARE))

    def append(self, tokens: int, first: int) -> None:
        """Columns for tokens at the positions first, first + 1, … were written after those held."""
        self.consecutive &= self.size == 0 or first == self.newest + 1 or tokens == 0
        self.size += tokens
        self.newest = first + tokens - 1 if tokens else self.newest

    def keep(self, count: int) -> None:
        """All but `count` columns were forgotten, anywhere, and those moved to `start`."""
        self.consecutive &= count == self.size
        self.size = count

    def keep_newest(self, count: int) -> None:
        """Forget all but the newest `count` columns, without moving them."""
        if count < self.size:
            self.start, self.size = self.end - count, count

    def take_back(self, count: int) -> None:
        """Forget the newest `count` columns, which were appended last, one position each."""
        self.size -= count
        self.newest -= count

    def moved(self, capacity: int) -> None:
        """What is held now stands at the beginning of buffers of this capacity."""
        self.start, self.capacity = 0, capacity
