"""What stands in for Colab's package in its machines: a Drive that is a folder, a secret, and its proxy."""

import os
import urllib.request
from pathlib import Path
from types import SimpleNamespace

PROXY = "x-7860-colab.googleusercontent.com"
PAGES = "https://colab.research.google.com"


def _mount(place):
    Path(place, "MyDrive").mkdir(parents=True, exist_ok=True)
    print(f"Mounted at {place}")


def _iframe(port, height):
    """Ask as a browser does for a page in a frame of Colab's, and then as that page."""
    page = _asked(port, "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"})
    framed = page.headers["Content-Security-Policy"].partition("frame-ancestors")[2].partition(";")[0]
    own = {"Origin": f"https://{PROXY}", "Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}
    question = b'{"messages": [{"role": "user", "content": "What is a step?"}], "max_tokens": 4}'
    answer = _asked(port, "/v1/chat/completions", own, question)
    print(f"page {page.status}, in a frame of Colab's: {PAGES in framed}, answer {answer.status}, {height} high")


def _asked(port, path, headers, data=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Host": PROXY, **headers})
    return urllib.request.urlopen(request)


drive = SimpleNamespace(mount=_mount)
userdata = SimpleNamespace(get=lambda name: os.environ[f"SECRET_{name}"])
output = SimpleNamespace(serve_kernel_port_as_iframe=_iframe)
