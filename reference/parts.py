"""The shape of what not every model has: a mixture of experts in place of an FFN, and latent attention.

The mathematics of the first is in `mixture`, of the second in `latent`; here is what a config says of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from reference.checks import one_of, require, whole

SCORES = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Mixture:
    """Which layers are mixtures, and how their tokens choose experts. Axis letters: X experts, K experts of a token.

    layers: for each layer, whether it is a mixture; the others have one FFN.
    experts, chosen, width: X, K, and the neurons of one expert.
    shared_width: neurons of the expert that every token runs besides; 0 where there is none.
    score: what turns a router's logits into scores, softmax or sigmoid.
    groups, groups_chosen: experts come from so many of the groups that they stand in.
    normalised: the scores of a token's experts are divided by their sum.
    scale: factor on what the chosen experts give together.
    """

    layers: tuple[bool, ...]
    experts: int
    chosen: int
    width: int
    shared_width: int = 0
    score: str = "softmax"
    groups: int = 1
    groups_chosen: int = 1
    normalised: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("experts", "chosen", "width", "groups", "groups_chosen"):
            whole(name, getattr(self, name))
        whole("shared_width", self.shared_width, least=0)
        one_of("score", self.score, SCORES)
        require(
            self.experts % self.groups == 0,
            f"groups: got {self.groups}, wanted a number that divides {self.experts} experts",
        )
        require(
            self.groups_chosen <= self.groups,
            f"groups_chosen: got {self.groups_chosen}, wanted at most the {self.groups} groups",
        )
        open_to_choice = self.experts // self.groups * self.groups_chosen
        require(
            self.chosen <= open_to_choice,
            f"chosen: got {self.chosen} experts per token, wanted at most the {open_to_choice} in the chosen groups",
        )

    @property
    def neurons(self) -> int:
        """The neurons that a token runs: those of its own experts and of the shared one."""
        return self.chosen * self.width + self.shared_width


@dataclass(frozen=True)
class Latent:
    """The widths of latent attention (reference/latent.py).

    A head has `unrotated` + `rotated` dimensions of queries and keys, and `value_dim` of values. Keys and values come
    from a latent of `rank` numbers, queries from one of `query_rank`, or from the hidden state itself where that is
    None. `eps` is of the norms of the latents.
    """

    rank: int
    unrotated: int
    rotated: int
    value_dim: int
    query_rank: int | None = None
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("rank", "unrotated", "rotated", "value_dim"):
            whole(name, getattr(self, name))
        if self.query_rank is not None:
            whole("query_rank", self.query_rank)
        require(
            self.rotated % 2 == 0, f"rotated: got {self.rotated} dimensions, wanted an even number: pairs are turned"
        )

    @property
    def head_dim(self) -> int:
        """D, of keys and of values alike: the wider of the two, the other is filled with zeros."""
        return max(self.unrotated + self.rotated, self.value_dim)
