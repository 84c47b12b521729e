"""A GGUF file on the CPU: llama.cpp's own server inside this process. The one file that knows xllamacpp."""

import secrets
import struct
from pathlib import Path
from typing import Self

from tunesmith.errors import BaseError, ResourceError
from tunesmith.gguf.metadata import read_singles, refuse_big_endian
from tunesmith.inference.client import Client
from tunesmith.inference.ended import MAKE_ANEW
from tunesmith.machine import free_memory_bytes, need_utf8
from tunesmith.recipe import ChatConfig

try:
    import xllamacpp
except ImportError as error:
    if "libgomp" not in str(error):
        raise
    raise ResourceError("llama.cpp needs the system library libgomp", fix="apt-get install libgomp1") from error

OLDEST = (2026, 10, 11549)  # the build whose answers, errors and defaults this file was written against
GGUF_VERSIONS = (2, 3)  # what llama.cpp reads
EVERY_SAMPLER = sum(map(int, xllamacpp.common_params_sampling_config))
"""That all settings of sampling are ours: one that is not is taken from the file's metadata."""
PROMPT_CACHE_MIB = 256  # for conversations that lost their slot; llama.cpp's own 8192 is more than the machine has


class Engine(Client):
    """llama.cpp's server for one GGUF file, a context manager. On a free port of 127.0.0.1, with a key of its own.

    Without the key it answers nobody: a web page can send requests to any port of this machine, and llama.cpp looks
    neither at Origin nor at Host. What people and their programs ask goes through server/front.py.
    """

    def __init__(
        self, gguf: Path, *, threads: int, context: int, slots: int = 1,
        alias: str | None = None, chat: ChatConfig | None = None, own_sampling: bool = False,
    ) -> None:  # fmt: skip
        """Load `gguf`; `slots` conversations of `context` tokens each; `chat`: sampling where a request names none.

        `own_sampling`: what the file's metadata say of sampling goes before `chat`. Raises BaseError for a file that is
        no GGUF or cannot be loaded.
        """
        _check_version(xllamacpp.__version__)
        need_utf8(gguf)
        _check_gguf(gguf)
        _need_memory(gguf, context * slots)
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.model_alias = {alias or gguf.stem}
        params.port = 0  # any free one
        _close_doors(params, key := secrets.token_urlsafe(32))
        params.verbosity = 0
        params.n_ctx = context * slots  # llama.cpp divides it among the slots
        params.n_parallel = slots
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_gpu_layers = 0
        params.fit_params = False  # it would shrink the context without a word
        params.cache_ram_mib = PROMPT_CACHE_MIB
        params.default_template_kwargs = {"tools": "null"}  # the page offers tools, which would enter every prompt
        params.sampling.top_k, params.sampling.min_p = 0, 0.0  # nothing that the recipe does not say
        if chat:
            params.sampling.temp, params.sampling.top_p = chat.temperature, chat.top_p
        params.sampling.user_sampling_config = 0 if own_sampling else EVERY_SAMPLER
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise BaseError(
                f"llama.cpp cannot load {gguf.name}; the file is cut, damaged, or of a kind it does not know",
                fix=f"{MAKE_ANEW}; or check that it fits in memory", where=str(gguf),
            ) from error  # fmt: skip
        super().__init__(self._server.listening_address, gguf.name, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and free the model; running answers are cut."""
        self._server = None


def _need_memory(path: Path, tokens: int) -> None:
    """Raise ResourceError where a file and the keys and values of `tokens` do not fit: the system would kill us.

    Two numbers of 16 bits for each token, layer and width of a key-value head.
    """
    try:
        said = read_singles(path)
    except BaseError:  # llama.cpp says what is wrong with it
        return
    arch = said.get("general.architecture", "")

    def number(name: str, otherwise: int) -> int:
        found = said.get(f"{arch}.{name}", otherwise)
        return found if isinstance(found, int) else otherwise

    heads = number("attention.head_count", 1)
    width = number("attention.key_length", number("embedding_length", 0) // max(heads, 1))
    kept = 4 * tokens * number("block_count", 0) * number("attention.head_count_kv", heads) * width
    if (needed := path.stat().st_size + kept) > (free := free_memory_bytes()):
        what = f"{path.name} needs {needed / 1e9:.1f} GB of memory with {tokens:,} tokens, {free / 1e9:.1f} GB are free"
        raise ResourceError(what, fix="take a smaller GGUF type, fewer chat.slots or a smaller chat.context")


def _close_doors(params: "xllamacpp.CommonParams", key: str) -> None:
    """Nothing without the key; no page of another origin reads an answer; nothing shows or changes what is at work."""
    params.api_keys = [key]
    params.cors_origins, params.cors_origins_explicit, params.cors_credentials = "localhost", True, False
    params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = params.ui_mcp_proxy = False
    params.server_tools = []


def _check_version(version: str) -> None:
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ResourceError(f"xllamacpp is {version}, {oldest} is needed", fix=f"pip install 'xllamacpp>={oldest}'")


def _check_gguf(path: Path) -> None:
    """Raise BaseError unless the file begins as a GGUF (specification: ggml's docs/gguf.md, "File structure")."""
    try:
        with path.open("rb") as file:
            magic, version = struct.unpack("<4sI", file.read(8))
        problem = "is no GGUF file" if magic != b"GGUF" else f"is GGUF version {version}, which llama.cpp does not read"
    except struct.error:
        magic, version, problem = b"", 0, "is no GGUF file"
    except OSError as error:
        magic, version, problem = b"", 0, f"cannot be read: {error.strerror}"
    if magic == b"GGUF":
        refuse_big_endian(path, version)
    if magic != b"GGUF" or version not in GGUF_VERSIONS:
        raise BaseError(f"{path.name} {problem}", fix=f"name a .gguf file, or {MAKE_ANEW}", where=str(path))
