"""How far the probabilities of two models are apart, taken in some positions at a time.

Letters in names: C positions of a piece, S all positions, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NEAR_TIE = 1e-3  # nats by which the reference likes another's first choice less, where that is rounding and no fault
TOP = 100
FLOOR = -100.0  # nats; llama.cpp writes a probability that fell to zero as -3e38


@dataclass(frozen=True)
class Choice:
    """The most likely next tokens of two models at one position, each with its log-probability there."""

    place: str
    reference: int
    reference_logprob: float
    other: int
    other_logprob: float


@dataclass(frozen=True)
class Divergence:
    """How far the probabilities of two models are apart, over all positions."""

    mean_kl: float  # KL(reference || other), nats, whole vocabulary
    max_kl: float
    worst: str  # where that is
    max_difference_top100: float  # |difference of log-probabilities| among the reference's 100 most likely tokens
    max_relative_difference: float  # of a position's logits: |difference| over |reference|, both less their mean
    top1: float  # share of positions with the same most likely token; near ties count as the same
    near_ties: int  # positions with another one, which the reference finds nearly as likely
    widest_other: float  # nats by which the reference's first choice is more likely to it than the other's, at most
    positions: int


class Apart:
    """Numbers of each position; the probabilities themselves are not kept."""

    def __init__(self, near_tie: float = NEAR_TIE) -> None:
        """`near_tie`: nats by which the reference may like another's first choice less."""
        self._near_tie = near_tie
        self._kl: list[Tensor] = []
        self._largest: list[Tensor] = []
        self._relative: list[Tensor] = []
        self._other: list[Tensor] = []
        self._tie: list[Tensor] = []
        self._gap: list[Tensor] = []
        self._choices: list[Tensor] = []  # of each position: both first choices, and their log-probabilities

    def add(self, reference_CV: Tensor, other_CV: Tensor) -> None:
        """Take in the log-probabilities of some positions more."""
        difference_CV = reference_CV.clamp(min=FLOOR).sub_(other_CV.clamp(min=FLOOR))
        best_CT, first_C = reference_CV.topk(min(TOP, reference_CV.shape[1]), dim=1), other_CV.max(dim=1)
        self._largest.append(difference_CV.gather(1, best_CT.indices).abs_().amax(dim=1))
        self._relative.append(_spread(difference_CV) / _spread(reference_CV.clamp(min=FLOOR)))
        self._kl.append((reference_CV.exp().mul_(difference_CV)).sum(dim=1, dtype=torch.float64))
        other_C = best_CT.indices[:, 0] != first_C.indices
        self._other.append(other_C)
        gap_C = best_CT.values[:, 0] - reference_CV.gather(1, first_C.indices[:, None])[:, 0]
        self._tie.append(other_C & (gap_C <= self._near_tie))
        self._gap.append(gap_C)
        pairs = (best_CT.indices[:, 0], best_CT.values[:, 0], first_C.indices, first_C.values)
        self._choices.append(torch.stack([part.double() for part in pairs], dim=1))

    def found(self, place: Callable[[int], str]) -> Divergence:
        """Over all of them. `place`: a position in words."""
        kl_S, largest_S, relative_S, other_S, tie_S = (
            torch.cat(parts).numpy() for parts in (self._kl, self._largest, self._relative, self._other, self._tie)
        )
        return Divergence(
            mean_kl=float(np.maximum(kl_S.mean(), 0)),  # rounding can leave it just below zero; Python's max hides NaN
            max_kl=float(np.maximum(kl_S.max(), 0)),
            worst=place(int(kl_S.argmax())),
            max_difference_top100=float(largest_S.max()),
            max_relative_difference=float(relative_S.max()),
            top1=float(1 - (other_S & ~tie_S).mean()),
            near_ties=int(tie_S.sum()),
            widest_other=float(torch.cat(self._gap).max()),
            positions=len(kl_S),
        )

    def first(self, place: Callable[[int], str], kl: float) -> Choice:
        """The first position whose divergence is above `kl`, or where another token comes first without a near tie; the
        most different one where no position is so.
        """
        kl_S, other_S, tie_S = (torch.cat(parts) for parts in (self._kl, self._other, self._tie))
        differs_S = ~(kl_S <= kl) | (other_S & ~tie_S)  # a NaN differs
        number = int(differs_S.int().argmax() if differs_S.any() else kl_S.argmax())
        reference, reference_logprob, other, other_logprob = torch.cat(self._choices)[number].tolist()
        return Choice(place(number), int(reference), reference_logprob, int(other), other_logprob)


def _spread(numbers_CV: Tensor) -> Tensor:
    """The norm [C] of what is left when the mean is taken away: log-probabilities are logits less a constant."""
    return torch.linalg.vector_norm(numbers_CV - numbers_CV.mean(dim=1, keepdim=True), dim=1)
