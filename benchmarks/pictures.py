"""The pictures in docs/, from a finished run: the chat's page with an answer, and the report on a phone.

usage: python benchmarks/pictures.py RUN [QUESTION]    (such as runs/demo; writes docs/chat.png and report-phone.png)
"""

import base64
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

import tunesmith

DOCS = Path(__file__).parents[1] / "docs"
QUESTION = "On which port does the chat page run?"
PHONE = {"width": 390, "height": 844}  # CSS pixels of a common phone


def take_chat(browser: Browser, run: str, question: str) -> None:
    """The page as it stands when the answer is there, from the system prompt on."""
    with tunesmith.chat(run) as chat:
        page = browser.new_page(viewport={"width": 1100, "height": 760})
        page.goto(chat.url)
        page.locator("textarea").fill(question)
        page.keyboard.press("Enter")
        page.get_by_label("Assistant message with actions").get_by_role("button", name="Regenerate").wait_for()
        page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
        page.mouse.move(550, 300)
        page.mouse.wheel(0, -2000)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # the scroll, and what fades
        page.screenshot(path=DOCS / "chat.png")
        page.close()


def take_report(browser: Browser, run: str) -> None:
    """The top of the page and its answers, side by side."""
    report = tunesmith.compare([run, "base"], Path(run) / "report.html")
    page = browser.new_page(viewport=PHONE, is_mobile=True)
    page.goto(report.absolute().as_uri())
    shots = [page.screenshot()]
    page.evaluate("document.querySelector('.answers').scrollIntoView()")
    shots.append(page.screenshot())
    images = "".join(f"<img src='data:image/png;base64,{base64.b64encode(shot).decode()}'>" for shot in shots)
    page.close()
    both = browser.new_page(viewport={"width": 2 * PHONE["width"] + 48, "height": PHONE["height"] + 32})
    both.set_content(
        f"<style>body {{ margin: 0; display: flex; gap: 16px; padding: 16px; background: #9aa3af }}</style>{images}"
    )
    both.screenshot(path=DOCS / "report-phone.png")
    both.close()


def main() -> None:
    """Both pictures of the run that is named."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take_chat(browser, sys.argv[1], " ".join(sys.argv[2:]) or QUESTION)
        take_report(browser, sys.argv[1])
        browser.close()


if __name__ == "__main__":
    main()
