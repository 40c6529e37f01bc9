"""The explorer's page: which fields there are, and which answer each of them asks for. Needs gradio."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import gradio as gr

from textvae.errors import UserError
from textvae.evaluation.latents import active_units
from textvae.explorer import asking, limits, pictures
from textvae.explorer.asking import Answer
from textvae.explorer.views import KINDS, MAPS, METHODS, STEPS, Rows, Views

ACTIVE = 0.01  # variance of a dimension's posterior mean, as `active_units` counts
EXAMPLES = ("the cook liked the soup .", "the happy children will love the poem at the library tomorrow .")
LAST = {"trigger_mode": "always_last"}  # what is asked while an answer is on its way is answered after it
VALUES = (-4.0, 4.0)  # of the slider that moves a dimension


def page(
    views: Views,
    other: Views | None = None,
    *,
    names: tuple[str, str] = ("this run", "other run"),
    rate: limits.Rate | None = None,
) -> Any:
    """Returns the page, a gradio.Blocks that is not yet served.

    Args:
        views: of the run.
        other: of a second run, for the tab that holds both side by side.
        names: of both.
        rate: how much one client may ask for.
    """
    on = functools.partial(asking.on, rate=rate or limits.Rate())
    short = [text for text in views.texts if 0 < len(text.strip()) <= limits.CHARACTERS]
    first, last = (short[0], short[-1]) if len(short) > 1 else EXAMPLES
    title = "textvae: " + (" beside ".join(names) if other is not None else names[0])
    with asking.Page(title=title, analytics_enabled=False) as blocks:
        gr.Markdown(f"## {title}\nTexts of up to {limits.CHARACTERS} characters.")
        if views.vae.latent_dim:
            _walk(views, on, first, last)
        _sample(views, on)
        if views.vae.latent_dim:
            _dimensions(views, on, first)
            if views.labels:
                _attributes(views, on, first)
            if len(views.texts) > 2:
                _map(views, on)
                _latents(views, on)
        else:
            gr.Markdown("This run is a language model: it has no latents, and there is nothing to walk or to map.")
        if other is not None:
            _side_by_side(views, other, names, on, first, last)
    return blocks


def _table(head: str, name: str, text: str = "text") -> Any:
    return gr.Dataframe(
        headers=[head, text], interactive=False, wrap=True, elem_id=name, column_widths=["90px", "auto"]
    )


def _cells(rows: Rows) -> list[list[str]]:
    return [list(row) for row in rows]


def _numbered(texts: list[str]) -> list[list[str]]:
    return [[str(number), text] for number, text in enumerate(texts, 1)]


def _walk(views: Views, on: Answer, first: str, last: str) -> None:
    kinds = [kind for kind in KINDS if kind != "data" or len(views.texts) > 1]
    with gr.Tab("Walk", elem_id="tab-walk"):
        gr.Markdown("Between two sentences: the slider's place, and the whole path, decoded greedily.")
        with gr.Row():
            with gr.Column(scale=1):
                a = gr.Textbox(first, label="First sentence", max_length=limits.CHARACTERS, elem_id="walk-first")
                b = gr.Textbox(last, label="Last sentence", max_length=limits.CHARACTERS, elem_id="walk-last")
                kind = gr.Radio(kinds, value="linear", label="Path", elem_id="walk-kind")
                steps = gr.Slider(2, 21, value=STEPS, step=1, label="Steps", elem_id="walk-steps")
                button = gr.Button("Walk", variant="primary", elem_id="walk-go")
                place = gr.Slider(0, 1, value=0.5, step=0.01, label="Place", elem_id="walk-place")
                here = gr.Textbox(label="Sentence nearest to this place", interactive=False, elem_id="walk-here")
            with gr.Column(scale=1):
                of = gr.Textbox(label="Path of", interactive=False, lines=2, elem_id="walk-of")
                whole = _table("place", "walk-path")
        kept = gr.State(None)  # the question that was answered, and its rows

        def walked(a: str, b: str, kind: str, steps: float, kept: Any, _request: gr.Request) -> Any:
            question = (a, b, kind, steps)
            if kept and kept[0] == question:
                return gr.skip()  # a field was left as it stood
            rows = views.walk(a, b, kind, steps)
            return (question, rows), _cells(rows), f"{a.strip()}\n{b.strip()}"

        def nearest(kept: Any, place: float, _request: gr.Request) -> Any:
            wanted = limits.number(place, "place", 0, 1)
            return min(kept[1], key=lambda row: abs(float(row[0]) - wanted))[1] if kept else ""

        fields = {"inputs": [a, b, kind, steps, kept], "outputs": [kept, whole, of]}
        walk = functools.partial(on, **fields, **LAST, concurrency_id="walk")  # one after the other
        walk([button.click, a.submit, b.submit, kind.input, steps.release], walked)
        # A field that is left is walked from as well: the slider would show the path of a former sentence.
        walk([a.blur, b.blur], walked, quiet=True)
        # The path is there already, and a slider that is drawn asks often: this is not counted.
        on([place.change, kept.change], nearest, [kept, place], here, rate=None, **LAST)


def _sample(views: Views, on: Answer) -> None:
    with gr.Tab("Sample", elem_id="tab-sample"):
        gr.Markdown("Sentences from draws of the prior.")
        with gr.Row():
            n = gr.Slider(1, limits.SENTENCES, value=10, step=1, label="How many", elem_id="sample-n")
            heat = gr.Slider(0.05, 3, value=1, step=0.05, label="Temperature", elem_id="sample-temperature")
            top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Nucleus (top-p)", elem_id="sample-top-p")
        with gr.Row():
            method = gr.Radio(list(METHODS), value="sample", label="Method", elem_id="sample-method")
            seed = gr.Number(0, precision=0, label="Seed", elem_id="sample-seed")
        button = gr.Button("Sample", variant="primary", elem_id="sample-go")
        found = _table("no.", "sample-texts")

        def sampled(n: float, heat: float, top_p: float, method: str, seed: float, _request: gr.Request) -> Any:
            return _numbered(views.sample(n, heat, top_p, method, seed))

        def allowed(method: str, _request: gr.Request) -> Any:
            return [gr.update(interactive=method == "sample")] * 2  # greedy and beam draw no words

        on([method.change], allowed, method, [heat, top_p], rate=None)
        on([button.click], sampled, [n, heat, top_p, method, seed], found)


def _dimensions(views: Views, on: Answer, first: str) -> None:
    with gr.Tab("Dimensions", elem_id="tab-dimensions"):
        gr.Markdown(
            "One number of a sentence's latent at a time, decoded greedily. "
            "The unit is a standard deviation of N(0, I)."
        )
        text = gr.Textbox(first, label="Sentence", max_length=limits.CHARACTERS, elem_id="dimension-text")
        start = views.busiest()  # another may be idle: the decoder says the same whatever stands there
        own = views.own(first, start)
        with gr.Row():
            most = views.vae.latent_dim - 1
            which = gr.Slider(0, most, value=start, step=1, label="Dimension", elem_id="dimension-which")
            at = min(max(own, VALUES[0]), VALUES[1])
            value = gr.Slider(*VALUES, value=at, step=0.01, label="Value", elem_id="dimension-value")
            given = gr.Number(own, label="The sentence's own value", interactive=False, elem_id="dimension-own")
        with gr.Row():
            before = gr.Textbox(label="Given back", interactive=False, elem_id="dimension-before")
            after = gr.Textbox(label="With the dimension at this value", interactive=False, elem_id="dimension-after")
        button = gr.Button("Move", variant="primary", elem_id="dimension-go")
        found = _table("value", "dimension-range")

        def moved(text: str, which: float, value: float, _request: gr.Request) -> Any:
            before, after, rows = views.move(text, which, value)
            return before, after, _cells(rows), views.own(text, which)

        events = [button.click, text.submit, which.release, value.release]
        on(events, moved, [text, which, value], [before, after, found, given], **LAST)


def _attributes(views: Views, on: Answer, first: str) -> None:
    names = list(views.labels)
    known = {name: sorted(set(values) - {""}) for name, values in views.labels.items()}
    with gr.Tab("Attributes", elem_id="tab-attributes"):
        gr.Markdown("The difference between the mean latents of two labels, added to a sentence and decoded greedily.")
        text = gr.Textbox(first, label="Sentence", max_length=limits.CHARACTERS, elem_id="attribute-text")
        with gr.Row():
            name = gr.Dropdown(names, value=names[0], label="Attribute", elem_id="attribute-name")
            source = gr.Dropdown(known[names[0]], value=known[names[0]][0], label="From", elem_id="attribute-from")
            target = gr.Dropdown(known[names[0]], value=known[names[0]][1], label="To", elem_id="attribute-to")
            strength = gr.Slider(-2, 3, value=1, step=0.1, label="Strength", elem_id="attribute-strength")
        button = gr.Button("Move", variant="primary", elem_id="attribute-go")
        moved = gr.Textbox(label="Moved", interactive=False, elem_id="attribute-moved")
        found = _table("strength", "attribute-range")

        def labels_of(name: str, _request: gr.Request) -> Any:
            values = known[limits.choice(name, "attribute", known)]
            return gr.Dropdown(values, value=values[0]), gr.Dropdown(values, value=values[1])

        def shifted(text: str, name: str, source: str, target: str, strength: float, _request: gr.Request) -> Any:
            text, rows = views.attribute(text, name, source, target, strength)
            return text, _cells(rows)

        on([name.change], labels_of, name, [source, target], rate=None)
        events = [button.click, text.submit, strength.release]
        on(events, shifted, [text, name, source, target, strength], [moved, found], **LAST)


def _map(views: Views, on: Answer) -> None:
    kinds = ["PCA", *["UMAP"] * (importlib.util.find_spec("umap") is not None)]
    with gr.Tab("Map", elem_id="tab-map") as tab:
        gr.Markdown(
            f"{len(views.texts):,} sentences by their posterior means. Click a place to decode it greedily. "
            "The first UMAP takes a while."
        )
        with gr.Row():
            kind = gr.Radio(kinds, value="PCA", label="Map", elem_id="map-kind")
            colours = ["none", *views.labels]
            colour = gr.Dropdown(colours, value="none", label="Colour", elem_id="map-colour")
        with gr.Row():
            image = gr.Image(
                interactive=False, show_label=False, elem_id="map-image", format="png", scale=3, buttons=[]
            )
            with gr.Column(scale=2):
                text = gr.Textbox(label="Decoded", interactive=False, elem_id="map-decoded")
                found = _table("distance", "map-neighbours")

        def pixel(event: gr.EventData) -> tuple[float, float]:
            try:
                column, row = (float(number) for number in event.index)
            except (AttributeError, TypeError, ValueError, OverflowError):
                raise UserError("map: the click has no place; its column and row in the picture are needed") from None
            return column, row

        @functools.cache
        def kept(kind: str, colour: str) -> pictures.Chart:
            return drawn(kind, colour)

        def unmarked(kind: str, colour: str) -> pictures.Chart:
            return kept(limits.choice(kind, "map", MAPS), limits.choice(colour, "colour", colours))

        def drawn(kind: str, colour: str, mark: tuple[float, float] | None = None) -> pictures.Chart:
            labels = None if colour == "none" else views.labels.get(colour)
            return pictures.chart(views.plane(kind).points, labels, f"{kind} of the posterior means", mark)

        def shown(kind: str, colour: str, _request: gr.Request) -> Any:
            return unmarked(kind, colour).image

        def clicked(kind: str, colour: str, event: gr.EventData, _request: gr.Request) -> Any:
            # Not SelectData, which cannot be made of a click without a place.
            place = unmarked(kind, colour).place(*pixel(event))
            answer = views.at(kind, *place)
            rows = [[f"{distance:.2f}", text] for distance, text in answer.neighbours]
            return drawn(kind, colour, place).image, answer.decoded, rows

        on([tab.select, kind.change, colour.change], shown, [kind, colour], image, **LAST)
        on([image.select], clicked, [kind, colour], [image, text, found])


def _latents(views: Views, on: Answer) -> None:
    with gr.Tab("Latents", elem_id="tab-latents") as tab:
        said = gr.Markdown(elem_id="latents-said")
        image = gr.Image(interactive=False, show_label=False, elem_id="latents-image", format="png", buttons=[])

        def shown(_request: gr.Request) -> Any:
            kl, variance = views.activity
            active = (variance > ACTIVE).tolist()
            said = (
                f"Of {len(views.texts):,} sentences: {active_units(views.means, ACTIVE)} of {len(active)} units are "
                f"active (their posterior means vary by more than {ACTIVE}), the others pale. "
            )
            if kl is None:
                said += "This posterior and prior have no KL by dimension; shown is the variance of the means."
                return said, pictures.bars(variance, active, "variance of the posterior mean")
            return said + f"KL {float(kl.sum()):.2f} nats a sentence.", pictures.bars(
                kl, active, "KL to the prior, nats a sentence"
            )

        on([tab.select], shown, None, [said, image])


def _side_by_side(views: Views, other: Views, names: tuple[str, str], on: Answer, first: str, last: str) -> None:
    with gr.Tab("Side by side", elem_id="tab-both"):
        gr.Markdown("The same question to both runs: a straight walk, decoded greedily, or ten samples of one seed.")
        walks = bool(views.vae.latent_dim and other.vae.latent_dim)
        with gr.Row():
            a = gr.Textbox(first, label="First sentence", max_length=limits.CHARACTERS, elem_id="both-first")
            b = gr.Textbox(last, label="Last sentence", max_length=limits.CHARACTERS, elem_id="both-last")
        with gr.Row():
            walk = gr.Button("Walk", variant="primary", interactive=walks, elem_id="both-walk")
            sample = gr.Button("Sample", elem_id="both-sample")
        with gr.Row():
            left, right = (_table("no. or place", f"both-{side}", name) for side, name in zip(("left", "right"), names))

        def walked(a: str, b: str, _request: gr.Request) -> Any:
            return tuple(_cells(one.walk(a, b, steps=9)) for one in (views, other))

        def sampled(_request: gr.Request) -> Any:
            return tuple(_numbered(one.sample(10, seed=0)) for one in (views, other))

        on([walk.click], walked, [a, b], [left, right])
        on([sample.click], sampled, None, [left, right])
