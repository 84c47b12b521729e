"""A run's copy elsewhere: `checkpoint.mirror`. It is written in a thread of its own, and never stops training.

Below URL/NAME/ are owner.json (which machine writes), recipe.yaml, data/, ancestor/ and checkpoints/, each checkpoint
with its digests.json last: so it is complete or absent there too. Who starts a run last owns it: one that goes on
elsewhere all the same finds a higher generation in owner.json, and stops.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.console import say, warn
from tunesmith.errors import RecipeError, ResourceError, TunesmithError
from tunesmith.files import DIGESTS, DRAFT, PROOFS, RECORD, beside, digest_folder, file_entry, remove
from tunesmith.json_file import OTHER_JSON, json_object
from tunesmith.recipe import Recipe
from tunesmith.record import is_own, parsed
from tunesmith.runs import Run, step_of
from tunesmith.training import fetched
from tunesmith.training.fetched import ANCESTOR, CHECKPOINTS, DATA, RECIPE, steps_in
from tunesmith.training.hub_folder import HubFolder
from tunesmith.training.offer import Offer, made_offer
from tunesmith.training.store import FileStore, Source, Store, reason, within
from tunesmith.training.whose import refuse_other_run

OWNER = "owner.json"
FIRST_WAIT_S, MOST_WAIT_S = 1.0, 60.0
"""Between two tries of what failed: doubled each time, up to the second."""
SAY_AGAIN_S = 600.0
"""A mirror that fails and works by turns is named once in this time; so is a write that hangs as long."""
CLAIM_S = 60.0
"""How long training waits at its start for owner.json; the uploader goes on trying."""


class TakenOver(Exception):  # noqa: N818 - not an error: another machine goes on with the run
    """Another machine owns the mirror; says which."""


class Mirror:
    """The mirror of one run. `taken_over` says, once it is so, which machine goes on with the run: then stop."""

    def __init__(self, url: str, run: Run, name: str) -> None:
        """Raises RecipeError, ResourceError for a URL that cannot be one; nothing is asked there yet."""
        self.taken_over = ""
        self._store: Store = HubFolder(url, name) if url.startswith("hf://") else FileStore(url, name)
        _refuse_one_disk(self._store, run)
        self._run = run
        self._token, self._generation, self._since = uuid.uuid4().hex, 0, _now()
        self._owns = self._began = self._closing = self._abandoned = False
        self._pending: dict[str, Offer] = {}
        self._current: Offer | None = None
        self._newest, self._done = "", ""
        self._keep: set[str] = set()
        self._first_sent: set[str] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failing, self._is_told, self._told_s = "", False, -SAY_AGAIN_S
        self._busy_since_s = self._not_before_s = 0.0
        self._offers = 0

    @property
    def is_failing(self) -> bool:
        """Whether what was tried last could not be sent."""
        return bool(self._failing)

    @property
    def place(self) -> str:
        """Where it is, without what is secret of its address."""
        return self._store.place

    def refuse_other_run(self, asked: Recipe, forks: bool = False) -> None:
        """Raise ResumeError where it holds another run; see whose.refuse_other_run."""
        refuse_other_run(self._store, self._run, asked, forks)

    def fetch(self) -> list[str]:
        """Fetch what the run folder lacks; see fetched.fetch. To be called under the run's lock, before the stages."""
        return fetched.fetch(self._store, self._run)

    def begin_anew(self) -> None:
        """Own it, and delete the checkpoints that an earlier training of this run left there.

        A machine that is still at that training puts none back: it finds another owner. Raises ResourceError where that
        fails: the new training would later go on from the old one's.
        """
        try:
            self._claim()
            steps = sorted(steps_in({*self._store.names()}), key=step_of)
            self._store.delete([*(f"{CHECKPOINTS}/{step}" for step in steps), CHECKPOINTS], DIGESTS)
        except Exception as error:  # of several libraries, and their texts can hold a credential
            why = reason(error)
        else:
            return
        what = f"the checkpoints in {self._store.place} cannot be deleted: {why}"
        raise ResourceError(what, fix="see to the network and the credentials, or delete them there yourself")

    def claim(self) -> None:
        """Own the mirror from now on. Where it cannot be reached that is said, and the uploader tries again."""
        try:
            within(CLAIM_S, self._claim)
        except TakenOver as by:
            self._lost(by)
        except Exception as error:  # of several libraries
            self._failed(error)

    def start(self) -> None:
        """Begin to send: recipe.yaml, data/ and ancestor/ first. To be called once the run's recipe.yaml stands."""
        remove(beside(self._run.leaving, DRAFT))
        self._thread = threading.Thread(target=self._work, daemon=True, name="tunesmith-mirror")
        self._thread.start()

    def offer(self, step_folder: Path, metrics: bytes, samples: bytes, keep: Sequence[str]) -> None:
        """Hand over a checkpoint that was committed, with the lines of metrics.jsonl and samples.jsonl at that step.

        Of what is offered only the newest and the best are sent. `keep`: the names of the checkpoints that stay; an
        older one that is not among them is deleted in the mirror. Raises nothing.
        """
        if self.taken_over or self._closing:
            return
        try:
            self._offers += 1
            folder = beside(self._run.leaving, DRAFT) / f"{step_folder.name}-{self._offers}"
            lines = {self._run.metrics.name: metrics, self._run.samples.name: samples}
            made = made_offer(step_folder, folder, lines)
        except (OSError, TunesmithError, *OTHER_JSON) as error:
            return self._failed(error) if step_folder.exists() else None  # it was pruned already
        with self._changed:
            self._newest, self._keep = made.name, {*keep, made.name, made.best}
            before = self._pending.pop(made.name, None)
            superseded = [self._pending.pop(name) for name in [*self._pending] if name != made.best]
            self._pending[made.name] = made
            self._discard(*superseded, before)
            self._changed.notify_all()
            stuck_s = time.monotonic() - self._busy_since_s if self._busy_since_s else 0.0
        if stuck_s > SAY_AGAIN_S:
            self._failed(TimeoutError(f"what is being sent has taken {stuck_s:.0f} s so far"))
        return None

    def close(self, within_s: float) -> bool:
        """Let what was offered go there, for at most so long; whether the newest is there. What is not is said."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(within_s)
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
            done = self._began and self._done == self._newest if self._thread else not self._newest
        if not self._thread or not self._thread.is_alive():
            remove(beside(self._run.leaving, DRAFT))
        if not done and not self.taken_over:
            what = self._newest or f"{RECIPE} and {DATA}/"
            why = self._failing or f"it was not sent within {within_s:.0f} s"
            warn(f"mirror: {what} is not in {self._store.place} ({why}); it is in {self._run.path}")
        if done and self._done:
            say(f"mirror: {self._done} is in {self._store.place}")
        return done

    def _discard(self, *offers: Offer | None) -> None:
        """Remove the files of offers that nobody will send; not of the one that is on its way."""
        for offer in offers:
            if offer is not None and offer is not self._current:
                with contextlib.suppress(OSError):
                    remove(offer.folder)

    def _work(self) -> None:
        """Send what there is, until it is told to end."""
        delay_s = FIRST_WAIT_S
        while self._next():
            sent = self._sent()
            self._busy_since_s = time.monotonic()
            try:
                self._send()
            except TakenOver as by:
                self._lost(by)
                break
            except Exception as error:  # of several libraries: none of them may stop training
                delay_s = FIRST_WAIT_S if self._sent() > sent else delay_s
                self._busy_since_s = 0.0
                self._failed(error)
                self._rest(delay_s)
                delay_s = min(2 * delay_s, MOST_WAIT_S)
            else:
                delay_s, self._busy_since_s = FIRST_WAIT_S, 0.0
                self._not_before_s = time.monotonic() + self._store.pause_s
                self._caught_up()
        with contextlib.suppress(OSError):
            remove(beside(self._run.leaving, DRAFT))

    def _sent(self) -> int:
        return len(self._first_sent) + (len(self._current.sent) if self._current else 0)

    def _rest(self, seconds: float) -> None:
        """Wait before the next try; where it is to close, for a moment only."""
        with self._changed:
            if not self._closing:
                self._changed.wait_for(lambda: self._closing, seconds)
            else:
                self._changed.wait_for(lambda: self._abandoned, min(seconds, FIRST_WAIT_S))

    def _next(self) -> bool:
        """Wait until there is something to send, and take it as the current one; False where it is to end."""
        with self._changed:
            while not self._abandoned:
                wait_s = 0.0 if self._closing else self._not_before_s - time.monotonic()
                if wait_s <= 0 and (self._pending or self._current or not self._began):
                    self._take()
                    return True
                if self._closing:
                    return False
                self._changed.wait(wait_s if wait_s > 0 else None)
        return False

    def _take(self) -> None:
        """What is to be sent now: an offer that is half there, unless time is short; else the best, then the newest."""
        current, self._current = self._current, None
        if current and self._pending.get(current.name) is not current:
            if current.sent and not self._closing:
                self._current = current
                return
            self._discard(current)
        newest = self._pending.get(self._newest)
        best = self._pending.get(newest.best) if newest else None
        self._current = best or newest or next(iter(self._pending.values()), None)

    def _send(self) -> None:
        """What is to be there before, then the current offer, then what need not be there any more goes."""
        if not self._owns:
            self._claim(late=True)
        self._check()
        if not self._began:
            self._send_beginning()
            self._began = True
        if offer := self._current:
            self._send_offer(offer)
            with self._changed:
                self._done = max(self._done, offer.name, key=lambda name: step_of(name) if name else -1)
                if self._pending.get(offer.name) is offer:
                    del self._pending[offer.name]
                self._current = None
                self._discard(offer)

    def _send_beginning(self) -> None:
        """recipe.yaml, ancestor/, scores/ (another machine's would have other bits), data/ with its record last; what
        is there already is not sent again.
        """
        run, files = self._run, dict[str, Source]()
        there = {*self._store.names()}
        recipe = run.recipe.read_bytes()
        if self._store.read(RECIPE) != recipe:
            files[RECIPE] = recipe
        ancestor = run.ancestor
        if ancestor.is_dir() and f"{ANCESTOR}/{DIGESTS}" not in there:
            digests = digest_folder(ancestor) | {
                said: file_entry(ancestor / said) for said in (RECORD, PROOFS) if (ancestor / said).is_file()
            }  # fmt: skip
            files |= {f"{ANCESTOR}/{name}": ancestor / name for name in digests}
            files[f"{ANCESTOR}/{DIGESTS}"] = (json.dumps(digests, indent=1) + "\n").encode()
        for stage in (run.scores, run.data) if is_own(run.scores) else (run.data,):
            last = f"{stage.name}/{RECORD}"
            if self._store.read(last) != (stage / RECORD).read_bytes():
                if last in there:
                    self._store.delete([stage.name], RECORD)
                    self._first_sent = set()
                names = [*parsed(stage).outputs, *([PROOFS] if (stage / PROOFS).is_file() else [])]
                files |= {f"{stage.name}/{name}": stage / name for name in [*names, RECORD]}
        if files:
            self._store.put(files, last if last in files else [*files][-1], self._check, self._first_sent)

    def _send_offer(self, offer: Offer) -> None:
        """Send one. Another of its name that is whole there stays so until the last file of this one replaces its."""
        there = {*self._store.names(CHECKPOINTS)}
        if not offer.sent:
            before = self._store.read(offer.last) if offer.last in there else None
            if offer.is_in(before):
                return self._prune(offer, there)
            offer.named(anew=before is not None)
        self._store.put(offer.files, offer.last, self._check, offer.sent)
        if any(name.startswith(f"{offer.place}/") for name in there - offer.files.keys()):
            self._store.delete([offer.place], "", keep=offer.files)
        return self._prune(offer, there)

    def _prune(self, offer: Offer, there: set[str]) -> None:
        """Delete what is older and not to be kept. A newer one is another's or will be written anew, and stays."""
        with self._changed:
            keep = {*self._keep, offer.best, *self._pending}
        steps = {name.split("/")[1] for name in there if name.startswith(f"{CHECKPOINTS}/step-")}
        old = [step for step in steps - keep if step[5:].isdecimal() and step_of(step) < step_of(offer.name)]
        if old:
            self._store.delete([f"{CHECKPOINTS}/{step}" for step in sorted(old, key=step_of)], DIGESTS)

    def _claim(self, late: bool = False) -> None:
        """Write owner.json and see whether it is ours. Raises TakenOver.

        `late`: while training goes on. Another machine that has started since then owns it.
        """
        found = self._owner()
        if late and found and found["token"] != self._token and str(found.get("since")) > self._since:
            raise TakenOver(_in_words(found))
        self._generation = (found["generation"] if found else 0) + 1
        self._write_owner()
        if (now := self._owner()) and now["token"] != self._token:
            raise TakenOver(_in_words(now))
        self._owns = True

    def _check(self) -> None:
        """Raise TakenOver where the mirror is another's by now; called before the last file of what is sent."""
        if self._abandoned:
            raise TimeoutError("there was no more time")
        found = self._owner()
        if found and found["token"] != self._token and found["generation"] >= self._generation:
            raise TakenOver(_in_words(found))
        if found and found["token"] == self._token:
            return
        self._write_owner()
        if not found:  # deleted, or of a drive that was exchanged: then other files are gone too
            self._began, self._first_sent = False, set()
            if self._current:
                self._current.sent.clear()
            raise FileNotFoundError(f"{OWNER} was gone, so all is sent anew")

    def _write_owner(self) -> None:
        said: dict[str, Any] = {
            "generation": self._generation, "token": self._token, "host": socket.gethostname(), "pid": os.getpid(),
            "since": self._since,
        }  # fmt: skip
        content = (json.dumps(said, indent=1) + "\n").encode()
        self._store.put({OWNER: content}, OWNER, lambda: None, set())

    def _owner(self) -> dict[str, Any] | None:
        """What owner.json says; None where there is none, or one that cannot be read."""
        try:
            found = json_object(self._store.read(OWNER) or b"")
            return {**found, "generation": int(found["generation"]), "token": str(found["token"])}
        except OTHER_JSON:
            return None

    def _lost(self, by: TakenOver) -> None:
        self.taken_over = str(by)
        warn(f"mirror: another machine goes on with this run ({by}): nothing more is written to {self._store.place}")

    def _failed(self, error: Exception) -> None:
        """Say why nothing gets there: once, until it has caught up, and not again and again where it fails by turns."""
        self._failing = reason(error)
        if self._is_told or self._abandoned or time.monotonic() - self._told_s < SAY_AGAIN_S:
            return
        self._is_told, self._told_s = True, time.monotonic()
        warn(f"mirror: {self._store.place} takes nothing ({self._failing}); training goes on, and it is tried again")

    def _caught_up(self) -> None:
        """Say that all is there, where it was said before that nothing got there."""
        with self._changed:
            if self._pending:
                return
        told, self._failing, self._is_told = self._is_told, "", False
        if told and not self._abandoned:
            say(f"mirror: {self._store.place} has caught up{self._done and f', with {self._done}'}")


def _refuse_one_disk(store: Store, run: Run) -> None:
    """Raise RecipeError where the mirror and the run folder lie in one another."""
    here = run.path.resolve()
    if store.folder and (store.folder.is_relative_to(here) or here.is_relative_to(store.folder)):
        what = f"checkpoint.mirror: {store.place} and the run folder {run.path} lie in one another"
        raise RecipeError(what, fix="name a place on another disk, or another --run-dir")


def _in_words(owner: Mapping[str, Any]) -> str:
    return (
        f"{owner.get('host')}, process {owner.get('pid')}, since {owner.get('since')}, "
        f"generation {owner['generation']}"
    )  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
