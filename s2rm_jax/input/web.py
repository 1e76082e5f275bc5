"""Pictures from the web: the bytes behind an address, bounded in size and time."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from http.client import HTTPException

from s2rm_jax.errors import UserError

MAX_BYTES = 50_000_000
TIMEOUT = 20.0  # seconds, for the whole of it
_CHUNK = 1 << 16


def is_url(source: object) -> bool:
    """Whether `source` is an address on the web and not a file."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch(url: str, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT) -> bytes:
    """Returns what lies at an address.

    For addresses that the person at the keyboard gives; a server must not pass on those of its visitors, who could
    reach into its own network by them.

    Args:
        url: begins with http:// or https://; redirections to other places are followed.
        max_bytes: more is not read.
        timeout: seconds until everything must be there.

    Raises:
        UserError: there is nothing at the address, it is too large, or it takes too long.
    """
    deadline = time.monotonic() + timeout
    # Some servers, Wikimedia's among them, refuse programs that do not say who they are.
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "s2rm-jax"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = bytearray()
            while chunk := answer.read1(_CHUNK):  # what has come so far, so that a slow server cannot hold us up
                content += chunk
                if len(content) > max_bytes:
                    raise UserError(f"{url} is larger than {max_bytes:,} bytes; download it and scale it down")
                if time.monotonic() > deadline:
                    raise TimeoutError
            missing = answer.length or 0
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(
            f"{url} cannot be had: the server says {error.code} {error.reason}; check the address"
        ) from error
    except TimeoutError as error:
        raise _too_slow(url, timeout) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _too_slow(url, timeout) from error
        raise UserError(f"{url} cannot be reached ({error.reason}); check the address and the network") from error
    except (HTTPException, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{url} cannot be read ({reason}); check the address") from error
    if missing:
        raise UserError(f"{url} broke off after {len(content):,} bytes; try again")
    return bytes(content)


def _too_slow(url: str, timeout: float) -> UserError:
    return UserError(f"{url} did not arrive within {timeout:g} seconds; try again, or download it first")
