"""The report: what it holds, picks, refuses and will not compare; how a browser without a network sees it."""

import json
import re
import shutil

import pytest
from playwright.sync_api import sync_playwright
from study_runs import MEASURED, SKIPPED, change, change_json, finished_run, speeds_of
from training_runs import recipe_with

import tunesmith
from tunesmith.errors import RecipeError, ResumeError
from tunesmith.evaluation.speeds import quartiles, summary
from tunesmith.files import digest_file
from tunesmith.record import Proof
from tunesmith.runs import Run
from tunesmith.study import measure
from tunesmith.study.compare import compare
from tunesmith.study.measures import LOSS, MEMORY, MEMORY_NOISE, SPEED
from tunesmith.study.models import read_models

QUIET = ["--no-sandbox", "--disable-gpu"]


@pytest.fixture(scope="module")
def runs(tiny_base, tmp_path_factory):
    """Three runs: two on the same held-out rows, one on others."""
    folder = tmp_path_factory.mktemp("runs")
    finished_run(folder / "good", tiny_base, recipe_with(), loss=2.0)
    finished_run(folder / "fast", tiny_base, recipe_with(lr=2e-2), loss=2.2, speed=90.0)
    finished_run(folder / "other", tiny_base, recipe_with(), loss=1.0, held_out=5)
    return folder


@pytest.fixture
def own(runs, tmp_path):
    """The same, for a test that changes them."""
    shutil.copytree(runs, tmp_path / "own")
    return tmp_path / "own"


def named(runs, names):
    return [name if name == "base" else str(runs / name) for name in names]


def report(runs, names, target, speeds=None):
    return compare(named(runs, names), target, speeds).read_text()


def best_of(page):
    """Title of each row with a best cell -> the columns that are marked."""
    rows = re.findall(r"<tr><th>(.*?)</th>((?:<td.*?</td>)+)</tr>", page)
    marked = {title: [' class="best"' in cell for cell in re.findall(r"<td.*?</td>", cells)] for title, cells in rows}
    return {title: [n for n, best in enumerate(cells) if best] for title, cells in marked.items() if any(cells)}


def test_page_is_one_file_with_everything(runs, tmp_path, capsys):
    page = report(runs, ["good", "fast", "base"], tmp_path / "report.html")
    assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://|@import|<script", page)
    assert "good against fast against base" in page
    assert (
        "good has the lowest held-out loss (in training, adapter on base, fp32), 2.000 against 2.200 of fast, "
        "on the same held-out rows."
    ) in page
    for text in (
        "2.0000", "0.667", "145 MB", "250 MB", ">0.10<", ">90<", "88 to 92", "12,345",
        "5 min", "Q4_K_M", "0.062", "95.3%",
        "Q4_K_M: held-out loss of the file itself 2.1235 nats, 0.765 bits per byte (2,012 positions)",
        "1 hold", "F16 = merged, mean KL in nats", "1.7e-05", "in training, adapter on base, fp32",
        "Test CPU, 2 threads, 2026-01-02 03:04", "The losses are not those of the files",
    ):  # fmt: skip
        assert text in page, text
    assert "166 tensors have rows that are no multiple of 256" in page
    assert page.count("data:image/svg+xml;base64,") == 2
    assert page.count("cut at the limit") == 3  # the second prompt, by three models
    assert 'class="card old"' not in page and "not comparable" not in page and "NOT proved" not in page
    printed = capsys.readouterr()
    assert "held-out loss" in printed.out and "good has the lowest held-out loss" in " ".join(printed.out.split())
    assert "88 to 92" in printed.out and printed.err == ""


def test_a_fork_says_what_it_began_with_and_a_run_how_often_it_was_resumed(own, tiny_base, tmp_path, capsys):
    ancestor = {"run": "/elsewhere/first-try", "step": 40, "held_out_loss": 2.1, "held_out_loss_here": 2.05}
    finished_run(own / "fork", tiny_base, recipe_with(), loss=1.9, ancestor=ancestor, interruptions=2)
    page = report(own, ["fork", "good", "base"], tmp_path / "report.html")
    began = "<tr><th>began with</th><td>the adapter of first-try after step 40</td><td>the base</td><td>-</td></tr>"
    assert began in page and "<tr><th>resumed, times</th><td>2</td><td>-</td><td>-</td></tr>" in page
    said = (
        "fork began with the adapter of another run: there the learning curve starts, and tokens and time are without"
    )
    assert said in page and said in " ".join(capsys.readouterr().out.split()) and "/elsewhere" not in page
    assert "began with" not in report(own, ["good", "base"], tmp_path / "report.html")


def test_answers_stand_side_by_side_and_are_not_read_as_html(runs, tmp_path):
    page = report(runs, ["good", "base"], tmp_path / "report.html")
    row = page[page.index("Name &lt;b&gt;one&lt;/b&gt; optimizer.") :]
    cells = re.findall(r"<span class=\"text\">(.*?)</span>", row)
    assert cells == ["answer 1 &lt;i&gt;", "base-answer 1 &lt;i&gt;"]


def test_a_difference_within_the_spread_is_none(runs, own, tmp_path):
    """A tuned model and its base of the same shape differ by noise only."""
    page = report(runs, ["good", "fast"], tmp_path / "report.html")
    assert best_of(page) == {"held-out loss, nats": [0], "bits per byte": [0], "answer tokens/s": [1]}
    scores = own / "good" / "evaluation" / "scores.json"
    for noise in (0.96, 1.0, 1.04):
        change_json(scores, **summary([speeds_of(70.0 * noise, n) for n in range(10)]))
        page = report(own, ["good", "base"], tmp_path / "report.html")
        assert best_of(page) == {"held-out loss, nats": [0], "bits per byte": [0]}
    assert "73 </td>" not in page and re.search(r"<td>73<span class=\"soft\">69 to 76</span></td>", page)


def test_what_cannot_be_told_from_the_best_is_marked_with_it(runs, tmp_path):
    models = read_models(named(runs, ["good", "fast", "base"]), None)
    assert [cell.best for cell in SPEED[2].cells(models, True)] == [False, True, False]
    slow = {name: summary([speeds_of(speed, n) for n in range(9)]) | MEASURED for name, speed in zip(
        named(runs, ["good", "fast", "base"]), (90.0, 88.0, 50.0), strict=True)}  # fmt: skip
    models = read_models(named(runs, ["good", "fast", "base"]), slow)
    assert [cell.best for cell in SPEED[2].cells(models, True)] == [True, True, False]
    assert not any(cell.best for cell in SPEED[2].cells(models, False))


@pytest.mark.parametrize(("difference", "best"), [(0.0, []), (0.9, []), (1.1, [0])])
def test_noise_of_what_has_no_spread(own, difference, best):
    change_json(own / "fast" / "evaluation" / "scores.json", peak_memory_bytes=250e6 + difference * MEMORY_NOISE)
    change(own / "fast" / "adapter", lambda r: {"counts": r["counts"] | {"held_out_loss": 2.0 + difference * 0.001}})
    models = read_models(named(own, ["good", "fast"]), None)
    for measured in (MEMORY, LOSS):
        assert [n for n, cell in enumerate(measured.cells(models, True)) if cell.best] == best, measured.title


def test_quartiles():
    assert quartiles([3.0]) == (3.0, 3.0) and quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 4.0)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"session": "two"}, "at different times; --measure measures all"),
        ({"session": None}, "at different times; --measure measures all"),
        ({"processor": "Other CPU"}, "on different processors (Other CPU, Test CPU)"),
        ({"threads": 4}, "with different numbers of threads (2, 4)"),
        ({"xllamacpp": "2027.1.1"}, "with different versions of llama.cpp (2026.10.11549, 2027.1.1)"),
    ],
)
def test_speeds_of_two_sessions_are_not_comparable(own, tmp_path, changed, why):
    change_json(own / "fast" / "evaluation" / "scores.json", **changed, peak_memory_bytes=300_000_000)
    page = report(own, ["good", "fast"], tmp_path / "report.html")
    assert f"Speeds and memory are not comparable: they were measured {why}" in page
    assert "speed, not comparable" in page and ">300 MB<" in page
    assert set(best_of(page)) == {"held-out loss, nats", "bits per byte"} and ">90<" in page


def test_losses_on_other_rows_are_not_compared(runs, own, tmp_path):
    page = report(runs, ["good", "other"], tmp_path / "report.html")
    assert "0.333 against 0.667 of good; the losses cannot be compared" in page and "only a hint" in page
    assert "Held-out losses are not comparable" in page and best_of(page) == {}
    change(
        own / "fast" / "data", lambda record: {"outputs": record["outputs"] | {"more": record["outputs"]["tokens.npy"]}}
    )
    (own / "fast" / "data" / "more").write_bytes((own / "fast" / "data" / "tokens.npy").read_bytes())
    page = report(own, ["good", "fast"], tmp_path / "report.html")  # rows that its adapter has not seen
    assert "Held-out losses are not comparable" in page
    assert (
        "fast is not all of one piece" in page
        and "adapter/ was made from another data/ than the one that is there now" in page
    )


def test_two_definitions_of_bits_per_byte_are_not_compared(own, tiny_base, tmp_path):
    finished_run(own / "new", tiny_base, recipe_with(), loss=1.5, held_out=5, bits_per_byte_definition=2)
    page = report(own, ["good", "new"], tmp_path / "report.html")
    assert "Bits per byte are not comparable: one definition counts the end-of-turn token" in page
    assert "Neither held-out losses nor bits per byte can be compared" in page and best_of(page) == {}
    assert page.count("data:image/svg+xml;base64,") == 1  # no plot of what cannot be compared
    finished_run(own / "same", tiny_base, recipe_with(), loss=1.5, bits_per_byte_definition=2)
    page = report(own, ["good", "same"], tmp_path / "report.html")
    assert "same has the lowest held-out loss" in page and best_of(page) == {"held-out loss, nats": [1]}


def test_losses_in_two_precisions_say_so(own, tiny_base, tmp_path):
    finished_run(own / "half", tiny_base, recipe_with(), loss=1.9, precision="bf16")
    page = report(own, ["good", "half"], tmp_path / "report.html")
    assert re.search(r"<th>precision</th><td>fp32</td><td>bf16</td>", page)
    assert "in training, adapter on base</th>" in page and "adapter on base, fp32" not in page


def test_equal_losses_are_called_equal(own, tiny_base, tmp_path):
    finished_run(own / "twin", tiny_base, recipe_with(), loss=2.0001)
    page = report(own, ["good", "twin"], tmp_path / "report.html")
    assert "good and twin have the same held-out loss, 2.000" in page and best_of(page) == {}


def test_one_run_alone(runs, tmp_path):
    page = report(runs, ["good"], tmp_path / "report.html")
    assert "good has a held-out loss of 2.000 (in training, adapter on base, fp32); name another run, or base" in page
    assert page.count("data:image/svg+xml;base64,") == 1  # no point of a plot with one point
    assert "not comparable" not in page and best_of(page) == {}


def test_a_run_named_twice_is_shown_once_and_two_of_one_name_by_their_paths(runs, own, tmp_path, capsys):
    page = compare([str(runs / "good"), f"{runs}/other/../good", "base", "base"], tmp_path / "r.html").read_text()
    assert "<h1>good against base</h1>" in page
    assert capsys.readouterr().err.count("is named twice, and shown once") == 2
    page = compare([str(runs / "good"), str(own / "good")], tmp_path / "r.html").read_text()
    assert f"<h1>{runs / 'good'} against {own / 'good'}</h1>" in page
    with pytest.raises(RecipeError, match="`base` alone says nothing"):
        compare(["base"], tmp_path / "r.html")


def test_skipped_proofs_are_said(own, tiny_base, tmp_path, capsys):
    finished_run(own / "big", tiny_base, recipe_with(), proofs=(SKIPPED,))
    proof = own / "big" / "gguf" / "proof.json"
    files = json.loads(proof.read_text())
    del files["F16"]["against_model"], files["Q4_K_M"]["against_F16"], files["Q4_K_M"]["tensor_types"]
    proof.write_text(json.dumps(files))
    change(own / "big" / "gguf", lambda record: {"measured": {"proof.json": digest_file(proof)}})
    page = report(own, ["big", "good"], tmp_path / "report.html")
    assert page.count("not proved: the model does not fit into memory in fp32") == 2
    assert "NOT proved: the model does not fit into memory in fp32" in page and "0 hold, 1 NOT proved" in page
    assert "NOT proved" in capsys.readouterr().out


def test_answers_of_another_adapter_have_no_loss(own, tmp_path, capsys):
    change(own / "good" / "model", lambda record: {"inputs": record["inputs"] | {"adapter": "another"}})
    page = report(own, ["good", "fast"], tmp_path / "report.html")
    assert "good is not all of one piece" in page
    assert "model/ was made from another adapter/ than the one that is there now" in page
    assert "fast has a held-out loss of 2.200" in page and "2.0000" not in page
    assert "good: model/ was made from another adapter/" in " ".join(capsys.readouterr().err.split())


def test_what_differs_from_the_recipe_is_named(own, tmp_path):
    recipe = own / "good" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_tokens: 200", "max_tokens: 20"))
    page = report(own, ["good"], tmp_path / "report.html")
    assert "evaluation/ was made with evaluate.max_tokens 200, the recipe says 20" in page


def test_a_run_without_gguf_is_compared_by_its_training(own, tmp_path):
    recipe = own / "good" / "recipe.yaml"
    recipe.write_text(re.sub(r"gguf:\n(  - .*\n)+", "gguf: []\n", recipe.read_text()))
    shutil.rmtree(own / "good" / "gguf")
    shutil.rmtree(own / "good" / "evaluation")
    page = report(own, ["good", "fast", "base"], tmp_path / "report.html")
    assert "no GGUF was asked for" in page and "good has the lowest held-out loss" in page and ">not asked<" in page


@pytest.mark.parametrize("gone", ["data", "adapter", "model", "gguf", "metrics.jsonl", "gguf/proof.json"])
def test_what_is_gone_is_left_out(own, tmp_path, gone):
    change(own / "good" / "gguf", lambda record: {"measured": {}})  # as earlier versions wrote it
    path = own / "good" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = report(own, ["good", "fast", "base"], tmp_path / "report.html")
    assert "good against fast against base" in page
    assert ("Held-out losses are not comparable" in page) == (gone == "data")


@pytest.mark.parametrize("name", ["evaluation/scores.json", "evaluation/answers.jsonl", "evaluation/base-scores.json"])
def test_what_is_not_as_it_was_written_is_named_with_the_fix(own, tmp_path, name):
    path = own / "good" / name
    path.write_bytes(b"{" * path.stat().st_size)
    with pytest.raises(ResumeError, match=rf"{name} is not as it was written") as caught:
        report(own, ["good", "base"], tmp_path / "report.html")
    assert f"delete {path.parent}, type `tunesmith evaluate {own / 'good'}`" in caught.value.fix


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy"])
def test_losses_on_rows_that_are_not_as_they_were_written_are_not_compared(own, tmp_path, name):
    path = own / "good" / "data" / name
    path.write_bytes(b"{" * path.stat().st_size)
    page = report(own, ["good", "fast"], tmp_path / "report.html")
    assert f"data/{name} is not as it was written" in page and "Held-out losses are not comparable" in page


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"F16": []}', '{"F16": {"bytes": "many"}}', '{"F16": {"against_model": {"mean_kl": "no"}}}',
             '{"F16": {"tensor_types": 3}}', "\xff", "[" * 9000]
)  # fmt: skip
def test_a_damaged_proof_of_an_earlier_version_is_named_with_the_fix(own, tmp_path, text):
    change(own / "good" / "gguf", lambda record: {"measured": {}})
    (own / "good" / "gguf" / "proof.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ResumeError, match=r"proof\.json is damaged: .") as caught:
        report(own, ["good", "base"], tmp_path / "report.html")
    assert f"type `tunesmith export {own / 'good'}`" in caught.value.fix


@pytest.mark.parametrize(("lost", "said"), [(True, "is missing"), (False, "is not as it was written")])
def test_a_proof_that_is_lost_is_named_with_what_measures_it_anew(own, tmp_path, lost, said):
    proof = own / "good" / "gguf" / "proof.json"
    proof.unlink() if lost else proof.write_text("{}")
    with pytest.raises(ResumeError, match=rf"proof\.json {said}") as caught:
        report(own, ["good", "base"], tmp_path / "report.html")
    assert caught.value.fix == f"type `tunesmith export {own / 'good'}`, which measures it anew"


def test_a_folder_in_the_place_of_a_proof_is_named(own, tmp_path):
    change(own / "good" / "gguf", lambda record: {"measured": {}})
    (own / "good" / "gguf" / "proof.json").unlink()
    (own / "good" / "gguf" / "proof.json").mkdir()
    with pytest.raises(ResumeError, match=r"proof\.json is damaged: .*directory"):
        report(own, ["good", "base"], tmp_path / "report.html")


@pytest.mark.parametrize("name", ["held_out_loss", "bits_per_byte", "tokens", "train_seconds",
                                  "bits_per_byte_definition"])  # fmt: skip
def test_a_count_that_is_no_number_is_named(own, tmp_path, name):
    change(own / "good" / "adapter", lambda record: {"counts": record["counts"] | {name: "value"}})
    with pytest.raises(ResumeError, match=r"record.json is damaged: .* is 'value', no number"):
        report(own, ["good"], tmp_path / "report.html")


@pytest.mark.parametrize("field", ["spread", "processor", "threads", "xllamacpp", "session", "measured_at", "gguf",
                                   "file_bytes", "peak_memory_bytes", "tokens_per_s", "first_token_s"])  # fmt: skip
def test_a_field_that_is_missing_is_a_dash(own, tmp_path, field):
    change_json(own / "good" / "evaluation" / "scores.json", **{field: None})
    assert "good against base" in report(own, ["good", "base"], tmp_path / "report.html")


def test_a_time_that_version_0_1_did_not_write_is_unknown(own, tmp_path):
    for name in ("scores.json", "base-scores.json"):
        change_json(own / "good" / "evaluation" / name, measured_at=None)
    page = report(own, ["good", "base"], tmp_path / "report.html")
    assert "2 threads, at an unknown time. Medians" in page


def test_counts_that_are_missing_are_a_dash(own, tmp_path):
    change(own / "good" / "adapter", lambda _: {"counts": {}})
    page = report(own, ["good", "fast", "base"], tmp_path / "report.html")
    assert "fast has a held-out loss of 2.200" in page


def test_a_cut_last_line_of_the_metrics_is_left_out(own, tmp_path):
    with (own / "good" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    assert "Learning curves" in report(own, ["good"], tmp_path / "report.html")


def test_a_damaged_line_of_the_metrics_is_named_and_left_out(own, tmp_path):
    path = own / "good" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b'{"step": 3, "lo', *lines[3:], b"\xff\xfe\n"]))
    page = report(own, ["good"], tmp_path / "report.html")
    assert "metrics.jsonl: line 4 is damaged" in page and "and 1 more; they are left out" in page
    [good] = read_models([str(own / "good")], None)
    assert [line["step"] for line in good.metrics] == [
        0,
        1,
        2,
        *range(4, 11),
        10,
    ]  # the half line took the next one with it


def test_what_is_missing_is_named_with_the_command(runs, tmp_path):
    with pytest.raises(ResumeError, match=r"nowhere is no run folder"):
        compare([str(runs / "nowhere")], tmp_path / "report.html")
    shutil.copytree(runs / "good", tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "evaluation")
    with pytest.raises(ResumeError, match="has no evaluation yet") as caught:
        compare([str(tmp_path / "early"), "base"], tmp_path / "report.html")
    assert f"tunesmith run {tmp_path / 'early'}" in caught.value.fix
    assert not (tmp_path / "report.html").exists()


def test_the_report_of_a_run_that_is_a_link_stays_one_and_the_manifest_knows_it(own, tmp_path):
    run = Run(own / "good")
    run.report.symlink_to(tmp_path / "public.html")
    assert tunesmith.compare(run.path).samefile(tmp_path / "public.html") and run.report.is_symlink()
    run.report.unlink()
    tunesmith.compare(run.path, run.path / ".." / run.path.name / "report.html")  # named, and still the run's own
    listed = json.loads(run.manifest.read_text())["files"]["report.html"]
    assert listed["sha256"] == digest_file(run.report) and not list(run.path.glob(".*draft"))


def test_speeds_that_are_measured_now_replace_the_recorded_ones(runs, tmp_path):
    names = named(runs, ["good", "base"])
    speeds = {
        name: summary([speeds_of(speed, n) for n in range(30)]) | MEASURED | {"session": "now", "rounds": 3}
        for name, speed in zip(names, (40.0, 41.0), strict=True)
    }
    page = compare(names, tmp_path / "report.html", speeds).read_text()
    assert ">40<" in page and ">70<" not in page and "in turn in 3 rounds" in page
    assert set(best_of(page)) == {"held-out loss, nats", "bits per byte"}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_whole(own, tiny_base, tmp_path, browser, width):
    long, wide = (
        " and so on" * 100,
        Proof("stored = base + update, error over what rounding may cost", 1e-9, 1.0, 3 * 10**9),
    )
    finished_run(
        own / "a-name-that-is-long-for-a-column", tiny_base, recipe_with(), proofs=(SKIPPED, wide), more=f"{long} x_"
        + "long" * 50,
    )  # fmt: skip
    report(own, ["good", "fast", "a-name-that-is-long-for-a-column", "base"], tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 844}, offline=True, is_mobile=width < 500)
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(f"file://{tmp_path / 'report.html'}")
    images = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(images) == 2 and min(images) > 300
    assert page.locator(".card").count() >= 8
    folded = page.locator("details.long")
    assert folded.count() == 1 and 100 < (closed := folded.bounding_box()["height"]) < 200  # the first six lines
    for _ in range(2):
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        for box in page.locator(".card").all():  # nothing is cut off, and nothing scrolls sideways
            assert box.evaluate("card => card.scrollWidth <= card.clientWidth + 1"), box.inner_text()
        folded.click()
    page.reload()
    folded.locator("summary").click()
    assert folded.bounding_box()["height"] > 2 * closed
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and problems == []
    page.close()


@pytest.mark.parametrize(
    ("spoilt", "page", "said"),
    [
        (None, "thesis.html", "is no report of tunesmith's"),
        (None, "", "is a folder"),
        (None, None, "is a folder"),
        ("evaluation", "report.html", "has no evaluation yet"),
    ],
)
def test_what_is_refused_is_refused_before_measuring(own, monkeypatch, spoilt, page, said):
    (own / "thesis.html").write_text("mine")
    if page is None:
        (own / "good" / "report.html").mkdir()
    if spoilt:
        shutil.rmtree(own / "fast" / spoilt)
    monkeypatch.setattr(measure, "measure_speeds", lambda names: pytest.fail("it was measured"))
    with pytest.raises((RecipeError, ResumeError), match=said):
        tunesmith.compare(named(own, ["good", "fast"]), page if page is None else own / page, measure=True)


def test_an_earlier_report_on_other_models_is_kept_and_the_same_is_replaced(own, capsys):
    first, target = own / "good", own / "good" / "report.html"
    report(own, ["good"], target)
    alone = target.read_bytes()
    report(own, ["good", "fast"], target)
    assert (first / "report-2.html").read_bytes() == alone and b"good, fast: tunesmith" in target.read_bytes()
    assert f"is kept as {first / 'report-2.html'}" in capsys.readouterr().err
    report(own, ["good", "fast"], target)
    report(own, ["good"], target)  # the pair is kept as well, under the next number
    report(own, ["good", "fast"], target)  # and one page on the run alone is enough
    assert sorted(path.name for path in first.glob("report*")) == ["report-2.html", "report-3.html", "report.html"]
