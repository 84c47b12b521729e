"""When a checkpoint is due, and a thread that writes it: training goes on a moment after the state was copied.

A disk that takes nothing ends no training: it is said once, room is made among the run's own checkpoints, and the next
one is tried. What the end needs, the last state and the best, is owed until it is on disk.
"""

import contextlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.boundary import explained
from tunesmith.console import say, warn
from tunesmith.errors import ResourceError
from tunesmith.recipe import CheckpointConfig
from tunesmith.runs import checkpoint_name
from tunesmith.training.checkpoint import make_room, prune, save_checkpoint
from tunesmith.training.metrics import Metrics
from tunesmith.training.saved import what_is_left
from tunesmith.training.snapshot import Snapshot, take, take_beside
from tunesmith.training.state import INFINITY, Progress, TrainState
from tunesmith.values import cadence, share

FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
NICE = 10  # of the writing thread: training computes on every core, and is not to wait for it


class Saver:
    """The checkpoints of one training."""

    def __init__(
        self, folder: Path, config: CheckpointConfig, about: Mapping[str, Any], at: Progress,
        lines: Sequence[Metrics],
    ) -> None:  # fmt: skip
        """`about`: what state.json says beside the state; `at`: what needs no checkpoint, as one has it, or it is the
        beginning. `lines`: the metrics, and what else a checkpoint counts on.
        """
        self.folder, self._config, self._about = folder, config, about
        self._lines = lines
        self.told: Callable[[Path, int], None] = lambda *_: None
        """Gets each checkpoint that is on disk, and the best step by then."""
        self.metrics = lines[0]
        self._every = cadence(config.every)
        self._step, self._measured, self._at_s = at.step, at.evaluated_step, time.monotonic()
        self._cost_s = 0.0
        """What the last one took from training."""
        self.took_s = 0.0
        """How long the longest took from the copy until it was on disk."""
        self._stretched = False
        self._made_room = False
        self._failure: Exception | None = None
        self._retry_s, self._retry_at = FIRST_RETRY_S, 0.0
        self._owed: Snapshot | None = None
        """The best state, where it is not on disk yet."""
        self._spare: Snapshot | None = None
        """A copy in main memory of the state after a recent step, for who cannot wait for the GPU."""
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def is_due(self, step: int, ahead_s: float = 0.0) -> bool:
        """Whether it is time for a checkpoint: by the cadence, the share of time it may take, and the disk.

        `ahead_s`: how long it is, as far as is known, until this is asked again; what falls due by then is due now, so
        that a kill costs no more than the cadence.
        """
        now = time.monotonic()
        since = now - self._at_s
        if self._failure and self._idle:
            return now >= self._retry_at
        every_s = self._every.seconds or INFINITY
        due = step - self._step >= (self._every.steps or INFINITY) or since + ahead_s >= every_s
        if step == self._step or not due or not (self._idle or self._every.steps):
            return False  # one that is due by its step is waited for, so that the same steps are kept each time
        least = self._cost_s / share(self._config.overhead) if self._config.overhead else 0.0
        if since < least and least > (self._every.seconds or 0.0) and not self._stretched:
            self._stretched = True
            apart = math.ceil(10 * least) / 10  # upwards: of 3.04 s it would say "3 s apart, not 3s"
            say(
                f"train: a checkpoint takes {self._cost_s:.3f} s from training, so they are {apart:g} s apart or "
                f"more, not {self._config.every} (checkpoint.overhead: {self._config.overhead})"
            )
        return since >= least

    def save(self, state: TrainState, best: bool = False) -> None:
        """Copy the state, and let it be written; an earlier one that is still being written is waited for."""
        started = time.monotonic()
        self._waiting.join()
        snapshot = take(state, self._about)
        if best:
            self._owed = snapshot
        self._start()
        self._step, self._measured, self._at_s = snapshot.step, state.progress.evaluated_step, time.monotonic()
        self._cost_s = self._at_s - started
        self._waiting.put(partial(self._write_costed, snapshot))

    def keep_spare(self, state: TrainState) -> None:
        """Have the state after a long step in main memory as well: while a GPU is busy for long, or its driver waits
        for something, nothing can be fetched from it. On a CPU there is no need.
        """
        if state.applied is not None and self._idle:
            self._start()
            self._waiting.put(partial(self._fetch_spare, take(state, self._about)))

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()

    def finish(self, state: TrainState) -> Path:
        """Have the last state on disk, and the best, before this returns. Raises ResourceError where that cannot be."""
        self._waiting.join()
        return self._saved(take_beside(state, self._about))  # a GPU may still be busy with a step that is given up

    def rescue(self, state: TrainState) -> Path:
        """The same by a thread that does not train, while another computes a step: the state is that of the last."""
        state.lock.acquire()  # for good: the process ends
        if self._spare and self._spare.step == state.progress.step:
            return self._saved(self._spare)
        self._waiting.join()
        return self._saved(take_beside(state, self._about))

    def close(self) -> None:
        """End the thread once it has written what it was given."""
        if self._thread:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    @property
    def _idle(self) -> bool:
        return self._waiting.unfinished_tasks == 0

    def _saved(self, snapshot: Snapshot) -> Path:
        target = self.folder / checkpoint_name(snapshot.step)
        stands = (self._step, self._measured) == (snapshot.step, snapshot.evaluated_step) and target.exists()
        if self._failure or self._owed or not stands:
            self._write(snapshot)
        if self._failure:
            error = explained(self._failure)
            left = what_is_left(self.folder)
            what = f"the state after step {snapshot.step} could not be saved: {error.what}; {left}"
            raise ResourceError(what, fix=error.fix) from self._failure
        return target

    def _work(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # on Linux of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while do := self._waiting.get():
            try:
                do()
            finally:
                self._waiting.task_done()
        self._waiting.task_done()

    def _fetch_spare(self, snapshot: Snapshot) -> None:
        with contextlib.suppress(RuntimeError, MemoryError):  # main memory is full: then there is none
            self._spare = snapshot.on_host()

    def _write_costed(self, snapshot: Snapshot) -> None:
        before_s = time.thread_time()
        self._write(snapshot)
        self._cost_s += time.thread_time() - before_s

    def _write(self, snapshot: Snapshot) -> None:
        """Write a snapshot, after the best if that is owed; what fails is said once and kept in mind."""
        started = time.monotonic()
        try:
            with self._writing:
                for one in [self._owed, snapshot] if self._owed and self._owed is not snapshot else [snapshot]:
                    target = self._commit(one)
                    self._owed = None if one is self._owed else self._owed
                    self._tidy(target, one.best_step)
        except Exception as error:
            self._failed(error, snapshot.step)
            return
        if self._failure:
            say(f"train: checkpoints are written again: {target.name}")
        self._failure, self._retry_s = None, FIRST_RETRY_S
        self.took_s = max(self.took_s, time.monotonic() - started)

    def _tidy(self, target: Path, best_step: int) -> None:
        """Delete what need not be kept, and tell of a checkpoint that is on disk, whatever becomes of these."""
        try:
            prune(self.folder, self._config.keep, best_step)
            self.told(target, best_step)
        except Exception as error:
            said = explained(error)
            warn(f"{target.name} is saved; what comes after that could not be done: {said.what}\n  fix: {said.fix}")

    def _commit(self, snapshot: Snapshot) -> Path:
        """Write one; where the disk is full, in the room of older ones that nothing needs."""
        while True:
            try:
                for each in self._lines:
                    each.flush()
                return save_checkpoint(self.folder, snapshot)
            except ResourceError as error:
                if not (gone := make_room(self.folder, snapshot.best_step)):
                    raise
                if not self._made_room:
                    self._made_room = True
                    warn(f"{error.what}; {gone} is deleted to make room for it, and so it goes on: {error.fix}")

    def _failed(self, error: Exception, step: int) -> None:
        if not self._failure:
            said = explained(error)
            warn(
                f"the checkpoint after step {step} could not be written: {said.what}; training goes on and tries it "
                f"again\n  fix: {said.fix}"
            )
        self._failure = error
        self._retry_at, self._retry_s = time.monotonic() + self._retry_s, min(2 * self._retry_s, LONGEST_RETRY_S)
