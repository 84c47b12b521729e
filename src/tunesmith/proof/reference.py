"""What the positions of a file are compared with: log-probabilities on disk, of which a piece is in memory at a time.

Letters in names: C positions of a piece, S all positions, D hidden width, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunesmith.errors import ProofError
from tunesmith.files import write_all
from tunesmith.model.adapter import attach_saved
from tunesmith.model.streamed import StreamedModel, in_passes, opened
from tunesmith.proof.sample import HeldOutLoss, Row, Sample

WORDS = 4096  # of the vocabulary whose weights are in memory at once
PIECE_BYTES = 64 << 20  # log-probabilities in memory at once


class Reference:
    """Log-probabilities [S, V] in a file, written and read from one position to another."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._vocabulary = 0
        self.loss: HeldOutLoss | None = None
        """Of the model whose they are; None while there are none."""

    def write(self, start: int, logprobs_CV: Tensor) -> None:
        """From a position on."""
        self._vocabulary = logprobs_CV.shape[1]
        self._file.seek(4 * self._vocabulary * start)
        write_all(self._file, memoryview(logprobs_CV.contiguous().numpy().data))

    def read(self, start: int, stop: int) -> Tensor:
        """From one position up to another, [C, V]."""
        self._file.seek(4 * self._vocabulary * start)
        numbers = np.fromfile(self._file, np.float32, (stop - start) * self._vocabulary)
        return torch.from_numpy(numbers.reshape(stop - start, self._vocabulary))

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def store_model(folder: Path, sample: Sample, reference: Reference, adapter: Path | None = None) -> str:
    """Write the log-probabilities of a Hugging Face folder's model, by transformers in fp32, to the reference.

    `adapter`: a folder of one that is put on it. Returns why there are none, empty where there are. Raises ProofError
    where the model computes no numbers.
    """
    pieces = model_logprobs(folder, sample, adapter)
    if isinstance(pieces, str):
        return pieces
    targets_S, nats, start = torch.from_numpy(sample.targets_S), list[Tensor](), 0
    for logprobs_CV in pieces:
        part = slice(start, start + len(logprobs_CV))
        if (bad_C := ~logprobs_CV.isfinite().all(dim=1)).any():
            whose = "base with the adapter" if adapter else "merged model"
            what = f"the {whose} gives no numbers at {sample.place(start + int(bad_C.int().argmax()))}"
            fix = "train with a lower train.lr; see the loss" if adapter else "delete model/ and run again"
            raise ProofError(what, fix=fix, where=str(folder))
        reference.write(start, logprobs_CV)
        nats.append(-logprobs_CV.gather(1, targets_S[part, None])[:, 0])
        start = part.stop
    reference.loss = sample.held_out_loss(in_float64(nats))
    return ""


@torch.no_grad()
def model_logprobs(folder: Path, sample: Sample, adapter: Path | None = None) -> Iterator[Tensor] | str:
    """Log-probabilities [C, V] at all positions, a piece at a time, or why there are none: memory, or the model.

    `adapter`: a folder of one that is put on it.
    """
    passes = list(in_passes(sample.rows, _tokens))
    model = opened(folder, max(sum(map(_tokens, rows)) for rows in passes))
    if isinstance(model, str):
        return model
    if adapter:
        attach_saved(model.model, adapter, model.device)
    return _logprobs(model, torch.cat([_at_places(model, rows) for rows in passes]))


def in_float64(nats: list[Tensor]) -> NDArray[np.float64]:
    """The costs of the pieces as one array [S]."""
    return torch.cat(nats).double().numpy()


def _tokens(row: Row) -> int:
    return len(row.ids)


def _at_places(model: StreamedModel, rows: list[Row]) -> Tensor:
    """The last hidden states at the places of rows."""
    hidden_TD = model.hidden([row.ids for row in rows])
    starts = np.cumsum([0, *(len(row.ids) for row in rows[:-1])])
    return hidden_TD[[int(start) + place for start, row in zip(starts, rows, strict=True) for place in row.places]]


@torch.no_grad()
def _logprobs(model: StreamedModel, hidden_SD: Tensor) -> Iterator[Tensor]:
    """Log-probabilities [C, V], from the hidden states of some positions after those of others."""
    for hidden_CD in hidden_SD.split(max(1, PIECE_BYTES // (4 * model.vocabulary))):
        logits_CV = torch.cat([head.logits(hidden_CD) for head in model.head_pieces(WORDS)], dim=1)
        yield logits_CV.log_softmax(dim=1).cpu()
