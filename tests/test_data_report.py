"""The report on the data: every dropped row in a list, a page that nothing breaks, conversations in the terminal."""

import fcntl
import io
import json
import os
import shutil
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from rich.console import Console
from study_runs import change
from test_chat_page import QUIET
from test_past import unpack
from tiny import save_tokenizer, write_rows
from typer.testing import CliRunner

from tunesmith import api
from tunesmith.checks.written import check_files, check_records, damaged_files, read_written
from tunesmith.cli import app
from tunesmith.data.conversation import Turn
from tunesmith.decides import kept_recipe
from tunesmith.errors import BaseError, DataError
from tunesmith.files import strangers
from tunesmith.inventory import runs_in
from tunesmith.page import share
from tunesmith.printable import visible
from tunesmith.recipe import Recipe
from tunesmith.record import output_digest, read_record
from tunesmith.runs import Run
from tunesmith.tokens import listed, shown
from tunesmith.tokens.listed import read_listed
from tunesmith.tokens.order import rows_of_epoch
from tunesmith.tokens.pack import pack
from tunesmith.tokens.prepare import prepare
from tunesmith.tokens.report import report, show
from tunesmith.tokens.rows import load_rows
from tunesmith.tokens.shown import BEGIN, END, pieces, print_shown, spread_over_lengths
from tunesmith.tokens.summary import histogram, summary_of
from tunesmith.tokens.tally import Tally, beginning, first_words
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.locate import LocatedBase

CHATS = [[f"What is {n}?", f"It is {n}."] + ["And then?", f"{n + 1}."] * (n % 3) for n in range(40)]
RTL, BELL = "\u202e", "\x07"
ODD = [
    ["<script>alert(1)</script>", "</details><b onclick=alert(1)>&amp;"],
    [f"right {RTL}txt.exe", f"so {RTL}it goes 🙂👩‍👩‍👧 e\u0301"],
    *[["Twice?", "Twice."]] * 5,
    [f"rings {BELL}\x1b[31m", "x"],
    ["half \ud83d", "x"],
    ["x " * 500_000, "y"],
    ["No answer at all"],
    ["seen in <i>evaluation</i>", "y"],
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_tokenizer(folder)
    return LocatedBase("tiny", folder, "digest", None, None)


def recipe_of(path, held_out=0.1, **sections):
    return Recipe(name="t", base="tiny", data={"sources": [{"path": str(path)}], "held_out": held_out}, **sections)


@pytest.fixture(scope="module")
def odd(base, tmp_path_factory):
    """A run with rows of every kind, and its recipe."""
    folder = tmp_path_factory.mktemp("odd")
    path = write_rows(folder / "x.jsonl", [*CHATS, *ODD])
    recipe, run = recipe_of(path, train={"tokens_per_step": 4096, "max_length": 128}), Run(folder / "run")
    prepare(recipe, run, base, ["seen in  <i>evaluation</i>"])
    return recipe, run


def loading(folder):
    """What loads the tokenizer of a folder when the page needs it."""
    return partial(load_tokenizer, folder)


def lines_of(run):
    return [json.loads(line) for line in (run.data / "dropped.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


class Page(HTMLParser):
    """The elements of a page, its text, and whether each is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.refers, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.refers += [value for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} at {self.getpos()}"

    def handle_data(self, data):
        self.text += data


def page_of(run):
    page = Page(run.data_report.read_text(encoding="utf-8"))
    assert not page.open and "script" not in page.tags
    assert all(refers == "data/dropped.jsonl" for refers in page.refers)
    return page


def test_every_dropped_row_is_a_line_that_says_where_why_and_how_it_begins(odd):
    _, run = odd
    found, counts = lines_of(run), read_record(run.data).counts
    reasons = [line["reason"] for line in found]
    assert {reason: reasons.count(reason) for reason in reasons} == counts["dropped"] and len(found) == 9
    assert counts["read"] == counts["kept"] + len(found)
    by_reason = {line["reason"]: line for line in found}
    assert by_reason["duplicate"] == {"where": "x.jsonl:47", "reason": "duplicate", "words": "Twice?",
                                      "of": "x.jsonl:43"}  # fmt: skip
    assert by_reason["is an evaluation prompt"]["words"] == "seen in <i>evaluation</i>"
    assert by_reason["no assistant turn"] == {"where": "x.jsonl:51", "reason": "no assistant turn",
                                              "words": "No answer at all"}  # fmt: skip
    assert by_reason["control characters"]["words"] == "rings \ufffd\ufffd[31m"
    assert by_reason["text that is not valid Unicode"]["words"] == "half \\ud83d"
    assert all(len(line["words"]) <= 80 for line in found)


def test_how_a_row_begins():
    assert beginning("  a\n\n b\u2028c\x85d ") == "a b c d" and beginning("") == ""
    assert beginning("ab " * 1000) == "ab " * 26 + "a…" and len(beginning("x" * 10**6)) == 80
    assert first_words([Turn("system", "s"), Turn("user", "u"), Turn("user", "v")]) == "u"
    assert first_words([Turn("system", "s")]) == "s" and first_words([]) == ""


def test_a_million_drops_or_columns_make_no_page_of_a_million(tmp_path):
    with (tmp_path / "dropped.jsonl").open("w") as file:
        tally = Tally(file)
        for n in range(3000):
            tally.drop(f"x:{n}", f"reason {n % 3}", "w" * 100)
            tally.drop(f"y:{n}", "duplicate", "w", of=f"z:{n * n % 500}")
        file.write('{"reason": "cut')
    found = read_listed(tmp_path)
    assert {reason: len(rows) for reason, rows in found.rows.items()} == dict.fromkeys(
        ["reason 0", "reason 1", "reason 2", "duplicate"], listed.SHOWN_ROWS
    )
    assert len(found.groups) == listed.SHOWN_GROUPS and {len(group.twins) for group in found.groups} == {3}
    assert [group.size for group in found.groups] == sorted((group.size for group in found.groups), reverse=True)
    many = summary_of({"dropped": {f"role {n}": 1 for n in range(1000)}}, *[no_rows()] * 2, recipe_of("x"))
    assert many.reasons()[-1] == ("975 further reasons", 975) and len(many.reasons()) == 26


def no_rows():
    return shown.TokenRows(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(1, np.int64), np.zeros(0, np.int64))


def test_the_page_says_all_of_it_and_nothing_in_a_row_is_obeyed(odd):
    _, run = odd
    page = page_of(run)
    for text in ("52", "duplicate", "-4", "7.7\xa0%", "to train on: 39", "held out: 4", "Dashed: train.max_length",
                 "seen in <i>evaluation</i>", "x.jsonl:43", "<|im_start|>", "5 conversations", "steps"):  # fmt: skip
        assert text in page.text, text
    raw = run.data_report.read_text(encoding="utf-8")
    assert RTL not in raw and BELL not in raw and "\x1b" not in raw and len(raw) < 60_000
    assert '<bdi class="t">' in raw and '<bdi class="t s">' in raw and '<bdi class=" s">' in raw
    assert "prefers-color-scheme: dark" in raw and "@media print" in raw


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)


def test_sources_and_columns_that_are_not_used_are_named(odd, tmp_path):
    recipe, run = odd
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    formats = {"a/x.jsonl": {"sharegpt": 9}, "<y>.csv": {"alpaca": 1234, "prompt-completion": 2}}
    unused = {"<y>.csv": {f"column <{n}>": 60 - n for n in range(60)}}
    change(copy.data, lambda record: {"counts": record["counts"] | {"formats": formats, "unused": unused}})
    report(recipe, copy, None, said := [].append)
    page = page_of(copy)
    for text in ("a/x.jsonl", "alpaca (1,234), prompt-completion (2)", "<y>.csv: column <0>", "and 10 more, in data/"):
        assert text in page.text, text
    assert "<y>.csv: column <49>" in page.text and "column <50>" not in page.text
    assert "  not used          60  115.4 %  <y>.csv: column <0>" in said.__self__


def test_a_browser_shows_it_on_a_desk_a_phone_and_in_the_dark(odd, browser):
    for width, scheme in ((1200, "light"), (390, "dark")):
        with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme) as context:
            page, wrong = context.new_page(), []
            page.on("dialog", lambda dialog, wrong=wrong: (wrong.append(dialog.message), dialog.dismiss()))
            page.on("request", lambda request, wrong=wrong: wrong.append(request.url))
            page.goto(f"file://{odd[1].data_report}")
            assert wrong == [f"file://{odd[1].data_report}"]
            assert page.evaluate("document.documentElement.scrollWidth") == width
            colours = page.evaluate(
                "['.t', '.plot i', 'body'].map(c => getComputedStyle(document.querySelector(c)).backgroundColor)"
            )
            assert len({*colours}) == 3 and ("rgb(15, 18, 22)" in colours) == (scheme == "dark")


def test_data_with_no_drops_and_with_one_row_and_with_none(base, tmp_path):
    run, one = Run(tmp_path / "run"), write_rows(tmp_path / "one.jsonl", [["a", "b"]])
    held = {"path": str(write_rows(tmp_path / "held.jsonl", [["c", "d"]]))}
    prepare(recipe_of(one, held_out=held), run, base, [])
    assert (run.data / "dropped.jsonl").read_bytes() == b""
    page = page_of(run)
    for text in ("No row was dropped", "1 conversations", "No row asks an evaluation prompt", "is far beyond"):
        assert text in page.text, text
    none = write_rows(tmp_path / "none.jsonl", [["only a question"]] * 3)
    with pytest.raises(DataError, match="no assistant turn: 3"):
        prepare(recipe_of(none, held_out=held), Run(tmp_path / "none"), base, [])
    assert not (tmp_path / "none" / "data.html").exists()


def test_all_rows_but_one_of_a_reason(base, tmp_path):
    rows = write_rows(tmp_path / "x.jsonl", [["a", "b"], *[["long", "x " * 3000]] * 20])
    held = {"path": str(write_rows(tmp_path / "held.jsonl", [["c", "d"]]))}
    prepare(recipe_of(rows, held_out=held), run := Run(tmp_path / "run"), base, [])
    assert "and 8 more" in page_of(run).text and "90.9\xa0%" in page_of(run).text


def test_how_full_steps_and_forward_passes_are_is_said(odd, base, tmp_path):
    recipe, run = odd
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    lengths = load_rows(run.data)[0].lengths_N.tolist()
    longest = max(lengths)
    assert 64 < longest < 256 and sum(lengths) > 1024
    train = recipe.train.model_copy(update={"tokens_per_step": 512, "micro_batch_tokens": 64})
    report(recipe.model_copy(update={"train": train}), copy, loading(base.folder), said := [].append)
    steps = rows_of_epoch(lengths, train, recipe.seed, 0)
    passes = sum(len(pack([lengths[row] for row in step], longest)) for step in steps)  # one holds the longest row
    full = [share(sum(lengths), tokens) for tokens in (len(steps) * 512, passes * longest)]
    told = (
        f"{len(steps)} steps of 512 tokens, {full[0]} full; {passes} forward passes of {longest} tokens, {full[1]} full"
    )
    assert said.__self__[-2].endswith(told)
    page = " ".join(page_of(copy).text.split())
    assert full[0] in page and full[1] in page and "more than 64 places before its own" in page


def test_another_lookahead_is_another_page(odd, tmp_path):
    recipe, run = odd
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    for lookahead in (64, 3):
        train = recipe.train.model_copy(update={"packing_lookahead": lookahead})
        report(recipe.model_copy(update={"train": train}), copy, None, lambda _: None)
        assert f"none of them more than {lookahead} places before its own" in " ".join(page_of(copy).text.split())


def test_one_step_is_no_steps(odd, tmp_path):
    recipe, run = odd
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    large = recipe.train.model_copy(update={"tokens_per_step": 65536, "micro_batch_tokens": 32768})
    report(recipe.model_copy(update={"train": large}), copy, None, said := [].append)
    assert "; 1 step of 65,536 tokens, " in said.__self__[-2] and "; 1 forward pass of 32,768" in said.__self__[-2]
    assert "full: 1 step of 65,536 tokens an epoch" in page_of(copy).text


def test_a_row_longer_than_a_step_is_said(odd, base, tmp_path):
    recipe, run = odd
    small = recipe.model_copy(update={"train": recipe.train.model_copy(update={"tokens_per_step": 16})})
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    report(small, copy, loading(base.folder), said := [].append)
    assert "no step can hold it" in page_of(copy).text and said.__self__[-2].endswith("of the tokens are supervised")


def test_an_old_run_has_a_report_with_and_without_its_base(tmp_path):
    run = Run(unpack(tmp_path / "old") / "finished")
    recipe, record, before = kept_recipe(run), read_record(run.data), digest_of(run.data)
    report(recipe, run, None, said := [].append)
    assert "tokenizer is not on this machine" in page_of(run).text
    assert said.__self__[0].startswith("41 rows read, 32 to train on, 8 held out")
    assert "kept no list" in page_of(run).text
    report(recipe, run, loading(tmp_path / "old" / "base"), lambda _: None)
    assert "5 conversations as the model sees them" in page_of(run).text
    assert read_record(run.data) == record and digest_of(run.data) == before  # the page is no part of the data
    with pytest.raises(BaseError, match="leave --show out"):
        show(run, None, 3)


def digest_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_page_is_written_again_only_where_it_would_change(odd, base, tmp_path):
    recipe, run = odd
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    made = copy.data_report.read_bytes()
    os.utime(copy.data_report, (0, 0))
    report(recipe, copy, loading(base.folder), lambda _: None)
    assert copy.data_report.stat().st_mtime == 0
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_length": 100})})
    report(other, copy, loading(base.folder), lambda _: None)
    assert copy.data_report.read_bytes() != made
    copy.data_report.unlink()
    report(recipe, copy, loading(base.folder), lambda _: None)
    assert copy.data_report.read_bytes() == made  # wherever the run is, at whatever time


def test_a_file_of_the_users_is_not_replaced(odd, base, tmp_path, capfd):
    recipe, run = odd
    copy = Run(shutil.copytree(run.path, tmp_path / "run"))
    copy.data_report.write_text("<title>mine</title>")
    report(recipe, copy, loading(base.folder), lambda _: None)
    assert copy.data_report.read_text() == "<title>mine</title>" and "not replaced" in capfd.readouterr().err
    copy.data_report.rename(tmp_path / "elsewhere")
    copy.data_report.symlink_to(tmp_path / "elsewhere")
    report(recipe, copy, loading(base.folder), lambda _: None)
    assert copy.data_report.is_symlink() and (tmp_path / "elsewhere").read_text() == "<title>mine</title>"


def test_other_words_in_the_list_are_no_other_rows(odd):
    record = read_record(odd[1].data)
    assert "dropped.jsonl" in record.outputs and "data.html" not in record.outputs
    without = {name: entry for name, entry in record.outputs.items() if name != "dropped.jsonl"}
    digest = output_digest(record)
    record.outputs["dropped.jsonl"] = {"sha256": "other", "bytes": 1}
    assert output_digest(record) == digest
    record.outputs["tokens.npy"] = {"sha256": "other", "bytes": 1}
    assert output_digest(record) != digest and len(without) == 5


def test_the_pieces_of_a_row_are_its_text_and_say_what_is_trained_on(odd, base):
    train, tokenizer = load_rows(odd[1].data)[0], load_tokenizer(base.folder)
    for row in range(len(train)):
        part = slice(train.offsets_N1[row], train.offsets_N1[row + 1])
        ids, trained = train.tokens_T[part].tolist(), train.supervised_T[part].tolist()
        found = pieces(tokenizer, ids, trained)
        assert "".join(piece.text for piece in found) == tokenizer.decode(ids)
        assert "".join(piece.text for piece in found if piece.trained) == tokenizer.decode(
            [token for token, is_trained in zip(ids, trained, strict=True) if is_trained]
        )
        specials = [piece.text for piece in found if piece.special]
        assert specials == [tokenizer.decode([token]) for token in ids if token in tokenizer.all_special_ids]


def test_of_a_long_row_its_start_and_its_end_are_shown(odd, base, monkeypatch):
    monkeypatch.setattr(shown, "HEAD", 6)
    monkeypatch.setattr(shown, "TAIL", 2)
    train = load_rows(odd[1].data)[0]
    found = shown.shown(load_tokenizer(base.folder), train, 0)
    assert len(found.parts) == 2 and found.left_out == found.tokens - 8 > 0
    console = Console(file=io.StringIO(), width=80)
    print_shown(console, found, "here")
    assert f"... {found.left_out} tokens ..." in console.file.getvalue()


def test_rows_are_spread_over_lengths(odd):
    train = load_rows(odd[1].data)[0]
    lengths = [int(train.lengths_N[row]) for row in spread_over_lengths(train, 5)]
    assert lengths == sorted(lengths) and lengths[0] == train.lengths_N.min() and lengths[-1] == train.lengths_N.max()
    assert len(set(spread_over_lengths(train, 10**6))) == len(train) and spread_over_lengths(no_rows(), 3) == []
    assert train.lengths_N[spread_over_lengths(train, 1)] == np.median(train.lengths_N)


@pytest.mark.parametrize("colour", [True, False])
def test_what_is_trained_on_is_seen_in_the_terminal(odd, base, colour):
    train, tokenizer = load_rows(odd[1].data)[0], load_tokenizer(base.folder)
    number = next(n for n in range(len(train)) if RTL in tokenizer.decode(row_ids(train, n)))
    kind = {"force_terminal": True, "color_system": "standard"} if colour else {}
    console = Console(file=io.StringIO(), width=20, **kind)
    print_shown(console, shown.shown(tokenizer, train, number), f"x{BELL}.jsonl:1")
    text = console.file.getvalue()
    assert BELL not in text and RTL not in text
    if colour:
        assert "\x1b[1;32mso \ufffdit goes" in text and BEGIN not in text
    else:
        assert f"{BEGIN}so \ufffdit goes 🙂👩‍👩‍👧 e\u0301<|im_end|>{END}" in text and "\x1b" not in text


def row_ids(rows, number):
    return rows.tokens_T[rows.offsets_N1[number] : rows.offsets_N1[number + 1]].tolist()


def test_bars_are_of_a_round_width_and_hold_every_row():
    found = histogram([1, 20, 21, 700], 1000)
    assert (found.width, found.end, sum(found.bars), found.bars[0]) == (50, 1000, 4, 3)
    assert histogram([5, 5], 2048).end == 5 and histogram([2048] * 3, 2048).bars[-1] == 3
    assert histogram([], 8).bars and sum(histogram([], 8).bars) == 0


def test_shares_and_texts_are_written_for_people():
    assert [share(*pair) for pair in ((0, 0), (0, 9), (9, 9), (1, 10**6), (999_999, 10**6), (1, 3), (6, 3))] == [
        "0 %", "0 %", "100 %", "<0.1 %", ">99.9 %", "33.3 %", "200.0 %",
    ]  # fmt: skip
    assert visible(f"a{RTL}b\x1b\ud83d\n\tc🙂") == "a\ufffdb\ufffd\ufffd\n\tc🙂"


def test_the_verb_prepares_reports_and_shows(tiny_base, tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [*CHATS, *CHATS[:3]])
    recipe = recipe_of(path, export={"gguf": []}).model_copy(update={"base": str(tiny_base)})
    run, said = Run(tmp_path / "runs" / "t"), []
    api.data(recipe, run_dir=run.path, tell=said.append)
    assert said == [f"report: {run.data_report}"]  # the numbers are prepare's
    api.data(run.path, tell=said.append)
    assert said[1].startswith("43 rows read") and said[2].split() == ["dropped", "3", "7.0", "%", "duplicate"]
    written = read_written(run)
    verdicts = check_files(written, damaged_files(written)), check_records(written)
    assert [verdict.state for verdict in verdicts] == ["ok", "ok"] and "data.html" in written.manifest
    assert not strangers(run.data, read_record(run.data).outputs) and runs_in([tmp_path / "runs"])[1] == []
    done = CliRunner().invoke(app, ["data", str(run.path), "--show", "3"])
    assert done.exit_code == 0 and done.stdout.count(f"<|im_end|>{END}") >= 3 and "report: " in done.stdout, done
    with run.lock.open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        api.data(run.path, tell=(busy := []).append)
    assert busy[0].startswith("process 4711 works in") and busy[-1].endswith("data.html")
    run.recipe.unlink()
    run.refuse_strangers()  # the page alone makes no folder foreign
