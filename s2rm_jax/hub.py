"""Names on the Hugging Face Hub, and the errors of huggingface_hub as messages for users."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from s2rm_jax.errors import TemporaryFailure, UserError, find_fault, one_line, reason_of

HUB = "hf://"
_PART = r"[A-Za-z0-9][\w.-]*"
_REVISION = r"(?:@(\S+))?"  # a branch, a tag or a commit
_NAME = re.compile(f"({_PART}/{_PART}){_REVISION}")
_SHORT_NAME = re.compile(f"({_PART}(?:/{_PART})?){_REVISION}")  # the oldest models have no owner: bert-base-uncased


def parse_hub_name(given: str, *, may_lack_owner: bool = False) -> tuple[str, str | None] | None:
    """Return the name and the revision of "user/name" or "user/name@revision", with or without "hf://" before it.

    The revision is None if it is not given; the result is None if `given` is not a name on the Hub.
    """
    form = _SHORT_NAME if may_lack_owner else _NAME
    found = form.fullmatch(given.removeprefix(HUB))
    return (found[1], found[2]) if found else None


def is_repository(name: str) -> bool:
    """Return whether a text can be the name of a repository on the Hub, user/name."""
    return parse_hub_name(name) == (name, None)


@contextmanager
def accessing_hub(what: str, instead: str = "", *, may_be_path: bool = False) -> Iterator[None]:
    """Raise the result of `hub_error` for any error of huggingface_hub in the block, whose warnings are not logged."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns at every attempt; the error is enough
    try:
        yield
    except Exception as error:  # no network, unknown repository or revision, no access: the library raises many kinds
        raise hub_error(what, error, instead=instead, may_be_path=may_be_path) from error
    finally:
        logging.set_verbosity(verbosity)


def hub_error(
    what: str, error: Exception, retry: str = "", instead: str = "", *, may_be_path: bool = False
) -> UserError:
    """Return the UserError for a failed access to the Hugging Face Hub by huggingface_hub.

    Args:
        what: what cannot be done, such as "user/name cannot be downloaded from the Hugging Face Hub".
        error: the exception.
        retry: what the user does to try again, such as "run `hf upload ...`"; by default run the same command.
        instead: what the user can do without the Hub.
        may_be_path: whether the name may also be a mistyped path, which launchers must not try again; then the result
            is never a TemporaryFailure.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", 0)
    offline = isinstance(cause, OfflineModeIsEnabled)  # a subclass of ConnectionError
    otherwise = f"; otherwise {instead}" if instead else ""
    if not offline and (find_fault(cause) == "temporary" or status == 429 or status >= 500):
        again = retry or "run the same command again"
        kind = UserError if may_be_path else TemporaryFailure
        return kind(f"{what} ({reason_of(cause)}): {again} later{otherwise}")
    if isinstance(cause, OSError) and cause.errno:
        full = "free space there, or " if find_fault(cause) == "full" else ""
        advice = f"its cache cannot be written ({cause.strerror}); {full}set HF_HOME to another folder"
    elif offline:
        advice = "it is not in the cache, and HF_HUB_OFFLINE forbids downloading; unset it"
    elif isinstance(cause, RevisionNotFoundError):
        advice = "there is no such revision; give a branch, a tag or a commit after @"
    elif isinstance(cause, GatedRepoError) or status == 403:
        advice = "access is refused; ask for it on the page of the repository, and log in with `hf auth login`"
    elif isinstance(cause, RepositoryNotFoundError) or status in (401, 404):
        advice = "no such repository is visible; check the name, or log in with `hf auth login`"
    else:
        advice = one_line(cause)[:200].rstrip(".")  # details are on further lines
    return UserError(f"{what}: {advice}{f'; then {retry}' if retry else ''}{otherwise}")
