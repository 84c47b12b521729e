"""How far the probabilities of two models are apart, taken in some positions at a time.

Letters in names: C positions of a piece, S all positions, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NEAR_TIE = 1e-3  # nats between the reference's two best tokens below which another top-1 is rounding, not a fault
TOP = 100
FLOOR = -100.0  # nats; llama.cpp writes a probability that fell to zero as -3e38


@dataclass(frozen=True)
class Divergence:
    """How far the probabilities of two models are apart, over all positions."""

    mean_kl: float  # KL(reference || other), nats, whole vocabulary
    max_kl: float
    worst: str  # where that is
    max_difference_top100: float  # |difference of log-probabilities| among the reference's 100 most likely tokens
    top1: float  # share of positions with the same most likely token; near ties count as the same
    near_ties: int  # positions with another one, where the reference's two best are closer than NEAR_TIE
    positions: int


class Apart:
    """Numbers of each position; the probabilities themselves are not kept."""

    def __init__(self) -> None:
        self._kl: list[Tensor] = []
        self._largest: list[Tensor] = []
        self._other: list[Tensor] = []
        self._tie: list[Tensor] = []

    def add(self, reference_CV: Tensor, other_CV: Tensor) -> None:
        """Take in the log-probabilities of some positions more."""
        difference_CV = reference_CV.clamp(min=FLOOR).sub_(other_CV.clamp(min=FLOOR))
        best_CT = reference_CV.topk(min(TOP, reference_CV.shape[1]), dim=1)
        self._largest.append(difference_CV.gather(1, best_CT.indices).abs_().amax(dim=1))
        self._kl.append((reference_CV.exp().mul_(difference_CV)).sum(dim=1, dtype=torch.float64))
        other_C = best_CT.indices[:, 0] != other_CV.argmax(dim=1)
        self._other.append(other_C)
        self._tie.append(other_C & (best_CT.values[:, 0] - best_CT.values[:, 1] < NEAR_TIE))

    def found(self, place: Callable[[int], str]) -> Divergence:
        """Over all of them. `place`: a position in words."""
        kl_S, largest_S, other_S, tie_S = (
            torch.cat(parts).numpy() for parts in (self._kl, self._largest, self._other, self._tie)
        )
        return Divergence(
            mean_kl=float(np.maximum(kl_S.mean(), 0)),  # rounding can leave it just below zero; Python's max hides NaN
            max_kl=float(np.maximum(kl_S.max(), 0)),
            worst=place(int(kl_S.argmax())),
            max_difference_top100=float(largest_S.max()),
            top1=float(1 - (other_S & ~tie_S).mean()),
            near_ties=int(tie_S.sum()),
            positions=len(kl_S),
        )
