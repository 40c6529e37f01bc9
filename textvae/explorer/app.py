"""The explorer's page: which fields there are, and which answer each of them asks for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from textvae.errors import UserError
from textvae.evaluation.latents import active_units
from textvae.explorer import limits, pictures
from textvae.explorer.views import KINDS, STEPS, Rows, Views

ACTIVE = 0.01  # variance of a dimension's mean, as `active_units` counts
EXAMPLES = ("the cook liked the soup .", "the happy children will love the poem at the library tomorrow .")


def page(views: Views, other: Views | None = None, *, title: str = "textvae", rate: limits.Rate | None = None) -> Any:
    """Returns the page, a gradio.Blocks that is not yet served.

    Args:
        views: of the run.
        other: of a second run, for the tab that holds both side by side.
        title: of the page.
        rate: how much one client may ask for.
    """
    import gradio as gr

    guard = _Guard(rate or limits.Rate(), gr)
    first, last = (views.texts[0], views.texts[-1]) if len(views.texts) > 1 else EXAMPLES
    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.Markdown(f"## {title}\nTexts of up to {limits.CHARACTERS} characters; answers are decoded greedily.")
        if views.vae.latent_dim:
            _walk(gr, views, guard, first, last)
        _sample(gr, views, guard)
        if views.vae.latent_dim:
            _dimensions(gr, views, guard, first)
            if views.labels:
                _attributes(gr, views, guard, first)
            if len(views.texts) > 2:
                _map(gr, views, guard)
                _latents(gr, views, guard)
        else:
            gr.Markdown("This run is a language model: it has no latents, and there is nothing to walk or to map.")
        if other is not None:
            _side_by_side(gr, views, other, guard, first, last)
    return blocks


class _Guard:
    """Wraps an answer: the client's rate is counted, and a mistake becomes a sentence in the page."""

    def __init__(self, rate: limits.Rate, gr: Any) -> None:
        self.rate, self.gr = rate, gr

    def __call__(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        gr = self.gr

        @functools.wraps(answer)
        def guarded(*values: Any, **named: Any) -> Any:
            given, request = values[:-1], values[-1]
            try:
                self.rate.take(request.client.host if request and request.client else "")
                return answer(*given, **named)
            except UserError as error:
                raise gr.Error(str(error), duration=8, print_exception=False) from error

        # gradio passes the request to the parameter that is annotated so, and counts the others by the signature.
        return _with_request(guarded, answer, gr.Request)


def _with_request(guarded: Callable[..., Any], answer: Callable[..., Any], kind: type) -> Callable[..., Any]:
    parameters = [
        p
        for p in inspect.signature(answer).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    request = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
    guarded.__signature__ = inspect.Signature([*parameters, request])  # type: ignore[attr-defined]
    guarded.__annotations__ = {"request": kind}
    del guarded.__wrapped__  # type: ignore[attr-defined]
    return guarded


def _table(gr: Any, head: str, name: str, text: str = "text") -> Any:
    return gr.Dataframe(
        headers=[head, text], interactive=False, wrap=True, elem_id=name, column_widths=["90px", "auto"]
    )


def _cells(rows: Rows) -> list[list[str]]:
    return [list(row) for row in rows]


def _walk(gr: Any, views: Views, guard: _Guard, first: str, last: str) -> None:
    kinds = [kind for kind in KINDS if kind != "data" or len(views.texts) > 1]
    with gr.Tab("Walk", elem_id="tab-walk"):
        gr.Markdown("Between two sentences: the slider's place, and the whole path.")
        with gr.Row():
            with gr.Column(scale=1):
                a = gr.Textbox(first, label="First sentence", max_length=limits.CHARACTERS, elem_id="walk-first")
                b = gr.Textbox(last, label="Last sentence", max_length=limits.CHARACTERS, elem_id="walk-last")
                kind = gr.Radio(kinds, value="linear", label="Path", elem_id="walk-kind")
                button = gr.Button("Walk", variant="primary", elem_id="walk-go")
                place = gr.Slider(0, 1, value=0.5, step=1 / (STEPS - 1), label="Place", elem_id="walk-place")
                here = gr.Textbox(label="Sentence at this place", interactive=False, elem_id="walk-here")
            with gr.Column(scale=1):
                whole = _table(gr, "place", "walk-path")
        kept = gr.State([])

        def walked(a: str, b: str, kind: str, place: float) -> Any:
            rows = views.walk(a, b, kind)
            return rows, _cells(rows), _nearest(rows, place)

        inputs, outputs = [a, b, kind, place], [kept, whole, here]
        answer = guard(walked)
        gr.on([button.click, a.submit, b.submit, kind.change], answer, inputs, outputs, api_visibility="private")
        place.change(lambda rows, at: _nearest(rows, at), [kept, place], here, api_visibility="private")


def _nearest(rows: Rows, place: float) -> str:
    return min(rows, key=lambda row: abs(float(row[0]) - place))[1] if rows else ""


def _sample(gr: Any, views: Views, guard: _Guard) -> None:
    with gr.Tab("Sample", elem_id="tab-sample"):
        gr.Markdown("Sentences from draws of the prior.")
        with gr.Row():
            n = gr.Slider(1, limits.SENTENCES, value=10, step=1, label="How many", elem_id="sample-n")
            heat = gr.Slider(0.05, 3, value=1, step=0.05, label="Temperature", elem_id="sample-temperature")
            top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Nucleus (top-p)", elem_id="sample-top-p")
        with gr.Row():
            method = gr.Radio(["sample", "greedy", "beam"], value="sample", label="Method", elem_id="sample-method")
            seed = gr.Number(0, precision=0, label="Seed", elem_id="sample-seed")
        button = gr.Button("Sample", variant="primary", elem_id="sample-go")
        found = _table(gr, "no.", "sample-texts")

        def sampled(n: float, heat: float, top_p: float, method: str, seed: float) -> list[list[str]]:
            texts = views.sample(int(n), heat, top_p, method, int(seed))
            return [[str(i), text] for i, text in enumerate(texts, 1)]

        button.click(guard(sampled), [n, heat, top_p, method, seed], found, api_visibility="private")


def _dimensions(gr: Any, views: Views, guard: _Guard, first: str) -> None:
    with gr.Tab("Dimensions", elem_id="tab-dimensions"):
        gr.Markdown("One number of a sentence's latent at a time; the prior's standard deviation is 1.")
        text = gr.Textbox(first, label="Sentence", max_length=limits.CHARACTERS, elem_id="dimension-text")
        with gr.Row():
            last = views.vae.latent_dim - 1
            which = gr.Slider(0, last, value=0, step=1, label="Dimension", elem_id="dimension-which")
            value = gr.Slider(-4, 4, value=0, step=0.1, label="Value", elem_id="dimension-value")
        with gr.Row():
            before = gr.Textbox(label="Given back", interactive=False, elem_id="dimension-before")
            after = gr.Textbox(label="With the dimension at this value", interactive=False, elem_id="dimension-after")
        found = _table(gr, "value", "dimension-range")

        def moved(text: str, which: float, value: float) -> Any:
            before, after, rows = views.move(text, int(which), value)
            return before, after, _cells(rows)

        outputs = [before, after, found]
        button = gr.Button("Move", variant="primary", elem_id="dimension-go")
        events = [button.click, text.submit, which.release, value.release]
        gr.on(events, guard(moved), [text, which, value], outputs, api_visibility="private")


def _attributes(gr: Any, views: Views, guard: _Guard, first: str) -> None:
    names = list(views.labels)
    known = {name: sorted(set(values) - {""}) for name, values in views.labels.items()}
    with gr.Tab("Attributes", elem_id="tab-attributes"):
        gr.Markdown("The difference between the mean latents of two labels, added to a sentence.")
        text = gr.Textbox(first, label="Sentence", max_length=limits.CHARACTERS, elem_id="attribute-text")
        with gr.Row():
            name = gr.Dropdown(names, value=names[0], label="Attribute", elem_id="attribute-name")
            source = gr.Dropdown(known[names[0]], value=known[names[0]][0], label="From", elem_id="attribute-from")
            target = gr.Dropdown(known[names[0]], value=known[names[0]][1], label="To", elem_id="attribute-to")
            strength = gr.Slider(-2, 3, value=1, step=0.1, label="Strength", elem_id="attribute-strength")
        moved = gr.Textbox(label="Moved", interactive=False, elem_id="attribute-moved")
        found = _table(gr, "strength", "attribute-range")

        def labels_of(name: str) -> Any:
            values = known[name]
            return gr.Dropdown(values, value=values[0]), gr.Dropdown(values, value=values[1])

        def shifted(text: str, name: str, source: str, target: str, strength: float) -> Any:
            text, rows = views.attribute(text, name, source, target, strength)
            return text, _cells(rows)

        name.change(labels_of, name, [source, target], api_visibility="private")
        button = gr.Button("Move", variant="primary", elem_id="attribute-go")
        inputs = [text, name, source, target, strength]
        gr.on([button.click, strength.release], guard(shifted), inputs, [moved, found], api_visibility="private")


def _map(gr: Any, views: Views, guard: _Guard) -> None:
    with gr.Tab("Map", elem_id="tab-map") as tab:
        gr.Markdown(f"{len(views.texts):,} sentences by their posterior means. Click a place to decode it.")
        with gr.Row():
            kind = gr.Radio(["PCA", "UMAP"], value="PCA", label="Map", elem_id="map-kind")
            colour = gr.Dropdown(["none", *views.labels], value="none", label="Colour", elem_id="map-colour")
        with gr.Row():
            image = gr.Image(
                interactive=False, show_label=False, elem_id="map-image", format="png", scale=3, buttons=[]
            )
            with gr.Column(scale=2):
                text = gr.Textbox(label="Decoded", interactive=False, elem_id="map-decoded")
                found = _table(gr, "distance", "map-neighbours")

        def drawn(kind: str, colour: str, mark: tuple[float, float] | None = None) -> pictures.Chart:
            labels = None if colour == "none" else views.labels.get(colour)
            return pictures.chart(views.plane(kind).points, labels, f"{kind} of the posterior means", mark)

        def shown(kind: str, colour: str) -> Any:
            return drawn(kind, colour).image

        def clicked(kind: str, colour: str, event: Any) -> Any:
            x, y = drawn(kind, colour).place(*event.index)
            answer = views.at(kind, x, y)
            rows = [[f"{distance:.2f}", text] for distance, text in answer.neighbours]
            return drawn(kind, colour, (x, y)).image, answer.decoded, rows

        guarded = guard(clicked)
        guarded.__annotations__["event"] = gr.SelectData
        signature = guarded.__signature__  # type: ignore[attr-defined]
        parameters = [
            p.replace(annotation=gr.SelectData) if p.name == "event" else p for p in signature.parameters.values()
        ]
        guarded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        events = [tab.select, kind.change, colour.change]
        gr.on(events, guard(shown), [kind, colour], image, api_visibility="private")
        image.select(guarded, [kind, colour], [image, text, found], api_visibility="private")


def _latents(gr: Any, views: Views, guard: _Guard) -> None:
    with gr.Tab("Latents", elem_id="tab-latents") as tab:
        said = gr.Markdown(elem_id="latents-said")
        image = gr.Image(interactive=False, show_label=False, elem_id="latents-image", format="png", buttons=[])

        def shown() -> Any:
            kl, variance = views.activity()
            units = active_units(views.means, ACTIVE)
            text = (
                f"KL {float(kl.sum()):.2f} nats a sentence over {len(kl)} dimensions, of {len(views.texts):,} "
                f"sentences; {units} active units (their means vary by more than {ACTIVE}), the others pale."
            )
            return text, pictures.bars(kl, variance, ACTIVE)

        tab.select(guard(shown), None, [said, image], api_visibility="private")


def _side_by_side(gr: Any, views: Views, other: Views, guard: _Guard, first: str, last: str) -> None:
    with gr.Tab("Side by side", elem_id="tab-both"):
        gr.Markdown("The same question to both runs.")
        walks = bool(views.vae.latent_dim and other.vae.latent_dim)
        with gr.Row():
            a = gr.Textbox(first, label="First sentence", max_length=limits.CHARACTERS, elem_id="both-first")
            b = gr.Textbox(last, label="Last sentence", max_length=limits.CHARACTERS, elem_id="both-last")
        with gr.Row():
            walk = gr.Button("Walk", variant="primary", interactive=walks, elem_id="both-walk")
            sample = gr.Button("Sample", elem_id="both-sample")
        with gr.Row():
            left, right = _table(gr, "place", "both-left", "first run"), _table(gr, "place", "both-right", "second run")

        def walked(a: str, b: str) -> Any:
            return tuple(_cells(one.walk(a, b, steps=9)) for one in (views, other))

        def sampled() -> Any:
            return tuple([[str(i), text] for i, text in enumerate(one.sample(10, seed=0), 1)] for one in (views, other))

        walk.click(guard(walked), [a, b], [left, right], api_visibility="private")
        sample.click(guard(sampled), None, [left, right], api_visibility="private")
