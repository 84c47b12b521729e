"""llama.cpp, which answers in the chat: whether it loads, and with which of the processor's instructions.

A process of its own (tries.py): on a processor without the instructions it was built with it is killed.
"""

import re
from collections.abc import Iterator
from typing import Any

import xllamacpp

from tunesmith.doctoring.finding import Finding
from tunesmith.doctoring.tries import Try, serve

FIX = "build it on this machine: pip install --force-reinstall --no-binary xllamacpp xllamacpp"


def tries_for(_: dict[str, Any]) -> Iterator[Try]:
    """The one."""
    yield Try("machine", "llama.cpp", _loaded, FIX)


def _loaded() -> Finding:
    features = re.findall(r"(\w+) = 1", xllamacpp.get_system_info())
    shown = [name for name in features if name in ("AVX2", "AVX512", "AMX_INT8", "NEON", "DOTPROD", "FMA", "F16C")]
    with_ = f", uses {', '.join(shown)}" if shown else ", without instructions for vectors: it answers slowly"
    return Finding(
        "machine", "llama.cpp", "ok" if shown else "note", f"loads{with_}", "" if shown else FIX, {"features": features}
    )


if __name__ == "__main__":
    serve(tries_for)
