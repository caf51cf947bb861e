"""Error responses in OpenAI's format."""

import json

from ..errors import one_line

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """An error response with `status` and a JSON object: `{"error": {"message", "type", "param", "code"}}`.

    Args:
        param: the invalid field.
        code: machine-readable code, such as `model_not_found`.
        headers: additional response headers.
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
