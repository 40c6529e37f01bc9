"""The page asked by a program: what it never sends itself is refused in a sentence; whoever asks too much waits."""

import contextlib
import json
import re
import urllib.error
import urllib.request
import uuid
from typing import NamedTuple

import pytest
from conftest import ROOT
from torch.distributions import Normal, kl_divergence

from textvae.explorer import _serve, launch, limits

pytest.importorskip("gradio")

A, B = "the cook liked the soup .", "the dog runs ."
BLNS = ROOT.parent / "shared" / "data" / "blns" / "blns.txt"


class Answered(NamedTuple):
    data: list | None  # of the outputs; None where the question was refused
    error: str | None
    warnings: list[str]


class Client:
    """Asks as gradio's own page does: through the queue, by the number of the event."""

    def __init__(self, address: str) -> None:
        self.address = f"{address}gradio_api/"
        self.config = json.loads(self.fetch(f"{address}config"))
        self.components = {one["props"].get("elem_id"): one for one in self.config["components"]}

    def fetch(self, url: str, body: dict | None = None, **headers: str) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def number(self, field: str, event: str) -> int:
        wanted = [self.components[field]["id"], event]
        return next(one["id"] for one in self.config["dependencies"] if wanted in one["targets"])

    def body(self, field: str, event: str, data: list, happened: object) -> dict:
        return {"fn_index": self.number(field, event), "data": data, "event_data": happened}

    def ask(self, field: str, event: str, data: list, happened: object = None, **headers: str) -> Answered:
        session, warnings = uuid.uuid4().hex, []
        self.fetch(
            f"{self.address}queue/join", self.body(field, event, data, happened) | {"session_hash": session}, **headers
        )
        with urllib.request.urlopen(f"{self.address}queue/data?session_hash={session}", timeout=60) as lines:
            for line in lines:
                said = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {"msg": ""}
                if said["msg"] == "log":
                    warnings.append(said["log"])
                if said["msg"] == "process_completed":
                    return Answered(said["output"].get("data"), said["output"].get("error"), warnings)
        raise AssertionError("the queue gave no answer")

    def ask_past_the_queue(self, field: str, event: str, data: list, happened: object = None) -> Answered:
        try:
            answer = self.fetch(f"{self.address}run/predict", self.body(field, event, data, happened))
        except urllib.error.HTTPError as error:
            return Answered(None, json.loads(error.read())["error"], [])
        return Answered(json.loads(answer)["data"], None, [])

    def walk(self, first: str) -> Answered:
        return self.ask("walk-go", "click", [first, B, "linear", 2, None])


@contextlib.contextmanager
def serving(views, rate):
    from textvae.explorer.app import page

    blocks = page(views, rate=rate)
    blocks.queue(max_size=32, default_concurrency_limit=1)
    _serve(blocks, "127.0.0.1", None, False)
    try:
        yield Client(blocks.local_url)
    finally:
        blocks.close(verbose=False)


@pytest.fixture(scope="module")
def client(views):
    with serving(views, limits.Rate(answers=10**6)) as served:
        yield served


def rows(found):
    return found["data"]


def test_who_asks_faster_than_allowed_is_told_to_wait(views, vae):
    with serving(views, limits.Rate(answers=3, seconds=600.0)) as client:
        for _ in range(3):
            assert rows(client.walk(A).data[1])[0] == ["0.00", vae.reconstruct([A])[0]]
        refused = "more than 3 answers in 600 seconds; wait a little"
        assert client.walk(A) == (None, refused, [])
        assert client.ask_past_the_queue("sample-go", "click", [3, 1, 1, "sample", 0]) == (None, refused, [])
        # The slider's place is of a path that is there already: it is not counted, nor refused.
        assert client.ask("walk-place", "change", [None, 0.5]).error is None


A_FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
CRAFTED = {
    "a dimension that is no number": ("dimension-go", "click", [A, "z", 0.0], None, "dimension: got 'z'; a number"),
    "a dimension beyond the last": ("dimension-go", "click", [A, 99, 0.0], None, "dimension: got 99; it must be"),
    "a number beyond all floats": ("dimension-go", "click", [A, 0, 10**400], None, "value: got 1000"),
    "a list for a sentence": ("dimension-go", "click", [[A], 0, 0.0], None, "sentence: got \\['the cook"),
    "half a character": ("dimension-go", "click", ["a \ud800 b", 0, 0.0], None, "half of a surrogate pair"),
    "no fields": ("dimension-go", "click", [], None, "none of this page's: .*\\(needed: 3, got: 0\\)"),
    "a file for a sentence": ("dimension-go", "click", [A_FILE, 0, 0.0], None, "none of this page's: Cannot move"),
    "a click without a place": ("map-image", "select", ["PCA", "none"], None, "map: the click has no place"),
    "a click at a word": ("map-image", "select", ["PCA", "none"], {"index": ["z", 1]}, "map: the click has no place"),
    "a click at a file": ("map-image", "select", ["PCA", "none"], A_FILE, "/etc/passwd"),
    "a click outside the axes": ("map-image", "select", ["PCA", "none"], {"index": [5, 5]}, "click within the axes"),
    "an unknown map": ("map-kind", "change", ["TSNE", "none"], None, "map: got 'TSNE'; known: PCA, UMAP"),
    "a colour that is no name": ("map-kind", "change", ["PCA", ["tense"]], None, "colour: got \\['tense'\\]; known"),
    "a path that is no name": ("walk-go", "click", [A, B, ["data"], 3, None], None, "path: got \\['data'\\]; known"),
    "a place that is no number": ("walk-place", "change", [None, "z"], None, "place: got 'z'; a number from 0 to 1"),
    "an unknown label": ("attribute-go", "click", [A, "tense", "pas", "past", 1], None, "from: got 'pas'; known"),
    "an attribute that is no name": ("attribute-name", "change", [{"a": 1}], None, "attribute: got {'a': 1}; known"),
    "an unknown method": ("sample-go", "click", [3, 1, 1, "magic", 0], None, "method: got 'magic'; known"),
    "an empty seed": (
        "sample-go",
        "click",
        [3, 1, 1, "sample", None],
        None,
        "seed: got None; a number from 0 to 214748",
    ),
}


@pytest.mark.parametrize("question", CRAFTED.values(), ids=CRAFTED)
def test_what_the_page_never_sends_is_refused_in_a_sentence_and_leaves_the_terminal_alone(client, question, capfd):
    *asked, message = question
    for answer in (client.ask(*asked), client.ask_past_the_queue(*asked)):
        assert answer.data is None
        assert re.search(message, answer.error), answer.error
    assert capfd.readouterr() == ("", "")


def test_an_event_that_the_page_does_not_have_is_refused(client):
    for path in ("run/predict", "queue/join"):
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            client.fetch(client.address + path, {"fn_index": 10**6, "data": [], "session_hash": "one"})
        assert "no such fn_index" in json.loads(caught.value.read())["error"]


def test_the_page_itself_gets_a_mistake_as_a_message_and_keeps_what_it_shows(client, vae):
    answer = client.ask("dimension-go", "click", ["<b>", 99, 0.0], **{"x-gradio-user": "app"})
    assert answer.warnings == [f"dimension: got 99; it must be from 0 to {vae.latent_dim - 1}"]
    assert answer.error is None
    assert answer.data == [{"__type__": "update"}] * 4  # gradio's word for a field that stays as it is


def test_the_dimensions_start_where_the_kl_is_largest_and_at_the_sentences_own_value(client, vae, texts):
    means, scales = vae.encode_distribution(texts)
    kl = kl_divergence(Normal(means.double(), scales.double()), Normal(0.0, 1.0)).mean(0)
    start = client.components["dimension-which"]["props"]["value"]
    assert start == int(kl.argmax())
    own = float(vae.encode([client.components["dimension-text"]["props"]["value"]])[0, start])
    for field in ("dimension-value", "dimension-own"):
        assert client.components[field]["props"]["value"] == pytest.approx(own, abs=0.006)
    answer = client.ask("dimension-go", "click", [B, 1, 0.0])
    assert answer.data[3] == pytest.approx(float(vae.encode([B])[0, 1]), abs=0.006)


NASTY = [
    "<script>alert(1)</script>",
    "\"'; DROP TABLE sentences; --",
    "$(touch /tmp/hit) `touch /tmp/hit` {{7*7}} %s%n ../../etc/passwd",
    "\x01\x02\x1b[31mred\x7f\x9f",
    "a\x00b",
    "\ufeff\u200b\u200d\u2060",
    "\u202eright to left\u202c \u2066isolated\u2069",
    "Z\u0351\u036b\u0343\u036aA\u0300\u0301\u0302\u0303L\u0489\u035b",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1fa\U0001f1f8 \U0010ffff \ufffe\uffff",
    "\ufdfa \u1e9b\u0323 \u0130\u0131 \u00df\u1e9e \ufb01",
    "NaN null undefined 1e999 -0 0x7fffffff",
    "x" * 500,
]
NO_TEXT = {
    "": "is empty",
    "\t\n\r\x0b\x0c": "is empty",
    "\u00a0\u2003\u3000\x00": "is empty",
    "x" * 501: "501 characters",
}


def test_nasty_texts_get_what_the_run_says_or_a_clear_refusal(client, vae, capfd):
    found = BLNS.read_text(encoding="utf-8").split("\n")[::16] if BLNS.is_file() else []
    answered = 0
    for line in [*NASTY, *found, *NO_TEXT]:
        cleaned = " ".join(line.replace("\0", " ").split())
        answer = client.walk(line)
        if not cleaned or len(cleaned) > limits.CHARACTERS:
            assert answer.data is None
            assert answer.error.startswith("first sentence: ")
            assert NO_TEXT.get(line, "") in answer.error
            continue
        _, path, of = answer.data
        assert rows(path)[0] == ["0.00", vae.reconstruct([cleaned])[0]], ascii(line)
        assert of == f"{line.strip()}\n{B}"
        answered += 1
    assert answered >= len(NASTY) + len(found) // 2
    assert capfd.readouterr() == ("", "")


def test_it_may_be_ended_as_soon_as_it_says_where_it_is(vae, texts):
    said = []

    def say(line):
        said.append(line)
        if "the explorer is at" in line:
            raise KeyboardInterrupt

    launch(vae, texts=texts[:20], say=say)
    assert "the explorer is at" in said[-1]
