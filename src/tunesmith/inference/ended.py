"""Why a process that answers has ended, in words: its exit code tells what is to blame."""

import signal

from tunesmith.errors import ResourceError

MAKE_ANEW = (
    "make the GGUF file anew: delete gguf/ in its run and type `tunesmith export RUN`; or fetch it again, if it is not "
    "from a run"
)
"""What helps where a file is damaged: while it has its size its stage stands, and export leaves it as it is."""
MAKE_AGAIN = f"{MAKE_ANEW}; if that does not help, report it to xllamacpp"
CAUSES: dict[int, tuple[str, str]] = {
    signal.SIGKILL: (
        "it was killed, as the system does without memory",
        "free some memory, or take a smaller GGUF type",
    ),
    signal.SIGABRT: ("llama.cpp gave up", MAKE_AGAIN),
    signal.SIGSEGV: ("llama.cpp crashed", MAKE_AGAIN),
    signal.SIGBUS: ("its file was cut or could not be read", MAKE_ANEW),
    signal.SIGILL: (
        "the processor lacks instructions that llama.cpp was built with",
        "build it on this machine: pip install --force-reinstall --no-binary xllamacpp xllamacpp",
    ),
}
"""Signal, what it means here, and the fix."""
SILENT = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)
"""Ends that nothing tells of: what was printed before is of something else, such as a grammar that was asked for."""
SHELL = 128  # a shell between us and the process makes its signal n the code 128 + n


def ended(name: str, code: int, printed: str) -> ResourceError:
    """The error for a process that answers with `name` and ended with `code`; `printed` to standard error.

    What was printed is a note of the error; its last line, the reason, is in the error itself.
    """
    number = -code if code < 0 else code - SHELL
    cause, fix = CAUSES.get(number) or _other(code)
    last = "" if number in SILENT else printed.strip().rpartition("\n")[2].strip()
    reason = "; ".join(part for part in (cause, last) if part)
    error = ResourceError(f"the process that answers with {name} ended with code {code}: {reason}", fix=fix)
    if printed.strip():
        error.add_note(printed.strip())
    return error


def _other(code: int) -> tuple[str, str]:
    if code < 0:
        return f"it was ended by signal {-code} ({signal.strsignal(-code)})", "start it again"
    return "Python ended it", "install tunesmith again; if that does not help, report it with all that was printed"
