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

    Returns:
        gradio's Blocks, served.

    Raises:
        MissingExtraError: gradio is not installed.
        UserError: the port is taken.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise MissingExtraError("gradio", "explorer", "for the explorer") from error
    from textvae.explorer.app import page

    chosen = list(texts) if texts is not None else _corpus(vae, sentences, say)
    if labels is None and vae.recipe.data.grammar is not None:
        labels = grammar_labels(chosen)
    views = Views(vae, chosen, labels)
    blocks = page(views, Views(other, chosen) if other is not None else None, title=_title(vae, other))
    blocks.queue(max_size=WAITING, default_concurrency_limit=1)
    number = _free_port(host, port)
    blocks.launch(
        server_name=host,
        server_port=number,
        share=False,
        quiet=True,
        inbrowser=browser,
        prevent_thread_lock=True,
        footer_links=[],
        max_file_size=1,
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["system-ui", "sans-serif"]),
    )
    say(f"the explorer is at http://{host}:{number} (end it with Ctrl-C)")
    if wait:
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
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


def _title(vae: TextVAE, other: TextVAE | None) -> str:
    names = [one.recipe.name for one in (vae, other) if one is not None]
    return "textvae: " + " beside ".join(names)


def _free_port(host: str, port: int | None) -> int:
    for number in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((host, number))
                return number
            except OSError as error:
                reason = error
    what = f"--port: {port}" if port is not None else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise UserError(
        f"{what} on {host} cannot be had ({reason.strerror or reason}); name another with --port and --host"
    )
