"""A plan in a few lines."""

from collections.abc import Iterator, Sequence

from tunesmith.command import to_type
from tunesmith.planning.look import Look
from tunesmith.planning.plan import Plan, dropped
from tunesmith.planning.steps import all_lengths, steps_of
from tunesmith.recipe import Recipe, TrainConfig
from tunesmith.tokens.order import FEW_STEPS, more_steps

SHOWN = 4
"""Reasons to drop rows that are named."""


def plan_lines(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """What the recipe will do, one line for each of: rows, steps, time and disk, and what is wrong."""
    train, about = recipe.train, "" if plan.exact else "about "
    tokens = f"{plan.tokens:,}"
    rows = sum(look.rows for look in plan.looks)
    counted = "" if all(look.exact for look in plan.looks) else about
    yield (
        f"rows: {counted}{rows:,} in {_names(plan.looks)}; {about}{plan.train_rows:,} to train on, "
        f"{'' if plan.held_out and plan.held_out.exact else about}{plan.held_out_rows:,} held out"
    )
    yield f"tokens: {about}{tokens} in an epoch; the longest row has {plan.longest:,}" + (
        f" (a guess, letters / 4: {plan.guessed_because})" if plan.guessed_because else ""
    )
    if not plan.exact:
        looked = sum(look.read for look in plan.looks)
        yield f"  from the first {looked:,} rows, extrapolated"
    if select := recipe.data.select:
        kept = f"{min(select.keep, plan.train_rows):,}" if isinstance(select.keep, int) else f"{select.keep:.0%}"
        yield f"  trained on by {select.by}: {kept} of them, and as many of the tokens, as nobody knows yet which ones"
    is_sure = plan.exact and plan.held_out and not select
    about = "" if is_sure else "about "  # a share that is held out is another one each time
    yield (
        f"steps: {about}{plan.steps:,} of {train.tokens_per_step:,} tokens, {train.epochs:g} "
        f"epoch{'' if train.epochs == 1 else 's'}; the held-out loss every {train.evaluate_every}"
    )
    yield _time(plan, recipe)
    yield f"disk: {_disk(plan)}"
    yield from _problems(plan, recipe)


def _time(plan: Plan, recipe: Recipe) -> str:
    if plan.speed is None:
        return (
            "time: not known: no run of this base on this machine yet; "
            f"`{to_type('check')} RECIPE --time` times one pass"
        )
    minutes = recipe.train.epochs * plan.tokens / plan.speed.tokens_per_s / 60
    shown = f"{minutes / 60:.1f} hours" if minutes > 120 else f"{max(1, round(minutes))} min"
    return f"time: about {shown} of training at {plan.speed.tokens_per_s:,.0f} tokens/s, {plan.speed.source}"


def _disk(plan: Plan) -> str:
    if plan.disk_bytes is None:
        return "not known: the base's weights are not on this machine"
    return f"{plan.disk_bytes / 1e9:.1f} GB at its fullest"


def _problems(plan: Plan, recipe: Recipe) -> Iterator[str]:
    looks = [*plan.looks, *([plan.held_out] if plan.held_out else [])]
    reasons = dropped(looks)
    if reasons:
        rows = sum(map(len, reasons.values()))
        of = sum(look.read for look in looks)
        yield f"dropped: {rows:,} of the {'' if plan.exact else 'first '}{of:,} rows"
        for reason, where in list(reasons.items())[:SHOWN]:
            yield f"  {len(where):,}: {reason} ({', '.join(where[:3])}{', ...' if len(where) > 3 else ''})"
        if len(reasons) > SHOWN:
            yield f"  and {len(reasons) - SHOWN} more reasons"
    if plan.cut:
        yield f"cut: {plan.cut:,} rows have more than train.max_length {recipe.train.max_length:,} tokens"
    if plan.steps < FEW_STEPS:
        lengths = all_lengths(plan.looks)

        def count(train: TrainConfig) -> int:
            return steps_of(train, plan.tokens, [min(n, train.max_length) for n in lengths], recipe.seed)

        more = more_steps(recipe.train, min(plan.longest, recipe.train.max_length), count)
        yield f"too few steps: {plan.steps} teach next to nothing, {FEW_STEPS} to 60 are a start; {more}"


def _names(looks: Sequence[Look]) -> str:
    named = [look.path.rpartition("/")[2] if look.path.startswith("/") else look.path for look in looks]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if named[3:] else "")
