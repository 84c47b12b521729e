"""The standard streams as tunesmith needs them: open, in UTF-8 where nothing else is said, and never a traceback."""

import codecs
import contextlib
import io
import os
import sys


def flush_streams() -> None:
    """What cannot be written leads nowhere: Python would end with an error of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def have_utf8() -> None:
    """Begin again in Python's UTF-8 mode (PEP 540) where a locale says that names of files are in another encoding.

    They are what recipes say, in UTF-8. A terminal that takes another encoding goes on to get that.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    written = getattr(sys.stdout, "encoding", "ascii")
    if written != "ascii":
        os.environ.setdefault("PYTHONIOENCODING", written)
    os.execv(sys.executable, sys.orig_argv)


def have_streams() -> None:
    """Standard streams that were closed (2>&-) lead nowhere: a file of ours would be opened in their place.

    Those in ASCII are in UTF-8, as Python has them where no locale is set; a letter that another encoding lacks is
    written as its number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - as long as the process
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            encoding = "utf-8" if codecs.lookup(stream.encoding).name == "ascii" else None
            with contextlib.suppress(OSError):  # of a stream that another has put in its place
                stream.reconfigure(encoding=encoding, errors="backslashreplace" if number else stream.errors)
