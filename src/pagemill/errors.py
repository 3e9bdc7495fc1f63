"""The exception tree. Every error that a user can cause is one of these, with one readable line."""


class PageMillError(Exception):
    """Base of all errors that PageMill raises on purpose."""


class RequestError(PageMillError):
    """A request that cannot be served as it is; raised before the engine is asked.

    `param` names the offending field of the request, `status` is the HTTP status and `kind` the
    `type` of the error body.
    """

    status = 400
    kind = "BadRequestError"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidParams(RequestError):
    """A field of a request has a wrong type or value."""


class ContextTooLong(RequestError):
    """The prompt, or the prompt with the tokens asked for, exceeds the context length."""


class WrongModel(RequestError):
    """The loaded model does not do what the endpoint is for."""


class GrammarError(RequestError):
    """A schema, regular expression or grammar cannot be enforced."""


class BodyTooLarge(RequestError):
    """The request body exceeds the limit."""

    status = 413
    kind = "RequestEntityTooLarge"


class UnknownModel(RequestError):
    """The request names a model that this server does not serve."""

    status = 404
    kind = "NotFoundError"


class Unauthorized(RequestError):
    """The API key is missing or wrong."""

    status = 401
    kind = "AuthenticationError"


class OverloadedError(PageMillError):
    """The queue is full; the client should come back after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class RequestAborted(PageMillError):
    """Somebody has ended the request before it had its result."""


class EngineDeadError(PageMillError):
    """The engine has stopped; no request can be answered any more."""


class ModelLoadError(PageMillError):
    """The model cannot be loaded; the message says what is wrong and what to do."""


class ConfigError(PageMillError):
    """The server's own settings are wrong or contradict each other."""
