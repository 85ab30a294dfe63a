"""Errors of calls over the network, in words for an operator. Pure."""


class NetworkError(Exception):
    """A call that got no answer.

    Attributes:
        remedy: an instruction for the operator, or "".
        sent_at: when the first byte of the request was sent (`time.monotonic`); ``None`` if
            nothing was sent.
        timed_out: whether the deadline ended the call.
    """

    def __init__(
        self,
        what: str,
        remedy: str = "",
        *,
        sent_at: float | None = None,
        timed_out: bool = False,
    ) -> None:
        super().__init__(what)
        self.remedy = remedy
        self.sent_at = sent_at
        self.timed_out = timed_out


class OversizeAnswerError(NetworkError):
    """The answer is larger than the caller's limit."""


class NotSentError(Exception):
    """The caller's `may_send` refused the call; nothing was sent."""


def seconds_shown(seconds: float) -> str:
    """Return *seconds* as text, to a tenth: ``10 s``, ``1.5 s``."""
    return f"{max(0.1, round(seconds, 1)):g} s"
