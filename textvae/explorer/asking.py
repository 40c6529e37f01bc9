"""How the page asks for an answer, and what becomes of a question that has none. Needs gradio."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse
from gradio.route_utils import FnIndexInferError

from textvae.errors import UserError
from textvae.explorer import limits

Answer = Callable[..., Any]
PAGE = ("x-gradio-user", "app")  # what gradio's own page sends with each question
NOT_OURS = "the request is none of this page's"
SECONDS = 8.0  # that a message stays


class Fault(gr.Error):  # type: ignore[misc, unused-ignore]
    """What went wrong is the explorer's own: the terminal gets a traceback."""


class Page(gr.Blocks):  # type: ignore[misc, unused-ignore]
    """Blocks that refuse a request which the page itself never sends in one sentence, without a traceback."""

    async def process_api(self, *values: Any, **named: Any) -> Any:
        """Answers a request.

        Args:
            values: gradio's own.
            named: likewise.
        """
        try:
            return await super().process_api(*values, **named)
        except Fault:
            raise
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            # Answers raise nothing else (`on`), so it was gradio that could not read the request.
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise gr.Error(f"{NOT_OURS}: {what[:200]}", print_exception=False) from error


def unknown(_request: Request, _error: Exception) -> JSONResponse:
    """Answers a request for what the page does not have.

    Args:
        _request: for it.
        _error: gradio's.
    """
    return JSONResponse({"error": f"{NOT_OURS}: it has no such fn_index"}, status_code=404)


REFUSALS = {KeyError: unknown, FnIndexInferError: unknown}  # fastapi's: what gradio raises before it asks the page


def on(
    events: list[Any],
    answer: Answer,
    inputs: Any,
    outputs: Any,
    *,
    rate: limits.Rate | None,
    quiet: bool = False,
    **named: Any,
) -> None:
    """Answers events from the page alone: none of it is an interface for programs.

    Args:
        events: that ask.
        answer: takes the fields' values as they came, which it looks through itself, and the request last.
        inputs: the fields.
        outputs: where the answer goes.
        rate: counts the answers; None for those that cost nothing.
        quiet: the page says nothing of a mistake, for events that nobody means as a question.
        named: gradio's own.
    """
    # Not preprocessed: gradio's checks name no field, and print a traceback for a number that is out of range.
    named |= {"preprocess": False, "api_visibility": "private"}
    gr.on(events, _guarded(answer, rate, quiet), inputs, outputs, **named)


def _from_page(request: Any) -> bool:
    # By the queue alone: a message has no other way to the page, and would land in the terminal.
    return (
        request is not None
        and request.headers.get(PAGE[0]) == PAGE[1]
        and str(request.url.path).endswith("/queue/join")
    )


def _guarded(answer: Answer, rate: limits.Rate | None, quiet: bool) -> Answer:
    @functools.wraps(answer)  # gradio reads the signature of what is wrapped
    def guarded(*values: Any) -> Any:
        request = values[-1]
        try:
            if rate is not None:
                rate.take(request.client.host if request and request.client else "")
            return answer(*values)
        except UserError as error:
            if not _from_page(request):
                raise gr.Error(str(error), duration=SECONDS, print_exception=False) from error
            # An error would lie over every field that waits for the answer, and hide the last good one.
            if not quiet:
                gr.Warning(html.escape(str(error)), duration=SECONDS)
            return gr.skip()
        except Exception as error:
            raise Fault(f"a fault of the explorer, {type(error).__name__}: the terminal says more") from error

    return guarded
