"""The report: what it holds, what it picks and why, what it refuses; and how a browser without a network sees it."""

import re
import shutil

import pytest
from playwright.sync_api import sync_playwright
from study_runs import finished_run
from training_runs import recipe_with

from tunesmith.errors import ResumeError
from tunesmith.study.compare import compare


@pytest.fixture(scope="module")
def runs(tiny_base, tmp_path_factory):
    """Three runs: two on the same held-out rows, one on others."""
    folder = tmp_path_factory.mktemp("runs")
    finished_run(folder / "good", tiny_base, recipe_with(), loss=2.0)
    finished_run(folder / "fast", tiny_base, recipe_with(), loss=2.2, tokens_per_s=90.0)
    finished_run(folder / "other", tiny_base, recipe_with(), loss=1.0, held_out=5)
    return folder


def report(runs, names, target):
    return compare([name if name == "base" else str(runs / name) for name in names], target).read_text()


def test_page_is_one_file_with_everything(runs, tmp_path, capsys):
    page = report(runs, ["good", "fast", "base"], tmp_path / "report.html")
    assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://|@import|<script", page)
    assert "good against fast against base" in page
    assert "good has the lowest held-out loss, 2.000 against 2.200 of fast, on the same held-out rows." in page
    for text in (
        "2.0000",
        "0.667",
        "145 MB",
        "250 MB",
        "0.10 s",
        ">90<",
        "12,345",
        "5 min, CPU",
        "Q4_K_M",
        "0.062",
        "95.3%",
    ):
        assert text in page, text
    assert "166 tensors have rows that are no multiple of 256" in page
    assert page.count("data:image/svg+xml;base64,") == 2
    assert page.count("cut at the limit") == 3  # the second prompt, by three models
    printed = capsys.readouterr().out
    assert "held-out loss" in printed and "good has the lowest held-out loss" in " ".join(printed.split())


def test_answers_stand_side_by_side_and_are_not_read_as_html(runs, tmp_path):
    page = report(runs, ["good", "base"], tmp_path / "report.html")
    row = page[page.index("Name &lt;b&gt;one&lt;/b&gt; optimizer.") :]
    cells = re.findall(r"<span class=\"text\">(.*?)</span>", row)
    assert cells == ["answer 1 &lt;i&gt;", "base-answer 1 &lt;i&gt;"]


def test_the_best_of_a_column_is_marked_and_a_tie_is_not(runs, tmp_path):
    page = report(runs, ["good", "fast"], tmp_path / "report.html")
    assert re.findall(r"<td class=\"best\">(.*?)</td>", page) == ["2.0000", "0.667", "90"]


def test_losses_on_other_rows_are_not_compared(runs, tmp_path):
    page = report(runs, ["good", "other"], tmp_path / "report.html")
    assert "other has the lowest bits per byte, 0.333 against 0.667 of good; the losses cannot be compared" in page
    assert "only a hint" in page


def test_one_run_alone(runs, tmp_path):
    page = report(runs, ["good"], tmp_path / "report.html")
    assert "good has a held-out loss of 2.000; name another run, or base" in page
    assert page.count("data:image/svg+xml;base64,") == 1  # no point of a plot with one point


def test_what_is_missing_is_named_with_the_command(runs, tmp_path):
    with pytest.raises(ResumeError, match=r"nowhere is no run folder"):
        compare([str(runs / "nowhere")], tmp_path / "report.html")
    shutil.copytree(runs / "good", tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "evaluation")
    with pytest.raises(ResumeError, match="has no evaluation yet") as caught:
        compare([str(tmp_path / "early"), "base"], tmp_path / "report.html")
    assert f"tunesmith evaluate {tmp_path / 'early'}" in caught.value.fix
    assert not (tmp_path / "report.html").exists()


def test_a_browser_shows_it_whole(runs, tmp_path):
    report(runs, ["good", "fast", "base"], tmp_path / "report.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900}, offline=True)
        asked, problems = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(f"file://{tmp_path / 'report.html'}")
        images = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(images) == 2 and min(images) > 300
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        for box in page.locator(".card").all():  # nothing is cut off
            assert box.evaluate("card => card.scrollWidth <= card.clientWidth + 1"), box.inner_text()
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and problems == []
        browser.close()
