"""What an HTTP status means for a request: retry (rate limit, server error), give the request up, or stop the run."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from autointerp.llm.backend import FinalFailure, RateLimited, RequestFailed, RetryableFailure
from autointerp.redact import public_url, redact

FINAL = (400, 413, 414, 422, 431, 451)  # for this request; others may be answered
MISPLACED = (404, 405, 407, 410)  # no request will be answered here
_SPENT = re.compile(
    r"insufficient_quota|credit balance|payment required|out of credit|free_tier\w*, limit: 0\b", re.IGNORECASE
)
_BILLING = re.compile(r"billing", re.IGNORECASE)
# Rate limits name the billing page too: OpenAI's of a new account, and each one of Gemini's.
_PASSES = re.compile(r"rate[ _-]?limit|(try again|retry) (in|after)|per (second|min|hour|day)", re.IGNORECASE)
_THOUGHT = re.compile(r"max_tokens or model output limit was reached")  # OpenAI's of a model that thinks first
_KEY = re.compile(
    r"api[ _-]?key[^.]*(invalid|not valid|incorrect|expired|missing)|(invalid|incorrect) api", re.IGNORECASE
)
_FLAGGED = re.compile(r"moderation|flagged|content (policy|filter)|safety", re.IGNORECASE)


class Refused(FinalFailure):
    """HTTP 400 or 422: what the server says, and the parameter it names."""

    def __init__(self, reason: str, text: str, parameter: str | None) -> None:
        super().__init__(reason)
        self.text = text
        self.parameter = parameter

    def names(self, parameter: str) -> bool:
        """Whether the server refuses `parameter` as such, not its value amid others."""
        if self.parameter is not None:
            return self.parameter == parameter
        if not re.search(rf"\b{parameter}\b", self.text):
            return False
        return bool(re.search(r"support|unknown|unrecogni|unexpected|permitted|allowed|forbidden|deprec", self.text))


class ServerError(RetryableFailure):
    """HTTP 500. Some servers answer it to what they do not know."""


@dataclass(frozen=True)
class Failures:
    """The failures of one endpoint, in words that hold no secret."""

    base_url: str
    model: str
    api_key_env: str | None
    secrets: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return public_url(self.base_url)

    def of_status(self, status: int, headers: Mapping[str, str], body: object, parameter: str | None) -> RequestFailed:
        """What the answer with an error status means."""
        text = self.clean(body)
        reason = f"{self.where}: HTTP {status}: {text}"
        if status == 402 or (status in (400, 403, 429) and _no_credit(_one_line(body), status == 429, headers)):
            return FinalFailure(f"{reason}; the account has no credit left: add some and run again", fatal=True)
        if status == 429:
            return RateLimited(reason, retry_after(headers))
        if status == 401 or (status == 400 and _KEY.search(text)):
            return FinalFailure(
                f"{self.where} does not take the key in {self.api_key_env} (HTTP {status}): set the right one",
                fatal=True,
            )
        if status == 403:
            if _FLAGGED.search(text):
                return FinalFailure(reason)
            return FinalFailure(f"{reason}; the key in {self.api_key_env} may not use this", fatal=True)
        if status in MISPLACED:
            return FinalFailure(f"{reason}; see llm.model {self.model!r} and llm.base_url", fatal=True)
        if is_page(headers):
            return RetryableFailure(f"{self.where}: HTTP {status} with a web page: something else answers there")
        if status in (400, 422):
            more = "; set llm.answer_tokens higher" if _THOUGHT.search(text) else ""
            return Refused(reason + more, text, parameter)
        if status == 500:
            return ServerError(reason)
        if status in FINAL:
            return FinalFailure(reason)
        if 300 <= status < 400:
            place = public_url(headers.get("location", "")) or "another place"
            return RetryableFailure(f"{self.where}: HTTP {status}, it sends us to {place}: see llm.base_url")
        return RetryableFailure(reason)

    def clean(self, value: object) -> str:
        """One line of at most 300 characters, without the key."""
        text = _one_line(value)
        for secret in self.secrets:
            text = text.replace(secret, "[key]")
        text = redact(text)
        return text if len(text) <= 300 else text[:299] + "…"


def _one_line(value: object) -> str:
    """What the body of an error says, as it stands there."""
    if isinstance(value, Mapping):
        inner = value.get("error") if isinstance(value.get("error"), Mapping | str) else value
        value = inner if isinstance(inner, str) else inner.get("message") or json.dumps(inner, default=str)  # type: ignore[union-attr]
    return " ".join(str(value)[:10_000].split()) or type(value).__name__


def _no_credit(text: str, limited: bool, headers: Mapping[str, str]) -> bool:
    """Whether the account is to be paid for first; `limited`: it may be a rate limit, which passes by itself."""
    if _SPENT.search(text):
        return True
    passes = limited and (retry_after(headers) is not None or _PASSES.search(text))
    return bool(_BILLING.search(text)) and not passes


def is_page(headers: Mapping[str, str]) -> bool:
    """Whether this is a page for a browser: a proxy, a login or an error page, not the endpoint."""
    return "html" in headers.get("content-type", "").lower()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` or `retry-after` (seconds or a date); may be infinite."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif "retry-after" not in headers:
            return None
        elif re.fullmatch(r"\s*([\d.]+|inf(inity)?)\s*", headers["retry-after"], re.IGNORECASE):
            seconds = float(headers["retry-after"])
        else:
            seconds = parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(seconds) else max(0.0, seconds)
