"""Training beside its mirror: what it is given, and how long it is waited for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.training.loop import Job
from tunesmith.training.mirror import Mirror
from tunesmith.training.saved import to_keep
from tunesmith.training.stop import StopWatch

END_S = 120.0
"""How long a training waits at its end for what is on its way."""
FAILING_S = 5.0
"""The same for a mirror that takes nothing now."""


@contextmanager
def mirrored(job: Job, watch: StopWatch) -> Iterator[Mirror | None]:
    """The mirror that the recipe asks for, owned and at work, until the block is left; None where it asks for none.

    From then on `watch` stops training where another machine takes the run over.
    """
    url = job.recipe.checkpoint.mirror
    if not url:
        yield None
        return
    mirror = Mirror(url, job.run, job.recipe.name)
    mirror.claim()
    mirror.start()
    watch.taken_over = lambda: mirror.taken_over
    try:
        yield mirror
    finally:
        mirror.close(min(watch.left_s, FAILING_S if mirror.is_failing else END_S))


def offer(mirror: Mirror, job: Job, checkpoint: Path, best_step: int) -> None:
    """Hand a checkpoint that is on disk to the mirror, with the lines that it counts on."""
    metrics, samples = (p.read_bytes() if p.is_file() else b"" for p in (job.run.metrics, job.run.samples))
    keep = to_keep(job.run.checkpoints, job.recipe.checkpoint.keep, best_step)
    mirror.offer(checkpoint, metrics, samples, sorted(keep))
