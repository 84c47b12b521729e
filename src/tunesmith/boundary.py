"""The boundary of the command line: what others raise, in tunesmith's words: what, where and the fix.

What is no fault of the user's or of the machine is a fault of tunesmith's own: it is said in one line, and its
traceback is kept in a file to report. Knows the libraries by name only, so that none is loaded for an error.
"""

import contextlib
import errno
import math
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from tunesmith import __version__
from tunesmith.errors import DataError, InternalError, ResourceError, TunesmithError

CACHE = "~/.cache/tunesmith"
"""Where bases are kept, unless the environment variable TUNESMITH_CACHE names another folder."""
ANOTHER_CACHE = "set the environment variable TUNESMITH_CACHE to another folder"
ANOTHER_RUN_DIR = "put the run elsewhere with --run-dir"
WHOLE = "what was committed before is whole"
FREE = (
    "free some space and type the same again; a run can be elsewhere with --run-dir, a Space with --out, the cache "
    "with TUNESMITH_CACHE"
)
STREAMS = ("standard output", "standard error")
_PERMISSIONS = (
    "may not be written or read",
    "change its permissions; a run can also be elsewhere, with --run-dir, a Space with --out",
)
_OTHER_KIND = ("is in the way: a file stands where a folder belongs, or the other way round", "move it elsewhere")
_DRIVE = (
    "could not be written or read: its drive fails or is gone",
    f"mount or mend it and type the same again; {WHOLE}",
)
_IN_USE = ("is in use by another program", "close that, and type the same again")
_NO_MORE = ("could not be done: the system gives no more memory or processes", "end other programs, or raise `ulimit`")
REFUSED = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _PERMISSIONS),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY), _OTHER_KIND),
    **dict.fromkeys((errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT), _DRIVE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), ("cannot be opened: too many files are open", "raise `ulimit -n`")),
    **dict.fromkeys((errno.EBUSY, errno.ETXTBSY), _IN_USE),
    **dict.fromkeys((errno.ENOMEM, errno.EAGAIN), _NO_MORE),
    errno.EFBIG: (f"is too large for its drive or for `ulimit -f`; {WHOLE}", "raise the limit, or use another drive"),
    errno.ENOENT: ("is not there, or no longer", "put it back and type the same again"),
    errno.ENAMETOOLONG: ("has a name that is too long for its drive", "choose a shorter one"),
    errno.ELOOP: ("is a link that leads back to itself", "remove it"),
}
"""What the system may refuse to do with a file: what to say of it, and the fix."""
BUSY = (errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.ETXTBSY, errno.ENOMEM, errno.EAGAIN)
"""Of these, what another folder is no help against."""
NO_MEMORY = ("can't allocate memory", "out of memory", "failed to map segment", "CUBLAS_STATUS_ALLOC_FAILED",
             "std::bad_alloc", "Cannot allocate memory")  # fmt: skip
"""What libraries say in errors of any class where memory is full."""
NO_SPACE = ("No space left on device", "os error 28", "Disk quota exceeded", "Not enough disk space")
"""What libraries say in errors of any class where a disk is full."""
_SECRET = re.compile(r"hf_\w{8,}|(?<=//)[^/@\s]+(?=@)")
"""A token of the Hub; a name and password in an address."""
TELLING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""What tells a process to stop, beside Ctrl+C."""
TWICE_S = 1.0
"""A lost connection tells twice, the terminal's end and the shell's: the second does not cut what cleans up."""
OTHERS = {
    "pyarrow": "a table of the data", "tokenizers": "the base's tokenizer.json", "jinja2": "the base's chat template",
    "safetensors": "a safetensors file", "safetensors_rust": "a safetensors file", "yaml": "a YAML file",
    "json": "a JSON file", "csv": "a CSV file", "transformers": "the base", "huggingface_hub": "what the Hub gave",
    "datasets": "a data set", "zipfile": "an archive", "zlib": "an archive", "gguf": "a GGUF file",
}  # fmt: skip
"""Package whose errors may reach the boundary -> what it was reading."""


def of_cache(path: str | os.PathLike[str]) -> str:
    """What is said of a path in the cache of bases: the variable that says where it is. Empty for another path."""
    named = os.environ.get("TUNESMITH_CACHE")
    cache, place = (os.path.abspath(os.path.expanduser(each)) for each in (named or CACHE, path))
    if not f"{place}/".startswith(f"{cache.rstrip('/')}/"):
        return ""
    return f"bases are kept there, since TUNESMITH_CACHE is {named or f'not set: it is {CACHE}'}"


def without_secrets(text: str, *tokens: str | None) -> str:
    """The text without these and the Hub's token, what looks like one, and names and passwords in addresses."""
    for token in (*tokens, os.environ.get("HF_TOKEN")):
        text = text.replace(token or "\0", "***")
    return _SECRET.sub("***", text)


def explained(error: Exception) -> TunesmithError:
    """The error that says what, where and the fix. Keeps the traceback in a file where somebody should see it."""
    if isinstance(error, TunesmithError):
        return error
    ways = (_full_disk, _full_memory, _refused, _no_text, _too_deep, _not_loaded, _of_another)
    return next((said for way in ways if (said := way(error))), None) or _own(error)


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """In the block SIGTERM ends a command as Ctrl+C does, with what it cleans up."""
    numbers = (signal.SIGINT, signal.SIGTERM)  # a shell starts what goes on in the background with SIGINT ignored
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Told(KeyboardInterrupt):
    """A signal told the process to stop: what ends with Ctrl+C ends with it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def told_as_ctrl_c() -> Iterator[None]:
    """In the block of a command SIGTERM, SIGHUP and SIGUSR1 raise Told, which ends it as Ctrl+C does.

    One that is ignored, as nohup does, or that somebody handles stays so; only the main thread may set handlers.
    """
    told_s = -math.inf

    def tell(number: int, frame: FrameType | None) -> None:
        nonlocal told_s
        since_s, told_s = time.monotonic() - told_s, time.monotonic()
        if since_s > TWICE_S:
            raise Told(number)

    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in TELLING if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, tell)
    try:
        yield
    finally:
        if told_s < 0:  # else the process ends, and the second of two does not cut that either
            for number in ours:
                signal.signal(number, signal.SIG_DFL)


def interrupted_code(error: BaseException) -> int:
    """What a command ends with that an interrupt ended, by the error that came of it: 128 + the signal's number."""
    numbers = (one.number for one in _chain(error) if isinstance(one, Told))
    return 128 + next(numbers, signal.SIGINT)


def why_unread(error: Exception) -> str:
    """Why a file cannot be read, or a port not used, for a message that names it: without number, name or codec."""
    if isinstance(error, UnicodeDecodeError):
        line = error.object.count(b"\n", 0, error.start) + 1
        return f"line {line} holds what is no text in UTF-8"
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def is_full_disk(error: BaseException) -> bool:
    """Whether a disk or a quota is full, by the error or one that caused it: libraries wrap it, or say it in a text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return any(
        (isinstance(one, OSError) and one.errno in full) or any(sign in str(one) for sign in NO_SPACE)
        for one in _chain(error)
    )


def is_of_this_machine(error: BaseException) -> bool:
    """Whether what a download ended with is no fault of the network: a disk, a permission, too many files."""
    return is_full_disk(error) or any(
        isinstance(one, OSError) and one.errno in REFUSED and one.filename is not None for one in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _full_disk(error: Exception) -> TunesmithError | None:
    if not is_full_disk(error):
        return None
    files = (str(one.filename) for one in _chain(error) if isinstance(one, OSError) and one.filename)
    place = next(files, "a file, or standard output,")
    fix = "free some space or send it elsewhere, and type the same again" if place in STREAMS else FREE
    return ResourceError(f"{place} could not be written: the disk is full; {WHOLE}", fix=fix)


def _full_memory(error: Exception) -> TunesmithError | None:
    if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in NO_MEMORY):
        return None
    what = f"memory is full: {_first_line(error)}; {WHOLE}"
    return ResourceError(what, fix="end other programs, raise `ulimit -v`, or take a smaller base or GGUF type")


def _refused(error: Exception) -> TunesmithError | None:
    """What the system refused to do."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    other = (f"could not be used: {error.strerror}", f"see to it and type the same again; {WHOLE}")
    what, fix = REFUSED.get(error.errno, other)
    if isinstance(error.filename, str) and (kept := of_cache(error.filename)):
        what, fix = f"{what}; {kept}", fix if error.errno in BUSY else ANOTHER_CACHE
    return ResourceError(f"{error.filename or 'a file, or standard output,'} {what}", fix=fix)


def _no_text(error: Exception) -> TunesmithError | None:
    """A text that is in another encoding than it is read or written in."""
    if not isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return None
    found = error.object[error.start : error.start + 8]
    way = "written" if isinstance(error, UnicodeEncodeError) else "read"
    what = f"a text cannot be {way} as {error.encoding}, from {found!a} on"
    return DataError(what, fix="save files as UTF-8, and set LANG=C.UTF-8 or PYTHONUTF8=1", where=_kept(error))


def _too_deep(error: Exception) -> TunesmithError | None:
    if not isinstance(error, RecursionError):
        return None
    fix = "look for values in values hundreds deep in the recipe, the data and the base's files"
    return DataError("something is nested too deeply to be read", fix=fix, where=_kept(error))


def _not_loaded(error: Exception) -> TunesmithError | None:
    """A package that is not installed, or whose libraries are not."""
    if not isinstance(error, ImportError) or (error.name or "").split(".")[0] == "tunesmith":
        return None
    fix = "install again what this needs: `make` in the folder that you cloned, or pip install 'tunesmith[train]'"
    return ResourceError(f"{error.name or 'a package'} cannot be loaded: {_first_line(error)}", fix=fix)


def _of_another(error: Exception) -> TunesmithError | None:
    """What a library raised by itself, of what it was given to read; None if the error is not a library's."""
    package = _package(error)
    if package not in OTHERS:
        return None
    what = f"{OTHERS[package]} cannot be used: {package} says {_first_line(error)}"
    fix = "see whether the files that the recipe names are whole; if they are, report it with the file named here"
    return DataError(what, fix=fix, where=_kept(error))


def _package(error: Exception) -> str:
    """The package of an error's class; of a class that anybody raises, that of the code which did."""
    package = type(error).__module__.split(".")[0]
    if package != "builtins" or type(error) not in (Exception, ValueError, OSError, RuntimeError):
        return package
    frames = traceback.extract_tb(error.__traceback__)
    within = Path(frames[-1].filename).parts if frames else ()
    if "site-packages" not in within:
        return package
    return within[len(within) - within[::-1].index("site-packages")].removesuffix(".py")


def _own(error: Exception) -> TunesmithError:
    what = f"a fault of tunesmith's own: {type(error).__name__}: {_first_line(error)}; {WHOLE}"
    return InternalError(what, fix=f"report it with what you typed and the file {_kept(error)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _kept(error: BaseException) -> str:
    """The file that the traceback was written to, in the cache or else in the folder for what is temporary.

    Where neither can be written: the places in the source, in a line.
    """
    head = f"tunesmith {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv[1:]}\n\n"
    text = head + "".join(traceback.format_exception(error))
    text = without_secrets(text)
    cache = os.path.expanduser(os.environ.get("TUNESMITH_CACHE") or CACHE)
    for folder in (cache, tempfile.gettempdir):
        try:
            place = Path(folder if isinstance(folder, str) else folder(), "faults")
            if str(place).startswith("~"):  # a home that nobody here has
                continue
            place.mkdir(parents=True, exist_ok=True)
            file = place / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
            return str(file)
        except (OSError, ValueError):
            continue
    return " < ".join(_places(error.__traceback__)) or "no file, since none could be written"


def _places(trace: TracebackType | None) -> list[str]:
    """Where the error came from, the innermost first."""
    frames = traceback.extract_tb(trace)[-5:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
