"""A page in the browser to see and use a run's latent space; needs the extra `explorer`."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from textvae.api import TextVAE
from textvae.errors import MissingExtraError, UserError
from textvae.explorer.views import Views, grammar_labels

__all__ = ["Views", "launch"]

FIRST_PORT, PORTS = 7860, 100
WAITING = 32  # questions that may stand in the queue


def launch(
    vae: TextVAE,
    *,
    other: TextVAE | None = None,
    texts: Sequence[str] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    sentences: int = 2000,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = False,
    wait: bool = True,
    say: Callable[[str], None] = print,
    ready: Callable[[str], None] | None = None,
) -> Any:
    """Serves the page until it is interrupted.

    Args:
        vae: a run.
        other: a second one, held beside it.
        texts: of the map; the run's test part where absent, no map where that cannot be read.
        labels: for each attribute a label a text; the grammar's own for runs on the built-in corpus.
        sentences: of the test part at most.
        host: whom to listen to; the loopback, this machine alone, unless told otherwise.
        port: 7860 or the next free one where absent.
        browser: open the page.
        wait: until interrupted; else the server goes on beside, and `.close()` ends it.
        say: shows a line.
        ready: is given the address as soon as the page is there.

    Returns:
        gradio's Blocks, served.

    Raises:
        MissingExtraError: gradio is not installed.
        UserError: the port is taken.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from textvae.explorer.app import page
    except ModuleNotFoundError as error:
        raise MissingExtraError("gradio", "explorer", "for the explorer") from error

    chosen = list(texts) if texts is not None else _corpus(vae, sentences, say)
    if labels is None and vae.recipe.data.grammar is not None:
        labels = grammar_labels(chosen)
    views = Views(vae, chosen, labels)
    if labels and not views.labels and vae.latent_dim:
        say("no attributes: there is one label alone")
    blocks = page(views, Views(other) if other is not None else None, names=_names(vae, other))
    blocks.queue(max_size=WAITING, default_concurrency_limit=1)
    number = _serve(blocks, host, port, browser)
    address = f"http://[{host}]:{number}" if ":" in host else f"http://{host}:{number}"
    # From the line on: who reads it may end it before the next one here is reached.
    with contextlib.suppress(KeyboardInterrupt) if wait else contextlib.nullcontext():
        say(f"the explorer is at {address} (end it with Ctrl-C)")
        if ready is not None:
            ready(address)
        if wait:
            threading.Event().wait()
    if wait:
        blocks.close(verbose=False)
    return blocks


def _corpus(vae: TextVAE, at_most: int, say: Callable[[str], None]) -> list[str]:
    if not vae.latent_dim:
        return []
    for part in ("test", "validation", "train"):
        try:
            return vae.corpus_texts(part, at_most)
        except UserError as error:
            reason = error
    say(f"no map: the run's corpus cannot be read ({reason}); name one with --corpus")
    return []


def _names(vae: TextVAE, other: TextVAE | None) -> tuple[str, str]:
    """The runs' names, or their folders' where they share one."""
    names = [one.recipe.name if one is not None else "" for one in (vae, other)]
    if names[0] == names[1]:
        folders = [str(one.folder) for one in (vae, other) if one is not None and one.folder is not None]
        names = folders if len(folders) == 2 else [f"{names[0]} (1)", f"{names[1]} (2)"]
    return names[0], names[1]


def _serve(blocks: Any, host: str, port: int | None, browser: bool) -> int:
    """Serves the page at the first port that can be had, and returns it."""
    from gradio.themes import Base

    from textvae.explorer.asking import REFUSALS

    font = ["system-ui", "sans-serif"]  # the machine's own: nothing is fetched
    for number in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
                tried.bind((host, number))  # gradio tries the loopback alone
            blocks.launch(
                server_name=host,
                server_port=number,
                share=False,
                quiet=True,
                inbrowser=browser,
                prevent_thread_lock=True,
                footer_links=[],
                max_file_size=1,
                app_kwargs={"exception_handlers": REFUSALS},
                theme=Base(font=font, font_mono=font),
            )
            return number
        except OSError as error:
            reason = error
    what = f"--port: {port}" if port is not None else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise UserError(
        f"{what} on {host} cannot be had ({reason.strerror or reason}); name another with --port and --host"
    )
