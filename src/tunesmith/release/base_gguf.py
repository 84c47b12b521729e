"""The untouched base as a GGUF file for llama.cpp, to be asked what the tuned model is asked."""

from pathlib import Path

from tunesmith import __version__
from tunesmith.files import fingerprint
from tunesmith.gguf.write import About, expected_bytes, write_gguf
from tunesmith.machine import need_disk
from tunesmith.recipe import ChatConfig, GgufType
from tunesmith.tokens.template import chat_template_with, end_of_turn_id
from tunesmith.tokens.tokenizer import load_tokenizer
from tunesmith.weights.cache import cache_folder, made_once
from tunesmith.weights.locate import LocatedBase


def export_base(base: LocatedBase, gguf_type: GgufType, chat: ChatConfig, date: str) -> Path:
    """The untouched base as a GGUF file in the cache, with the system prompt and date of a run; made once."""
    name = base.name.replace(":", "/").split("/")[-1]
    decides = [name, base.licence, base.digest, gguf_type, chat.system, chat.temperature, chat.top_p, date, __version__]
    folder, file = cache_folder() / "base-gguf" / fingerprint(decides), f"{name}-{gguf_type}.gguf"

    def write(draft: Path) -> None:
        need_disk(draft, expected_bytes(base.folder, gguf_type), f"the GGUF file of {name}")
        tokenizer = load_tokenizer(base.folder)
        template = chat_template_with(tokenizer.get_chat_template(), chat.system, date)
        about = About(name, base.name, base.licence, chat, template, end_of_turn_id(tokenizer))
        write_gguf(base.folder, draft / file, gguf_type, about)

    return made_once(folder, write) / file
