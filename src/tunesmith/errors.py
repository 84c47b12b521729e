"""Every error tunesmith raises on purpose, and the exit code the command line ends with.

TunesmithError
  RecipeError      the recipe, or an argument of the command line, is wrong       (exit code 2)
  DataError        a data file, a row or a template is wrong                      (exit code 3)
  BaseError        a base model cannot be found, read or used                     (exit code 4)
  ResumeError      a checkpoint or run folder does not fit what was asked         (exit code 5)
  ProofError       two things that must be equal are not                          (exit code 6)
  ResourceError    the machine lacks disk, memory, a port or a device             (exit code 7)
  PublishError     the Hub does not take what is to be published, or must not     (exit code 8)
  InternalError    a fault of tunesmith's own, as boundary.py says it                 (exit code 70)
"""

from functools import partial
from typing import Any


class TunesmithError(Exception):
    """What is wrong, where, and what the user can do next."""

    exit_code = 1

    def __init__(self, what: str, *, fix: str, where: str = "") -> None:
        self.what, self.fix, self.where = what, fix, where
        place = f" ({where})" if where else ""
        super().__init__(f"{what}\n  fix: {fix}{place}")

    def __reduce__(self) -> tuple[Any, ...]:  # between processes: an exception is pickled by its positional arguments
        return partial(type(self), fix=self.fix, where=self.where), (self.what,), self.__dict__


class RecipeError(TunesmithError):
    """One or more recipe values or arguments are wrong."""

    exit_code = 2


class DataError(TunesmithError):
    """A data file, a row or a chat template is wrong."""

    exit_code = 3


class BaseError(TunesmithError):
    """A base model cannot be found, read or used."""

    exit_code = 4


class ResumeError(TunesmithError):
    """A checkpoint or a run folder belongs to something else."""

    exit_code = 5


class ProofError(TunesmithError):
    """Two things that must be equal are not."""

    exit_code = 6


class ResourceError(TunesmithError):
    """The machine lacks something: disk, memory, a port, a device."""

    exit_code = 7


class PublishError(TunesmithError):
    """The Hub does not take what is to be published, or it must not be published so."""

    exit_code = 8


class InternalError(TunesmithError):
    """Something that tunesmith did not foresee; `fix` names the file with the traceback."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h
