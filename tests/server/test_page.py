"""The page, in a real browser in front of a real server: a desktop, and a phone of 390 px; mouse, touch and keyboard."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.keys import add_key
from tests.server.processes import ServerProcess, serve_names, serve_real
from tests.server.tiny import LABELS, write_tiny_family
from training.shapes import SCENES

if os.environ.get("CI") == "true":  # nothing may be skipped there
    import playwright.sync_api as sync_api
else:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page was not tested")
expect = sync_api.expect

BROWSER = next((found for found in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if found), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE = 60_000
"""Milliseconds after which something that does not appear fails its test."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        assert os.environ.get("CI") != "true", "no Chromium: the page cannot be tested, and in CI it must be"
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium): the page was not tested")
    expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(params=["desktop", "phone"])
def window(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A window that notes what the page complains about, and whatever it loads from elsewhere.

    Each test has its own: a page that outlives its test's server complains of that in the next test.
    """
    phone = request.param == "phone"
    size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
    context = browser.new_context(viewport=size, has_touch=phone, reduced_motion="reduce")
    window = context.new_page()
    window.complaints = []
    window.on("pageerror", lambda error: window.complaints.append(str(error)))
    window.on("console", lambda said: window.complaints.append(said.text) if said.type == "error" else None)
    window.on("request", lambda asked: window.complaints.append(asked.url) if elsewhere(asked.url) else None)
    yield window
    context.close()


def elsewhere(url: str) -> bool:
    """Whether a URL is neither the server's nor data."""
    return not url.startswith(("http://127.0.0.1:", "data:"))


@pytest.fixture
def page(window: Any, real_server: ServerProcess) -> Iterator[Any]:
    """The page, freshly opened, its first image drawn; a test takes out the complaints that it provokes."""
    window.goto(real_server.url)
    expect(window.locator("#image")).to_be_visible()
    yield window
    assert window.complaints == []


def drawn(page: Any) -> str:
    """The image that is shown, as its data URL, once nothing is being drawn."""
    expect(page.locator("#frame")).not_to_have_class(re.compile("waiting"))
    source: str = page.locator("#image").get_attribute("src")
    return source


def turn(page: Any, key: str, steps: int) -> None:
    """Press a key on the dial and wait until the image of that position is there."""
    page.keyboard.press(key)
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuenow", str(steps))
    expect(page.locator("#caption")).to_contain_text(re.compile(rf"^{steps} steps? ·"))


def test_turning_the_dial_by_keyboard_draws_the_same_seed_again(page: Any) -> None:
    page.get_by_role("slider").focus()
    seed = page.get_by_label("Seed", exact=True).input_value()
    four = drawn(page)
    turn(page, "Home", 1)
    one = drawn(page)
    turn(page, "ArrowRight", 2)
    turn(page, "ArrowUp", 4)
    assert drawn(page) == four and one != four
    assert page.get_by_label("Seed", exact=True).input_value() == seed
    turn(page, "ArrowRight", 32)
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuetext", "32 steps, teacher")
    expect(page.locator("#caption")).to_contain_text(f"seed {seed}")
    expect(page.locator("#times")).to_contain_text(re.compile(r"queue [\d.]+ ms.*device [\d.]+ ms.*encode [\d.]+ ms"))


def test_a_deadline_lets_the_server_turn_the_dial_and_turning_it_takes_that_back(page: Any) -> None:
    deadline = page.get_by_label("or the best within")
    deadline.fill("600000")
    page.keyboard.press("Enter")
    expect(page.locator("#caption")).to_contain_text(re.compile(r"^512 steps · teacher · in time, \d+ ms"))
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuenow", "512")
    page.get_by_role("slider").focus()
    turn(page, "Home", 1)
    expect(deadline).to_have_value("")
    expect(page.locator("#caption")).to_contain_text(re.compile("^1 step · student-1 · seed"))
    deadline.fill("soon")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("whole number of milliseconds")


def test_everything_is_reached_by_tab_and_works_by_keyboard(page: Any) -> None:
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
        if reached[-1] == "draw-strip":
            break
    for part in (
        "colour",
        "shape",
        "background",
        "prompt",
        "dial",
        "deadline",
        "seed",
        "new-seed",
        "draw",
        "draw-strip",
    ):
        assert part in reached, reached
    first = drawn(page)
    page.locator("#seed").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("424242")
    page.keyboard.press("Enter")
    expect(page.locator("#caption")).to_contain_text("seed 424242")
    assert drawn(page) != first


def test_the_dial_follows_the_pointer_and_snaps(page: Any) -> None:
    dial = page.get_by_role("slider")
    dial.scroll_into_view_if_needed()
    box = dial.locator("svg").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * 170 / 310
    page.mouse.move(x - box["width"] * 0.3, y)
    page.mouse.down()
    page.mouse.move(x + 4, y - box["height"] * 0.33, steps=5)
    page.mouse.move(x + box["width"] * 0.25, y + box["height"] * 0.25, steps=5)
    page.mouse.up()
    expect(dial).to_have_attribute("aria-valuenow", "512")
    dial.focus()
    turn(page, "Home", 1)


def test_the_sentence_makes_the_prompt_and_the_prompt_the_sentence(page: Any) -> None:
    page.get_by_label("shape").select_option("ring")
    page.get_by_label("colour").select_option("blue")
    page.get_by_label("background").select_option("")
    expect(page.locator("#prompt")).to_have_value("a blue ring on")
    drawn(page)
    page.locator("#prompt").fill("green star, navy")
    page.keyboard.press("Enter")
    expect(page.get_by_label("colour")).to_have_value("green")
    expect(page.get_by_label("background")).to_have_value("navy")
    expect(page.locator("#image")).to_have_attribute("alt", re.compile("^green star, navy, drawn in 4 steps"))


@pytest.mark.parametrize("window", ["phone"], indirect=True)
def test_a_family_that_knows_relations_asks_for_a_second_thing(window: Any, tmp_path: Path) -> None:
    with serve_real(write_tiny_family(tmp_path / "pairs", SCENES, steps=(1,))) as server:
        window.goto(server.url)
        expect(window.locator("#image")).to_be_visible()
        for slot, word in {"relation": "above", "colour": "blue", "shape": "ring", "background": "sky"}.items():
            window.get_by_label(slot, exact=True).select_option(word)
        window.get_by_label("second colour").select_option("red")
        window.get_by_label("second shape").select_option("star")
        expect(window.locator("#prompt")).to_have_value("a blue ring above a red star on sky")
        window.get_by_label("relation").select_option("alone")
        expect(window.locator("#prompt")).to_have_value("a blue ring on sky")
        window.get_by_label("colour", exact=True).select_option("orange")
        expect(window.locator("#prompt")).to_have_value("an orange ring on sky")
        expect(window.get_by_label("second colour")).to_be_hidden()
        window.locator("#prompt").fill("a green drop right of a pink moon")
        window.keyboard.press("Enter")
        expect(window.get_by_label("relation")).to_have_value("left of")
        expect(window.get_by_label("shape", exact=True)).to_have_value("moon")
        expect(window.get_by_label("second shape")).to_have_value("drop")
        expect(window.locator("#image")).to_have_attribute("alt", re.compile("^a green drop right of a pink moon"))
        assert window.complaints == []


@pytest.mark.parametrize("window", ["phone"], indirect=True)
def test_a_family_with_classes_has_a_picker(window: Any, tmp_path: Path) -> None:
    with serve_names(write_tiny_family(tmp_path / "classes", LABELS, steps=(1,))) as server:
        window.goto(server.url)
        expect(window.locator("#image")).to_be_visible()
        window.get_by_role("radio", name="two").click()
        expect(window.locator("#image")).to_have_attribute("alt", "two, drawn in 1 step")
        window.keyboard.press("ArrowLeft")
        expect(window.locator("#image")).to_have_attribute("alt", "one, drawn in 1 step")
        assert window.complaints == []


def test_a_refusal_is_shown_in_words_and_goes_away(page: Any) -> None:
    page.locator("#prompt").fill("a red car")
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("'car' is not known")
    expect(alert).to_contain_text("star, ring")
    page.locator("#prompt").fill("a red star")
    page.keyboard.press("Enter")
    expect(alert).to_be_hidden()
    assert all("422" in complaint for complaint in page.complaints)
    page.complaints.clear()
    page.locator("#seed").fill("minus one")
    page.keyboard.press("Tab")
    expect(alert).to_contain_text("seed")


def test_a_seed_longer_than_javascript_numbers_is_sent_digit_by_digit(page: Any) -> None:
    page.locator("#seed").fill(str(2**63 - 1))
    page.keyboard.press("Enter")
    expect(page.locator("#caption")).to_contain_text(str(2**63 - 1))
    long = drawn(page)
    page.locator("#seed").fill(str(2**63 - 2))
    page.keyboard.press("Enter")
    expect(page.locator("#caption")).to_contain_text(str(2**63 - 2))
    assert drawn(page) != long


@pytest.mark.parametrize("window", ["desktop"], indirect=True)
def test_the_page_asks_for_a_key_where_the_server_wants_one(window: Any, family_folder: Path, tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.json", "ann")
    with serve_real(family_folder, "--keys-file", str(tmp_path / "keys.json")) as server:
        window.goto(server.url)
        expect(window.locator("#key")).to_be_visible()
        expect(window.locator("#error")).to_contain_text("API key")
        window.get_by_label("API key").fill("wrong")
        window.get_by_role("button", name="Use it").click()
        expect(window.locator("#error")).to_contain_text("not known")
        window.get_by_label("API key").fill(secret)
        window.get_by_role("button", name="Use it").click()
        expect(window.locator("#image")).to_be_visible()
        expect(window.locator("#key-form")).to_be_hidden()
        assert all("401" in complaint for complaint in window.complaints)


def test_the_strip_draws_the_same_seed_at_every_position(page: Any) -> None:
    shown = drawn(page)
    page.get_by_role("button", name="Draw all").click()
    expect(page.locator("#tiles .waiting").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tiles = page.locator("#tiles img")
    for number in range(tiles.count()):
        expect(tiles.nth(number)).to_be_visible()
    assert tiles.count() == 8
    assert tiles.nth(2).get_attribute("src") == shown
    expect(page.locator("#strip-caption")).to_contain_text("seed")
    page.get_by_role("button", name=re.compile("^1 steps")).click()
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuenow", "1")
    page.get_by_role("button", name="New seed").click()
    expect(page.locator("#tiles .stale")).to_have_count(8)


def test_the_frontier_is_plotted_with_the_current_position_marked(page: Any) -> None:
    plots = page.get_by_role("img", name=re.compile("by position"))
    expect(plots).to_have_count(2)
    expect(page.locator("#plots figcaption").first).to_contain_text("Fréchet distance 12")
    expect(page.locator("#plots figcaption").last).to_contain_text("12 ms")
    page.get_by_role("slider").focus()
    turn(page, "Home", 1)
    expect(page.locator("#plots figcaption").first).to_contain_text("Fréchet distance 42")
    assert plots.first.locator(".dot.current").count() == 1


def test_the_page_fits_its_window_and_its_parts_have_names(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, a[href], [role=slider]')]
           .filter((part) => !(part.ariaLabel || part.textContent.trim() || part.labels?.length)).map((part) => part.outerHTML)"""
    )
    assert nameless == []
    small = page.evaluate(
        """[...document.querySelectorAll('button, select, input')].filter((part) => part.checkVisibility())
           .filter((part) => part.getBoundingClientRect().height < 24).map((part) => part.id)"""
    )
    assert small == []
