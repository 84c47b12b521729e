"""The tokenizer of a base or a run's model, loaded from its folder."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tunesmith.errors import BaseError


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
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise BaseError(
            "the tokenizer has no chat template or no end-of-text token",
            fix="use an instruct or chat model, such as builtin:smollm2-135m-instruct",
            where=str(folder),
        )
    return tokenizer
