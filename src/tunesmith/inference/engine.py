"""A GGUF file on the CPU: llama.cpp's own server inside this process. The one file that knows xllamacpp."""

import secrets
from pathlib import Path
from typing import Self

from tunesmith.errors import BaseError, ResourceError
from tunesmith.inference.client import Client
from tunesmith.inference.ended import MAKE_ANEW
from tunesmith.inference.fits import check_file, known_context, need_memory
from tunesmith.machine import need_utf8
from tunesmith.recipe import ChatConfig

try:
    import xllamacpp
except ImportError as error:
    if "libgomp" not in str(error):
        raise
    raise ResourceError("llama.cpp needs the system library libgomp", fix="apt-get install libgomp1") from error

OLDEST = (2026, 10, 11549)  # the build whose answers, errors and defaults this file was written against
EVERY_SAMPLER = sum(map(int, xllamacpp.common_params_sampling_config))
"""That all settings of sampling are ours: one that is not is taken from the file's metadata."""
PROMPT_CACHE_MIB = 256  # for conversations that lost their slot; llama.cpp's own 8192 is more than the machine has


class Engine(Client):
    """llama.cpp's server for one GGUF file, a context manager. On a free port of 127.0.0.1, with a key of its own.

    Without the key it answers nobody: a web page can send requests to any port of this machine, and llama.cpp looks
    neither at Origin nor at Host. What people and their programs ask goes through server/front.py.
    """

    patient = False
    """Whether it opens a file for which memory is short, which is read from disk for each token then."""

    def __init__(  # noqa: PLR0913 - each is a setting of llama.cpp's own
        self, gguf: Path, *, threads: int, context: int, slots: int = 1,
        alias: str | None = None, chat: ChatConfig | None = None, own_sampling: bool = False,
        adapter: Path | None = None,
    ) -> None:  # fmt: skip
        """Load `gguf`; `slots` conversations of `context` tokens each, or as many as the model knows; `chat`: sampling
        where a request names none.

        `own_sampling`: what the file's metadata say of sampling goes before `chat`. `adapter`: a GGUF file of one that
        is put on the model. Raises BaseError for a file that is no GGUF, is no model or cannot be loaded;
        ResourceError, before it is loaded, where memory is too short.
        """
        _check_version(xllamacpp.__version__)
        need_utf8(gguf)
        head = check_file(gguf)
        self.context = context = known_context(head, context)
        if not self.patient:
            need_memory(gguf, head, context, slots)
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
        if adapter:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
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


class PatientEngine(Engine):
    """For proofs: a file that this machine cannot answer with is proved all the same, if slowly."""

    patient = True


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
