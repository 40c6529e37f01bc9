"""The page is one file that asks nothing of the network, shows every number with its notes, and escapes texts."""

from __future__ import annotations

import base64
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

from textvae.evaluation.page import figures, html, markdown, write

RESULT = {
    "split": "test",
    "nll_iw": 102.4123,
    "nll_iw_interval": [101.0, 103.5],
    "mutual_information": 5.31,
    "mutual_information_ceiling": 8.23,
    "bleu": None,
    "ppl_elbo": math.inf,
    "sentences": 3761,
    "kl_by_dimension": [0.5, 0.0, 2.0],
    "samples": {"forward_perplexity": {"value": 31.5, "estimator": "an <LSTM>", "ceiling": 40}},
    "per_sentence": {"kl": [1.0, 2.0, 2.5], "nll_iw": [90.0, 110.0, 100.0], "tokens": [3, 4, 5]},
    "by_length": [{"length": "1-5", "bleu": 40.0}, {"length": "6-10", "bleu": None}],
}
METRICS = [
    {"step": 1, "part": "train", "loss": 120.0, "kl": 0.5},
    {"step": 2, "part": "validation", "nll_elbo": 110.0, "reconstruction": 108.0, "kl": 2.0, "active_units": 3.0},
    {"step": 4, "part": "validation", "nll_elbo": None, "reconstruction": 108.0, "kl": 2.0, "active_units": 3.0},
]


class Reader(HTMLParser):
    VOID = frozenset({"meta", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_well_formed_and_asks_nothing_of_the_network():
    page = html(RESULT, metrics=METRICS, samples=["a"], reconstructions=[("a", "b")])
    read = Reader(page)
    assert not read.open
    assert not {"script", "link", "iframe"} & set(read.tags)
    assert read.tags.count("img") == 3  # dimensions, histograms, curves
    assert all(link.startswith("data:image/svg+xml;base64,") for link in read.links)
    assert "url(" not in page
    for link in read.links:
        svg = base64.b64decode(link.split(",", 1)[1]).decode()
        assert ET.fromstring(svg).tag.endswith("svg")
        assert not re.search(r'(href|src)="(?!#)', svg)


def test_every_number_stands_with_its_notes():
    found = {figure.name: figure for figure in figures(RESULT)}
    assert set(found) == {
        "split",
        "nll_iw",
        "mutual_information",
        "bleu",
        "ppl_elbo",
        "sentences",
        "samples.forward_perplexity",
    }
    assert found["nll_iw"].interval == "101.00 to 103.50"
    assert "importance-weighted" in found["nll_iw"].estimator
    assert found["mutual_information"].reference == "at most 8.230"
    assert found["samples.forward_perplexity"].reference == "at most 40"
    table = markdown(RESULT)
    assert "| nll_iw | 102.41 | 101.00 to 103.50 |" in table
    assert "| ppl_elbo | infinite |" in table
    assert "| bleu | — |" in table
    assert "| sentences | 3,761 |" in table
    assert "an &lt;LSTM>" in table
    words = Reader(html(RESULT)).words
    for expected in ("102.41", "an <LSTM>", "6-10", "by length"):
        assert expected in words


def test_a_note_without_its_figure_is_a_figure():
    assert [f.name for f in figures({"iw_standard_error": 0.1, "kl_standard_error": 0.2, "kl": 3.0})] == [
        "iw_standard_error",
        "kl",
    ]


def test_texts_are_escaped_and_empty_ones_shown():
    evil = "<script>alert('x')</script> & \"q\""
    page = html({evil: 1.0}, title=evil, samples=[evil, ""], reconstructions=[(evil, " ")])
    read = Reader(page)
    assert "script" not in read.tags
    assert read.words.count(evil) == 5  # title twice, name, sample, sentence
    assert read.words.count("(empty)") == 2
    lines = [line for line in markdown({"a|b\n<c>": "x|y"}).splitlines() if "&lt;c>" in line]
    assert lines[0].replace("\\|", "").count("|") == 6
    own = html({"nested": {"samples": ["own one"], "reconstructions": [["there", "back"]]}})
    assert {"own one", "there", "back"} <= set(Reader(own).words)


def test_a_run_folder_gets_both_files_with_curves_where_it_has_metrics(tmp_path):
    page, table = write(RESULT, tmp_path)
    assert page.read_text("utf-8").count("<img") == 2
    lines = "".join(json.dumps(row) + "\n" for row in METRICS) + '{"step": 5, "par'
    (tmp_path / "metrics.jsonl").write_text(lines, "utf-8")
    page, table = write(RESULT, tmp_path, samples=["lone \ud800 surrogate"])
    assert page.read_text("utf-8").count("<img") == 3
    assert table.read_text("utf-8").startswith("# Evaluation of ")


def test_nothing_at_all_is_still_a_page():
    assert not Reader(html({})).open
    nothing = {"kl_by_dimension": [], "per_sentence": {"kl": [math.nan, None]}, "x": math.nan}
    assert "<img" not in html(nothing)
    assert "| x | — |" in markdown(nothing)


def test_real_text_and_the_spread_over_draws_stand_beside_their_figures_and_paths_have_a_picture():
    result = {
        "language": {"forward_perplexity": 31.5, "forward_perplexity_reference": 28.25},
        "probe": {"per_label_10": {"linear": 0.5, "linear_spread": 0.02, "knn": 0.4, "knn_spread": None}},
        "paths": {"perplexity_along": [10.0, 30.0, 12.0]},
    }
    found = {figure.name: figure for figure in figures(result)}
    assert set(found) == {"language.forward_perplexity", "probe.per_label_10.linear", "probe.per_label_10.knn"}
    assert found["language.forward_perplexity"].reference == "real text 28.25"
    assert found["probe.per_label_10.linear"].interval == "± 0.02 (standard deviation over draws)"
    assert found["probe.per_label_10.knn"].interval == ""
    assert all(figure.estimator for figure in found.values())
    page = html(result)
    assert "Perplexity at 3 places of the paths: 10.00, 30.00, 12.00" in page
    assert page.count("<img") == 1


def test_a_link_in_the_folder_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "theirs").write_text("mine")
    for name in ("evaluation-test.html", "evaluation-test.md"):
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    page, table = write(RESULT, tmp_path)
    assert (tmp_path / "theirs").read_text() == "mine"
    assert not page.is_symlink()
    assert table.read_text("utf-8").startswith("# Evaluation of ")
