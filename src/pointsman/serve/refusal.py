"""Answers of the gateway's own that are no success, in the shape that OpenAI's clients expect."""

import json
from dataclasses import dataclass

JSON = (b"content-type", b"application/json")


@dataclass
class RefusalError(Exception):
    """A request that is not answered by a model.

    Args:
        status: of HTTP.
        message: one line for people: the rule, what was received, the way out.
        kind: OpenAI's error type, such as "invalid_request_error".
        code: for programs, such as "model_not_found".
        param: the field of the request that is at fault.
        retry_after: seconds after which it may be tried again.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None

    def __str__(self) -> str:
        return self.message

    def body(self) -> bytes:
        """The JSON text."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return json.dumps({"error": error}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of the response, without its length."""
        found = [JSON]
        if self.retry_after is not None:
            found.append((b"retry-after", str(max(1, round(self.retry_after + 0.5))).encode()))
        return found


def overloaded(message: str, retry_after: float = 1.0) -> RefusalError:
    """Too much work at once: try again later."""
    return RefusalError(503, message, "server_error", "overloaded", retry_after=retry_after)


def upstream_failed(message: str, status: int = 502) -> RefusalError:
    """No model could be reached, or none gave an answer."""
    return RefusalError(status, message, "server_error", "upstream_failed")


def fault() -> RefusalError:
    """A fault of ours; the log has what it was."""
    return RefusalError(500, "the gateway failed on this request", "server_error", "internal")
