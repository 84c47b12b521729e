"""One line of verify's table: what an invariant of a run was found to be, and why."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tunesmith.boundary import explained
from tunesmith.errors import ResourceError
from tunesmith.record import Proof

OK, FAILED, SKIPPED, NOT_YET = "ok", "FAILED", "skipped", "not yet"


@dataclass(frozen=True)
class Verdict:
    """What one check found."""

    name: str
    state: str
    """ok, FAILED, skipped or not yet."""
    says: str
    details: tuple[str, ...] = ()
    """What else there is to say, as each further file that is not as it was written."""
    proofs: tuple[Proof, ...] = ()
    """The numbers that were measured anew."""


def decided(name: str, wrong: Sequence[str], good: str, notes: Iterable[str] = ()) -> Verdict:
    """FAILED with what is wrong, the first of it in the line; else ok."""
    if wrong:
        return Verdict(name, FAILED, wrong[0], (*wrong[1:], *notes))
    return Verdict(name, OK, good, tuple(notes))


def proved(name: str, proofs: Sequence[Proof], first: str) -> Verdict:
    """The verdict of proofs that were done anew; the line shows the one whose name holds `first`."""
    limited = [proof for proof in proofs if proof.limit is not None]
    skipped = [proof for proof in limited if proof.skipped_because]
    wrong = [str(proof) for proof in limited if not proof.skipped_because and not proof.holds]
    if wrong:
        return Verdict(name, FAILED, wrong[0], tuple(wrong[1:]), tuple(proofs))
    if skipped:
        names = ", ".join(proof.name for proof in skipped)
        return Verdict(name, SKIPPED, str(skipped[0].skipped_because), (f"not proved: {names}",), tuple(proofs))
    shown = next((proof for proof in limited if first in proof.name), limited[0])
    more = f"; {len(limited) - 1} more hold" if len(limited) > 1 else ""
    return Verdict(name, OK, f"{shown}{more}".removeprefix(f"{name}, "), (), tuple(proofs))


def tried(name: str, work: Callable[[], list[Verdict]]) -> list[Verdict]:
    """What `work` finds. What it lacks of this machine (memory, disk) skips it; any other error fails it."""
    try:
        return work()
    except Exception as error:  # of a damaged file, and of any library that reads it: the table goes on
        said = explained(error)
        where = f" ({said.where})" if said.where else ""
        return [Verdict(name, SKIPPED if isinstance(said, ResourceError) else FAILED, f"{said.what}{where}")]
