"""One recipe turns conversations into a fine-tuned open LLM, proven equal at every hand-over, served on a CPU.

From Python, in a notebook say: `load_recipe`, `run`, `chat` and `compare` (docs/api.md). They load when they are used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["__version__", "chat", "compare", "load_recipe", "run"]

if TYPE_CHECKING:
    from tunesmith.api import chat as chat
    from tunesmith.api import compare as compare
    from tunesmith.api import load_recipe as load_recipe
    from tunesmith.api import run as run


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tunesmith import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
