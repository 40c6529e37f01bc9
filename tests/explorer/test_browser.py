"""The page in a real browser: each control is used, and what stands there is what the run says."""

import json
import os
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from textvae.explorer import launch, pictures
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
    asked = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 800})
        opened.set_default_timeout(20_000)
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(served)
        yield opened
        browser.close()
    assert {url.split("/")[2].split(":")[0] for url in asked if url.startswith("http")} == {"127.0.0.1"}


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


def visible(page, name, text):
    page.locator(f"#{name}").get_by_text(text, exact=True).locator("visible=true").first.wait_for()


def told(page, reason):
    page.get_by_test_id("toast-body").get_by_text(reason, exact=True).first.wait_for()


def nothing_lies_over_the_answers(page):
    page.wait_for_timeout(300)  # what a toast tells of has been drawn
    return not any(found.is_visible() for found in page.locator("[data-testid=status-tracker] .error").all())


def choose(page, name, value):
    page.locator(f"#{name} input").click()
    page.get_by_role("option", name=value, exact=True).last.click()  # one that closes may still be there


def test_what_is_asked_while_an_answer_is_on_its_way_is_answered_after_it(page, views, monkeypatch):
    move = type(views).move

    def slowly(*given):
        time.sleep(0.7)
        return move(*given)

    monkeypatch.setattr(type(views), "move", slowly)  # the page has views of its own
    tab(page, "Dimensions")
    page.locator("#dimension-text textarea").fill(A)
    slide(page, "dimension-which", 2)
    for value in (1.0, 3.0, -3.5):
        slide(page, "dimension-value", value)
    last = move(views, A, 2, -3.5)[1]
    wait_for(page, "dimension-after", last)
    page.wait_for_timeout(1000)  # nothing that was asked before comes after it
    assert says(page, "dimension-after") == last


def test_every_control_answers_what_the_run_says(page, vae, views):
    page.locator("#walk-first textarea").fill(A)
    page.locator("#walk-last textarea").fill(B)
    page.locator("#walk-go").click()
    whole = [text for _, text in views.walk(A, B)]
    wait_for(page, "walk-here", whole[5])
    assert page.locator("#walk-path").inner_text().count(whole[0]) >= 1
    slide(page, "walk-place", 1)
    wait_for(page, "walk-here", vae.reconstruct([B])[0])
    slide(page, "walk-place", 0)
    wait_for(page, "walk-here", vae.reconstruct([A])[0])
    for kind in ("spherical", "data"):
        page.locator("#walk-kind").get_by_label(kind).check()
        for _, text in views.walk(A, B, kind):
            visible(page, "walk-path", text)
    page.locator("#walk-steps input[type=number]").fill("3")
    page.locator("#walk-go").click()
    page.wait_for_function("document.querySelectorAll('#walk-path tbody tr').length <= 4")
    visible(page, "walk-path", views.walk(A, B, "data", 3)[1][1])
    shot(page, "walk")

    tab(page, "Sample")
    slide(page, "sample-n", 4)
    slide(page, "sample-temperature", 0.7)
    slide(page, "sample-top-p", 0.9)
    page.locator("#sample-seed input").fill("5")
    # Drawn before the page draws: the server is a thread of this process, and torch's random state is one.
    drawn = vae.sample(4, seed=5, method="sample", temperature=0.7, top_p=0.9)[-1]
    by_beam, greedy = (vae.sample(4, seed=5, method=method)[0] for method in ("beam", "greedy"))
    page.locator("#sample-go").click()
    visible(page, "sample-texts", drawn)
    page.locator("#sample-method").get_by_label("beam").check()
    page.locator("#sample-go").click()
    visible(page, "sample-texts", by_beam)
    assert page.locator("#sample-temperature input[type=number]").is_disabled()
    page.locator("#sample-method").get_by_label("greedy").check()
    page.locator("#sample-go").click()
    visible(page, "sample-texts", greedy)
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
    choose(page, "attribute-name", "tense")
    page.wait_for_function("document.querySelector('#attribute-from input').value === 'future'")  # the new labels
    choose(page, "attribute-from", "past")
    choose(page, "attribute-to", "future")
    slide(page, "attribute-strength", 1.5)
    page.locator("#attribute-go").click()
    moved, rows = views.attribute(A, "tense", "past", "future", 1.5)
    wait_for(page, "attribute-moved", moved)
    visible(page, "attribute-range", rows[-1][1])
    shot(page, "attributes")

    tab(page, "Latents")
    page.locator("#latents-said").get_by_text(f"KL {float(views.activity[0].sum()):.2f} nats").wait_for()
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
    drawn = vae.sample(10, seed=0, method="sample")[-1]  # before the page draws
    page.locator("#both-sample").click()
    visible(page, "both-left", drawn)
    shot(page, "side-by-side")


@pytest.mark.parametrize("kind", ["PCA", pytest.param("UMAP", marks=pytest.mark.slow)])
def test_a_click_on_the_map_decodes_the_place_and_shows_its_neighbours(page, views, kind):
    tab(page, "Map")
    image = page.locator("#map-image img")
    image.wait_for()
    before = image.get_attribute("src")
    page.locator("#map-kind").get_by_label(kind).check()
    choose(page, "map-colour", "tense")
    page.wait_for_function("src => document.querySelector('#map-image img')?.src !== src", arg=before, timeout=180_000)
    page.wait_for_timeout(1000)
    box = image.bounding_box()
    x, y = box["width"] * 0.45, box["height"] * 0.55
    image.click(position={"x": x, "y": y})
    page.wait_for_function("document.querySelector('#map-decoded textarea')?.value !== ''")
    chart = pictures.chart(views.plane(kind).points, views.labels["tense"], f"{kind} of the posterior means")
    column, row = x * chart.image.shape[1] / box["width"], y * chart.image.shape[0] / box["height"]
    # A browser rounds to whole pixels.
    near = [views.at(kind, *chart.place(column + i, row + j)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    decoded = says(page, "map-decoded")
    assert decoded in {answer.decoded for answer in near}
    shown = page.locator("#map-neighbours").inner_text()
    assert any(all(text in shown for _, text in answer.neighbours) for answer in near if answer.decoded == decoded)
    shot(page, f"map-{kind}")


def test_a_sentence_that_was_edited_is_walked_from_before_the_slider_shows_it(page, views):
    former, edited = views.walk(A, B), views.walk("the old friends visited the museum .", B)
    assert former[1][1] != edited[1][1]
    page.locator("#walk-first textarea").fill(A)
    page.locator("#walk-last textarea").fill(B)
    page.locator("#walk-go").click()
    wait_for(page, "walk-here", former[5][1])
    wait_for(page, "walk-of", f"{A}\n{B}")
    page.locator("#walk-first textarea").fill("the old friends visited the museum .")
    assert says(page, "walk-of") == f"{A}\n{B}"  # of which the path still is
    slide(page, "walk-place", 0.1)
    wait_for(page, "walk-here", edited[1][1])
    wait_for(page, "walk-of", f"the old friends visited the museum .\n{B}")
    visible(page, "walk-path", edited[1][1])


def test_a_mistake_leaves_the_last_answer_in_sight_and_the_next_question_is_answered(page, views, vae):
    path = views.walk(A, B)
    page.locator("#walk-first textarea").fill(A)
    page.locator("#walk-last textarea").fill(B)
    page.locator("#walk-go").click()
    wait_for(page, "walk-here", path[5][1])
    page.locator("#walk-first textarea").fill("  ")
    page.locator("#walk-go").click()
    told(page, "first sentence: is empty; type a sentence")
    assert nothing_lies_over_the_answers(page)
    assert page.get_by_test_id("toast-text").count() == 1  # not once more for the field that was left
    assert (says(page, "walk-here"), says(page, "walk-of")) == (path[5][1], f"{A}\n{B}")
    visible(page, "walk-path", path[0][1])
    shot(page, "mistake-walk")
    page.locator("#walk-first textarea").fill(B)
    page.locator("#walk-go").click()
    wait_for(page, "walk-here", views.walk(B, B)[5][1])

    tab(page, "Sample")
    drawn = [vae.sample(10, seed=seed, method="sample")[-1] for seed in (0, 7)]  # before the page draws
    page.locator("#sample-go").click()
    visible(page, "sample-texts", drawn[0])
    page.locator("#sample-seed input").fill("")
    page.locator("#sample-go").click()
    told(page, "seed: got None; a number from 0 to 2147483647 is needed")
    assert nothing_lies_over_the_answers(page)
    visible(page, "sample-texts", drawn[0])
    shot(page, "mistake-sample")
    page.locator("#sample-seed input").fill("7")
    page.locator("#sample-go").click()
    visible(page, "sample-texts", drawn[1])

    tab(page, "Attributes")
    choose(page, "attribute-name", "tense")
    page.wait_for_function("document.querySelector('#attribute-from input').value === 'future'")
    choose(page, "attribute-to", "future")
    page.locator("#attribute-go").click()
    told(page, "from and to: both are 'future'; take two labels")  # its marks as they are, not as HTML writes them

    tab(page, "Map")
    image = page.locator("#map-image img")
    image.wait_for()
    page.wait_for_timeout(1000)
    box = image.bounding_box()
    drawn_first = image.get_attribute("src")
    image.click(position={"x": box["width"] * 0.5, "y": box["height"] * 0.5})
    marked = "src => document.querySelector('#map-image img').src !== src"
    page.wait_for_function(marked, arg=drawn_first)
    kept = (image.get_attribute("src"), says(page, "map-decoded"), page.locator("#map-neighbours").inner_text())
    image.click(position={"x": 5, "y": 5})
    told(page, "map: click within the axes")
    assert nothing_lies_over_the_answers(page)
    now = (image.get_attribute("src"), says(page, "map-decoded"), page.locator("#map-neighbours").inner_text())
    assert now == kept
    shot(page, "mistake-map")
    image.click(position={"x": box["width"] * 0.3, "y": box["height"] * 0.4})  # a panel over it would take the click
    page.wait_for_function(marked, arg=kept[0])
    assert nothing_lies_over_the_answers(page)


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


def test_no_file_of_the_machine_can_be_read_nothing_uploaded_and_no_interface_is_listed(served, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    here = Path.cwd() / "pyproject.toml"
    for path in (secret, "/etc/passwd", here, "../pyproject.toml"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{served}gradio_api/file={path}", timeout=10)
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n' + b"a" * 99 + b"\r\n--x--\r\n"
    )
    upload = urllib.request.Request(
        f"{served}gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(upload, timeout=10)
    with urllib.request.urlopen(f"{served}gradio_api/info", timeout=10) as answer:
        listed = json.load(answer)
    assert not listed["named_endpoints"]
    assert not listed["unnamed_endpoints"]
