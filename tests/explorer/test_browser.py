"""The page in a real browser: each control is used, and what stands there is what the run says."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from textvae.explorer import launch
from textvae.explorer.views import grammar_labels

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

A, B = "the cook liked the soup .", "the dog runs ."
SHOTS = os.environ.get("TEXTVAE_SCREENSHOTS")  # a folder: a picture of each tab is kept there


def browser_path() -> str | None:
    with playwright.sync_playwright() as started:
        own = started.chromium.executable_path
    names = ("chromium", "chromium-browser", "google-chrome")
    return own if Path(own).exists() else next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def served(vae, texts):
    blocks = launch(vae, other=vae, texts=texts, labels=grammar_labels(texts), wait=False, say=lambda line: None)
    yield blocks.local_url
    blocks.close(verbose=False)


@pytest.fixture
def page(served):
    path = browser_path()
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 800})
        opened.set_default_timeout(20_000)
        opened.asked = []
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.goto(served)
        yield opened
        browser.close()


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def shot(page, name):
    if SHOTS:
        page.wait_for_timeout(400)
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


def says(page, name):
    return page.locator(f"#{name} textarea").input_value()


def wait_for(page, name, text):
    page.wait_for_function(
        "([name, text]) => document.querySelector(`#${name} textarea`)?.value === text", arg=[name, text]
    )


def slide(page, name, value):
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Enter")
    field.blur()


def test_every_control_answers_what_the_run_says(page, vae, views):
    page.locator("#walk-first textarea").fill(A)
    page.locator("#walk-last textarea").fill(B)
    page.locator("#walk-go").click()
    whole = [text for _, text in views.walk(A, B)]
    wait_for(page, "walk-here", whole[5])
    assert page.locator("#walk-path").inner_text().count(whole[0]) >= 1
    slide(page, "walk-place", 1)
    wait_for(page, "walk-here", vae.reconstruct([B])[0])
    page.locator("#walk-kind").get_by_label("spherical").check()
    slide(page, "walk-place", 0)
    wait_for(page, "walk-here", vae.reconstruct([A])[0])
    shot(page, "walk")

    tab(page, "Sample")
    slide(page, "sample-n", 4)
    slide(page, "sample-temperature", 0.7)
    slide(page, "sample-top-p", 0.9)
    page.locator("#sample-seed input").fill("5")
    page.locator("#sample-go").click()
    expected = vae.sample(4, seed=5, method="sample", temperature=0.7, top_p=0.9)
    page.locator("#sample-texts").get_by_text(expected[-1], exact=True).locator("visible=true").first.wait_for()
    page.locator("#sample-method").get_by_label("greedy").check()
    page.locator("#sample-go").click()
    page.locator("#sample-texts").get_by_text(vae.sample(4, seed=5, method="greedy")[0], exact=True).locator(
        "visible=true"
    ).first.wait_for()
    shot(page, "sample")

    tab(page, "Dimensions")
    page.locator("#dimension-text textarea").fill(A)
    slide(page, "dimension-which", 3)
    slide(page, "dimension-value", -2.5)
    page.locator("#dimension-go").click()
    before, after, _ = views.move(A, 3, -2.5)
    wait_for(page, "dimension-before", before)
    wait_for(page, "dimension-after", after)
    shot(page, "dimensions")

    tab(page, "Attributes")
    page.locator("#attribute-text textarea").fill(A)
    slide(page, "attribute-strength", 1.5)
    page.locator("#attribute-go").click()
    name = next(iter(views.labels))
    source, target = sorted(set(views.labels[name]) - {""})[:2]
    wait_for(page, "attribute-moved", views.attribute(A, name, source, target, 1.5)[0])
    shot(page, "attributes")

    tab(page, "Latents")
    page.locator("#latents-said").get_by_text(f"KL {float(views.activity()[0].sum()):.2f} nats").wait_for()
    page.locator("#latents-image img").wait_for()
    shot(page, "latents")

    tab(page, "Side by side")
    page.locator("#both-first textarea").fill(A)
    page.locator("#both-last textarea").fill(B)
    page.locator("#both-walk").click()
    for side in ("both-left", "both-right"):  # the same run twice: the same texts
        page.locator(f"#{side}").get_by_text(vae.reconstruct([B])[0], exact=True).locator(
            "visible=true"
        ).first.wait_for()
    page.locator("#both-sample").click()
    page.locator("#both-left").get_by_text(vae.sample(1, seed=0, method="sample")[0], exact=True).locator(
        "visible=true"
    ).first.wait_for()
    shot(page, "side-by-side")
    assert {url.split("/")[2].split(":")[0] for url in page.asked if url.startswith("http")} == {"127.0.0.1"}


def test_a_click_on_the_map_decodes_the_place_and_shows_its_neighbours(page, views):
    tab(page, "Map")
    image = page.locator("#map-image img")
    image.wait_for()
    page.wait_for_timeout(500)
    box = image.bounding_box()
    image.click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.5})
    page.wait_for_function("document.querySelector('#map-decoded textarea')?.value !== ''")
    plane = views.plane("PCA")
    z = plane.mean + plane.points @ plane.axes
    # The middle of the picture lies within the cloud: its nearest sentence is near.
    shown = page.locator("#map-neighbours").inner_text()
    assert any(text in shown for text in views.texts)
    assert torch.isfinite(z).all()
    shot(page, "map")


def test_a_mistake_and_a_script_stand_in_the_page_as_text(page, views):
    page.locator("#walk-first textarea").fill("   ")
    page.locator("#walk-go").click()
    page.get_by_text("first sentence: is empty").first.wait_for()
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    nasty = "<script>alert(1)</script> <img src=x onerror=alert(1)>"
    page.locator("#walk-first textarea").fill(nasty)
    page.locator("#walk-last textarea").fill(B)
    page.locator("#walk-go").click()
    wait_for(page, "walk-here", views.walk(nasty, B)[5][1])
    assert page.locator("#walk-first textarea").input_value() == nasty
    assert page.locator("img[src=x]").count() == 0


def test_no_file_of_the_machine_can_be_read_and_no_interface_is_listed(served, tmp_path):
    import urllib.error
    import urllib.request

    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    for path in (f"gradio_api/file={secret}", "gradio_api/file=/etc/passwd", "file=/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{served}{path}", timeout=10)
