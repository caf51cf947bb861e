"""A JSON request over HTTP with limits on time and size of the response, without redirects."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from ..errors import one_line
from ..watched_http import Deadline

ANSWER_BYTES = 1 << 20  # enough for a short answer and the metadata that servers add


class Unreachable(Exception):
    """No answer, for a reason that may be temporary: a connection error, a timeout, or a temporary status."""


class Unusable(Exception):
    """An answer that cannot be used: malformed, endless, too large, or a redirect."""


class Refused(Exception):
    """An error status.

    Args:
        status: HTTP status code.
        text: the server's message.
    """

    def __init__(self, status: int, text: str):
        super().__init__(f"status {status}: {one_line(text, 200)}")
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None  # becomes an HTTPError with the redirect's status


def post_json(url: str, question: Mapping[str, Any], headers: Mapping[str, str], timeout: float) -> Any:
    """Post `question` as JSON and return the parsed answer.

    Args:
        url: http or https; redirects are not followed.
        question: JSON body of the request.
        headers: additional headers; the content type is set here.
        timeout: seconds for the whole answer; a server that sends a byte now and then does not extend it.

    Raises:
        Unreachable: no connection, or no answer in time.
        Unusable: an answer that is not JSON, is compressed, exceeds ANSWER_BYTES or does not end in time, or a redirect.
        Refused: an error status.
        ValueError: the URL is neither http nor https.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError("it begins with neither http:// nor https://")
    deadline = time.monotonic() + timeout
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **headers}
    request = urllib.request.Request(url, json.dumps(question).encode("utf-8"), headers)
    try:
        with Deadline(timeout) as watched:
            answer = _read(urllib.request.build_opener(_NoRedirect, watched), request, timeout, deadline)
        return _parsed(*answer)
    except urllib.error.HTTPError as error:
        with error:
            if 300 <= error.code < 400:
                raise Unusable(f"it redirects (status {error.code}), which is not followed") from error
            raise Refused(error.code, _beginning(error)) from error
    except (OSError, http.client.HTTPException) as error:
        late = time.monotonic() >= deadline
        raise Unreachable(f"no answer within {timeout:g} s" if late else one_line(error, 200)) from error


def _read(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout: float, deadline: float
) -> tuple[bytes, str]:
    with opener.open(request, timeout=timeout) as response:
        data = bytearray()
        try:
            while chunk := response.read1(1 << 16):
                data += chunk
                if len(data) > ANSWER_BYTES:
                    raise Unusable(f"its answer has more than {ANSWER_BYTES:,} bytes")
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() < deadline:
                raise
            raise Unusable("its answer did not end in time") from error
        if time.monotonic() >= deadline:  # a connection shut down at the deadline may look like a complete answer
            raise Unusable("its answer did not end in time")
        if response.length:  # fewer bytes than Content-Length announced
            raise Unreachable(f"the connection broke off after {len(data):,} bytes")
        return bytes(data), response.headers.get("Content-Encoding", "identity")


def _parsed(data: bytes, encoding: str) -> Any:
    if encoding != "identity":
        raise Unusable(f"its answer is compressed ({one_line(encoding, 20)}), which was not asked for")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # nested too deeply, or a number with more digits than Python parses
        raise Unusable(f"its answer is not JSON: {one_line(error, 100)}") from error


def _beginning(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(2_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
