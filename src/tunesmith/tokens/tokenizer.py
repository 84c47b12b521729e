"""The tokenizer of a base or a run's model, loaded from its folder, and the token ids the model knows."""

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tunesmith.errors import BaseError
from tunesmith.weights.small_files import TOKENIZER_CONFIG


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; nothing is fetched and no code of the folder runs.

    Raises BaseError if it cannot be loaded, or if it lacks the chat template or the end token that training needs.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise plain Exceptions, too, for a damaged tokenizer.json
        raise BaseError(
            f"the tokenizer cannot be loaded: {next(iter(str(error).splitlines()), type(error).__name__)}",
            fix="fetch the model again, or save its tokenizer again with transformers",
            where=str(folder),
        ) from error
    if not tokenizer.chat_template:
        fix = "use an instruct or chat model, such as builtin:smollm2-135m-instruct"
        raise BaseError("the tokenizer has no chat template", fix=fix, where=str(folder))
    if tokenizer.eos_token_id is None:
        what = f"the tokenizer has no end-of-text token: {TOKENIZER_CONFIG} is missing, or names no eos_token"
        fix = f'fetch the model again, with its {TOKENIZER_CONFIG}, or name it there, as in {{"eos_token": "</s>"}}'
        raise BaseError(what, fix=fix, where=str(folder))
    if tokenizer.is_fast:  # its file keeps how it was last used: rows would be cut, and filled up to the longest
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def embedding_rows(folder: Path) -> int | None:
    """Token ids that the model of a folder has embeddings for, by its config.json; None for a tokenizer alone.

    Raises BaseError if its config.json does not say.
    """
    path = folder / "config.json"
    if not path.exists():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if not isinstance(rows, int):
        raise BaseError("config.json has no vocab_size", fix="save the model again with transformers", where=str(path))
    return rows
