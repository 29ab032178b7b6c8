"""The page as a visitor uses it, in Debian's Chromium."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundle.frames.table import LAYOUTS
from serving.access.keys import ApiKey, digest_of
from serving.access.settings import AccessSettings
from serving.fake import FakeClient
from serving.protocol import Health, ImagePart, TextPart, VideoPart
from serving.settings import ApiSettings, ServerSettings

pytestmark = pytest.mark.browser

TABS = ("Chat", "Compare", "Classify", "Similarity", "Quality")
OFFER = {"vision_methods": ["uniform", "pooling"], "kv_policies": ["knorm"]}
LONG = "one two three four five six seven eight nine ten eleven twelve"
GIVE_FILE = """([kind, data, name]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: "image/png" }));
  const how = kind === "paste" ? { clipboardData: carried } : { dataTransfer: carried };
  const Event = kind === "paste" ? ClipboardEvent : DragEvent;
  document.body.dispatchEvent(new Event(kind, { bubbles: true, cancelable: true, ...how }));
}"""
NAMELESS = """() => [...document.querySelectorAll(
    "button, input, select, textarea, a, summary, [role=region], img, [tabindex]")]
  .filter((each) => each.checkVisibility())
  .filter((each) => {
    const labels = [...(each.labels ?? [])].map((label) => label.textContent).join("");
    const refs = (each.getAttribute("aria-labelledby") ?? "").split(" ")
      .map((id) => document.getElementById(id)?.textContent ?? "");
    const own = each.matches("button, a, summary") ? each.textContent : "";
    if (each.matches("main")) return false;
    if (each.matches("img")) return !each.hasAttribute("alt");
    return !(labels + refs.join("") + own + (each.getAttribute("aria-label") ?? "")).trim();
  }).map((each) => each.outerHTML.slice(0, 120))"""
STRUCTURE = """() => ({
  language: document.documentElement.lang,
  titles: [...document.querySelectorAll("h1")].filter((each) => each.checkVisibility()).length,
  twice: [...document.querySelectorAll("[id]")].map((each) => each.id).filter((id, at, all) => all.indexOf(id) !== at),
  lost: ["aria-labelledby", "aria-describedby", "aria-controls", "for", "list"].flatMap((name) =>
    [...document.querySelectorAll(`[${name}]`)].map((each) => each.getAttribute(name))
      .filter((id) => !document.getElementById(id))),
  small: [...document.querySelectorAll("button, .button, select, input")].filter((each) => each.checkVisibility())
    .filter((each) => !each.matches(".unseen")).map((each) => each.getBoundingClientRect())
    .filter((box) => Math.min(box.width, box.height) < 24).length,
})"""
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((each) => each / 255)
      .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (each) => {
    for (; each; each = each.parentElement) {
      const colour = rgb(getComputedStyle(each).backgroundColor);
      if (colour[3] === 255) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const each = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !each.checkVisibility()) continue;
    if (each.closest(":disabled, .unseen, .skip, option")) continue;
    const [a, b] = [light(rgb(getComputedStyle(each).color).slice(0, 3)), light(ground(each))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${texts.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


def until(is_so: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Wait until something is so."""
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def add_picture(panel: Any, *files: Path) -> None:
    """Choose pictures, and wait until they are shown."""
    panel.locator("input[type=file]").first.set_input_files(list(files))
    panel.locator(".thumbs img").nth(len(files) - 1).wait_for()


def test_a_chosen_picture_is_asked_about_and_the_answer_comes_with_its_figures(
    window: Any, engine: FakeClient, samples: Path
) -> None:
    add_picture(window.chat, samples / "scene.png")
    window.ask("What is this?")
    assert window.wait_for_answer() == "1 images. What is this?"
    figures = window.answer().locator("dl").inner_text()
    assert re.search(r"Picture tokens\s+4\b", figures)
    assert re.search(r"Answer\s+5 tokens", figures)
    assert "First token" in figures
    image, text = engine.generations[0].messages[0].parts
    assert image == ImagePart((samples / "scene.png").read_bytes())
    assert text == TextPart("What is this?")
    assert window.chat.locator(".question img").get_attribute("alt") == "scene.png"


def test_several_pictures_may_be_frames_of_a_video(window: Any, engine: FakeClient, samples: Path) -> None:
    window.chat.get_by_text("More", exact=True).click()
    how = window.chat.get_by_label("Several pictures are")
    offered = how.locator("option").all_inner_texts()
    assert offered == ["pictures", *(f"a video, {layout}" for layout in LAYOUTS)]
    files = (samples / "scene.png", samples / "relation.png")
    add_picture(window.chat, *files)
    window.ask("As pictures")
    window.wait_for_answer()
    how.select_option("a video, image-grid")
    add_picture(window.chat, files[0])
    window.ask("One is a picture")
    window.wait_for_answer()
    shown = [message.parts for message in engine.generations[1].messages if message.role == "user"]
    video, _ = shown[0]
    assert isinstance(video, VideoPart)
    assert video.files == tuple(file.read_bytes() for file in files)
    assert video.options.layout == "image-grid"
    assert [isinstance(part, ImagePart) for part in shown[1]] == [True, False]
    assert [type(part) for part in engine.generations[0].messages[0].parts] == [ImagePart, ImagePart, TextPart]


def test_a_second_question_goes_with_the_first_and_its_picture(window: Any, engine: FakeClient, samples: Path) -> None:
    add_picture(window.chat, samples / "scene.png")
    window.ask("First?")
    window.wait_for_answer()
    window.ask("Second?")
    window.wait_for_answer(1)
    messages = engine.generations[1].messages
    assert [message.role for message in messages] == ["user", "assistant", "user"]
    assert isinstance(messages[0].parts[0], ImagePart)
    assert messages[1].parts == (TextPart("1 images. First?"),)
    assert messages[2].parts == (TextPart("Second?"),)


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_that_is_pasted_or_dropped_anywhere_is_taken(window: Any, samples: Path, kind: str) -> None:
    data = base64.b64encode((samples / "digit.png").read_bytes()).decode()
    window.page.evaluate(GIVE_FILE, [kind, data, "digit.png"])
    window.chat.locator(".thumbs img").wait_for()
    assert window.chat.locator(".thumbs img").get_attribute("alt") == "digit.png"
    window.page.get_by_role("button", name="Take digit.png away").click()
    assert window.chat.locator(".thumbs img").count() == 0


def test_a_large_picture_of_a_kind_that_servers_refuse_is_drawn_anew(
    window: Any, engine: FakeClient, tmp_path: Path
) -> None:
    (tmp_path / "plan.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="4096" height="1024"><circle cx="90" cy="90" r="80"/></svg>'
    )
    add_picture(window.chat, tmp_path / "plan.svg")
    assert "scaled from 4096 × 1024" in window.chat.locator(".thumbs img").get_attribute("title")
    window.ask("What is this?")
    window.wait_for_answer()
    head = engine.generations[0].messages[0].parts[0].data[:24]
    assert head.startswith(b"\x89PNG")
    assert (int.from_bytes(head[16:20]), int.from_bytes(head[20:24])) == (2048, 512)


def test_what_is_no_picture_is_told_and_the_rest_is_taken(window: Any, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    add_picture(window.chat, samples / "scene.png")
    window.chat.locator("input[type=file]").first.set_input_files([tmp_path / "notes.png", samples / "text.png"])
    window.chat.locator(".thumbs img").nth(1).wait_for()
    assert "notes.png is no picture that this browser can open" in window.chat.locator(".tray").inner_text()


def test_an_answer_is_shown_as_it_comes_and_stopped_where_it_is(window: Any, engine: FakeClient) -> None:
    engine.behaviour.answer, engine.behaviour.token_s = LONG, 0.3
    window.ask("Count")
    words = window.answer().locator("p.words")
    words.filter(has_text="one two").wait_for()
    window.page.get_by_role("button", name="Stop").click()
    window.answer().get_by_text("Stopped.").wait_for()
    assert words.inner_text().split() == LONG.split()[: len(words.inner_text().split())]
    assert "twelve" not in words.inner_text()
    until(lambda: len(engine.cancelled) == 1)
    window.ask("And on")
    assert window.chat.get_by_label("Question").input_value() == ""


def test_a_refusal_is_told_in_the_servers_words(window: Any) -> None:
    window.ask("word " * 80)
    window.answer().get_by_text("The prompt has 80 tokens; the model holds 64.").wait_for()
    window.page.get_by_role("button", name="Ask again").wait_for()


def test_a_fault_in_the_middle_of_an_answer_is_told_behind_what_came(window: Any, engine: FakeClient) -> None:
    engine.behaviour.answer, engine.behaviour.failure_after_tokens = LONG, 2
    engine.behaviour.failure = ValueError("secret")
    window.ask("Count")
    window.answer().get_by_text("Internal error; the server's log has the details.").wait_for()
    assert window.answer().locator("p.words").inner_text() == "one two"
    assert "secret" not in window.page.content()


def test_a_busy_server_is_asked_again(window: Any, engine: FakeClient) -> None:
    engine.behaviour.max_running = 0
    window.ask("Hello")
    window.answer().get_by_text("Asking again in").wait_for()
    engine.behaviour.max_running = 8
    assert window.wait_for_answer() == "0 images. Hello"


def test_a_chat_is_there_after_the_page_is_loaded_again(window: Any, engine: FakeClient, samples: Path) -> None:
    add_picture(window.chat, samples / "scene.png")
    window.ask("First?")
    window.wait_for_answer()
    window.page.reload()
    assert window.wait_for_answer() == "1 images. First?"
    assert window.chat.locator(".question img").count() == 1
    window.ask("Second?")
    window.wait_for_answer(1)
    assert isinstance(engine.generations[-1].messages[0].parts[0], ImagePart)
    window.page.get_by_role("button", name="New chat").click()
    window.page.reload()
    window.page.get_by_text("or try one of these drawings").wait_for()
    assert window.chat.locator(".answer").count() == 0


def test_offline_the_chat_stays_and_a_question_is_answered_when_the_network_is_back(window: Any) -> None:
    window.ask("First?")
    window.wait_for_answer()
    window.page.context.set_offline(True)
    window.page.get_by_role("alert").get_by_text("The server does not answer.").wait_for()
    window.ask("Second?")
    window.answer(1).get_by_text("This is asked again when it is back.").wait_for()
    assert "First?" in window.chat.inner_text()
    window.page.context.set_offline(False)
    assert window.wait_for_answer(1) == "0 images. Second?"
    window.page.get_by_text("The server is back.").wait_for()


def test_an_answer_that_breaks_off_is_asked_for_again(window: Any) -> None:
    piece = {"choices": [{"index": 0, "delta": {"content": "half an"}, "finish_reason": None}]}
    cut = f"data: {json.dumps(piece)}\n\n"
    window.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=cut, content_type="text/event-stream"), times=1
    )
    window.ask("Hello")
    assert window.wait_for_answer() == "0 images. Hello"


def test_a_server_that_loads_is_waited_for(open_window: Callable[..., Any], engine: FakeClient) -> None:
    engine.behaviour.health = Health(is_ready=False, reason="models are loading")
    window = open_window()
    window.page.get_by_text("The server is not ready (models are loading).").wait_for()
    assert window.page.get_by_role("button", name="Send").is_disabled()
    engine.behaviour.health = Health(is_ready=True)
    window.page.get_by_role("alert").get_by_text("The server is back.").wait_for()
    window.ask("Hello")
    window.wait_for_answer()


def test_a_key_is_asked_for_kept_in_the_tab_and_sent_in_its_header_alone(
    open_window: Callable[..., Any], edge_servers: Any, engine: FakeClient
) -> None:
    sent: list[Any] = []
    access = AccessSettings(keys=(ApiKey(name="own", sha256=digest_of(b"right-key-0123456789")),))
    with edge_servers(engine, ServerSettings(api=ApiSettings(access=access))) as url:
        window = open_window(url=url)
        window.page.on("request", lambda request: sent.append(request))
        window.page.get_by_label("This server wants an API key:").fill("wrong")
        window.page.get_by_role("button", name="Use it").click()
        window.page.get_by_label("The key is wrong").fill("right-key-0123456789")
        window.page.keyboard.press("Enter")
        window.chat.get_by_role("combobox", name="Model").wait_for()
        window.ask("Hello")
        window.wait_for_answer()
        kept = window.page.evaluate("() => [Object.values(sessionStorage), localStorage.length, document.cookie]")
    assert "right-key-0123456789" in kept[0]
    assert kept[1:] == [0, ""]
    assert not any("right-key" in request.url + str(request.post_data) for request in sent)
    assert "Bearer right-key-0123456789" in [request.headers.get("authorization") for request in sent]


def test_sliders_are_there_where_the_model_offers_them_and_say_what_is_asked_for(
    open_window: Callable[..., Any], engine: FakeClient, samples: Path, offering: Any
) -> None:
    plain = open_window({"**/v1/models": offering()})
    plain.page.get_by_role("button", name="New chat").wait_for()
    assert plain.chat.get_by_role("slider").count() == 0
    bodies: list[Any] = []

    def answered(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        route.continue_(post_data=json.dumps({**bodies[-1], "vision": None, "kv": None}))

    window = open_window({"**/v1/models": offering(**OFFER), "**/v1/chat/completions": answered})
    window.chat.get_by_label("Picture tokens read").first.fill("25")
    window.chat.get_by_label("Cache rows kept").first.fill("50")
    window.chat.get_by_label("Picture tokens read: method").select_option("pooling")
    window.ask("No picture")
    window.wait_for_answer()
    add_picture(window.chat, samples / "scene.png")
    window.ask("A picture")
    window.wait_for_answer(1)
    assert [body.get("vision") for body in bodies] == [None, {"method": "pooling", "keep": 0.25}]
    assert [body.get("kv") for body in bodies] == [{"policy": "knorm", "budget": 0.5}] * 2


def test_two_variants_answer_one_question_side_by_side(
    open_window: Callable[..., Any], engine: FakeClient, samples: Path
) -> None:
    window = open_window()
    panel = window.view("Compare")
    add_picture(panel, samples / "scene.png")
    panel.get_by_label("Question").fill("What is this?")
    panel.get_by_role("button", name="Ask both").click()
    panel.get_by_text("Both say the same.").wait_for()
    assert panel.locator(".side dl").count() == 2
    assert len(engine.generations) == 2


def test_a_picture_is_classified_by_labels_that_can_be_changed(window: Any, samples: Path) -> None:
    panel = window.view("Classify")
    panel.get_by_label("Labels").fill("a cat\na dog\n\na cat\nan owl")
    panel.get_by_label("Sentence around a label").fill("a drawing of {}")
    add_picture(panel, samples / "scene.png", samples / "digit.png")
    panel.get_by_role("button", name="Classify").click()
    panel.locator(".bars").nth(1).wait_for()
    shown = panel.locator(".result").first.locator("li")
    assert sorted(shown.locator(".label").all_inner_texts()) == ["a cat", "a dog", "an owl"]
    shares = [float(text.removesuffix(" %")) for text in shown.locator(".value").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=1.6)
    widths = [bar.bounding_box()["width"] for bar in shown.locator(".bar").all()]
    assert widths[0] / widths[1] == pytest.approx(shares[0] / shares[1], rel=0.1)


def test_a_wrong_template_is_told_in_the_servers_words(window: Any, samples: Path) -> None:
    panel = window.view("Classify")
    panel.get_by_label("Sentence around a label").fill("a drawing")
    add_picture(panel, samples / "scene.png")
    panel.get_by_role("button", name="Classify").click()
    panel.get_by_text("holds no {} for the label").wait_for()


def test_texts_and_pictures_are_compared(window: Any, samples: Path) -> None:
    panel = window.view("Similarity")
    panel.get_by_label("Texts").fill("one\ntwo")
    add_picture(panel, samples / "scene.png", samples / "digit.png")
    panel.get_by_role("button", name="Compare").click()
    panel.locator("table").wait_for()
    values = [float(text.split()[0]) for text in panel.locator("tbody .value").all_inner_texts()]
    assert len(values) == 4
    assert all(-1 <= value <= 1 for value in values)
    assert panel.locator("td.best").count() == 2


def test_the_quality_that_was_measured_is_shown(window: Any) -> None:
    panel = window.view("Quality")
    told = panel.inner_text()
    assert "passed 1 of 1" in told
    assert "Same next token as the original" in told
    assert re.search(r"0\.99\s+at least 0\.95\s+100\s+passed", told)
    assert "Not measured: Answers depend on the picture" in told


def test_everything_can_be_done_with_the_keyboard(window: Any, engine: FakeClient) -> None:
    page = window.page
    page.get_by_role("button", name="New chat").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Tab")
    for name in (*TABS[1:], TABS[0]):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("() => document.activeElement.textContent") == name
        assert page.get_by_role("tab", name=name).get_attribute("aria-selected") == "true"
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("() => document.activeElement.ariaLabel ?? document.activeElement.tagName"))
        if seen[-1] == "Question":
            break
    assert seen[-1] == "Question", seen
    engine.behaviour.answer, engine.behaviour.token_s = LONG, 0.3
    page.keyboard.type("Count")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("up")
    page.keyboard.press("Enter")
    window.answer().locator("p.words").filter(has_text="one").wait_for()
    page.keyboard.press("Escape")
    window.answer().get_by_text("Stopped.").wait_for()
    assert engine.generations[0].messages[0].parts == (TextPart("Count\nup"),)
    assert page.evaluate("() => document.activeElement.ariaLabel") == "Question"


def test_a_screen_reader_hears_a_whole_answer_once(window: Any) -> None:
    window.ask("Hello")
    window.page.locator("#announcer").get_by_text("0 images. Hello").wait_for()
    assert window.answer().get_attribute("aria-busy") == "false"
    assert window.chat.locator("[aria-live], [role=log]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_stands_out(
    open_window: Callable[..., Any], scheme: str, samples: Path, offering: Any
) -> None:
    window = open_window({"**/v1/models": offering(**OFFER)}, color_scheme=scheme)
    ground = window.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    window.ask("Hello")
    window.wait_for_answer()
    for tab in TABS:
        panel = window.view(tab)
        if tab != "Quality":
            add_picture(panel, samples / "scene.png")
        if tab in ("Classify", "Similarity"):
            panel.locator("button.primary").click()
            panel.locator(".result, table").first.wait_for()
        assert window.page.evaluate(NAMELESS) == [], tab
        assert window.page.evaluate(CONTRASTS) == [], tab
        found = window.page.evaluate(STRUCTURE)
        assert found == {"language": "en", "titles": 1, "twice": [], "lost": [], "small": 0}, tab


def test_on_a_phone_nothing_scrolls_sideways_and_a_photo_can_be_taken(
    open_window: Callable[..., Any], samples: Path, offering: Any
) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    window = open_window({"**/v1/models": offering(**OFFER)}, **phone)
    camera = window.chat.locator("input[capture=environment]")
    assert camera.get_attribute("accept") == "image/*"
    assert window.chat.get_by_text("Take a photo").is_visible()
    assert not window.chat.get_by_label("Model").is_visible()
    window.chat.locator("summary").filter(has_text="Settings").click()
    assert window.chat.get_by_label("Model").is_visible()
    for tab in TABS:
        panel = window.view(tab)
        if tab != "Quality":
            add_picture(panel, samples / "scene.png")
        if tab in ("Classify", "Similarity"):
            panel.locator("button.primary").click()
            panel.locator(".result, table").first.wait_for()
        assert window.page.evaluate("() => document.documentElement.scrollWidth") == 360, tab


def test_without_javascript_there_are_words_and_no_blank(browser: Any, page_url: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_url)
    assert page.get_by_text("From a terminal").is_visible()
    assert f"curl -N {page_url}/v1/chat/completions" in page.locator("body").inner_text()
    context.close()


def test_nothing_is_asked_of_anybody_else(browser: Any, page_url: str, engine: FakeClient) -> None:
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_url)
    page.get_by_role("button", name="Describe the image.").click()
    page.locator(".answer dl").wait_for()
    context.close()
    assert [url for url in asked if not url.startswith((page_url, "data:"))] == []
