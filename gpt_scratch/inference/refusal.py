"""The response to a request that is refused: OpenAI's form of an error."""

import json

from ..errors import one_line

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request ends with `status` and one JSON object: `{"error": {"message", "type", "param", "code"}}`.

    Args:
        param: the field that is wrong.
        code: for programs, such as `model_not_found`.
        headers: to add to the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    def body(self) -> bytes:
        """The JSON object."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": one_line(self, 500), "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()
