"""The page as a reader meets it, in headless Chromium: marks in every plot, toggles, tokens, both themes, a phone, the keyboard alone."""

import re
import shutil

import pytest
from report_runs import HOSTILE, rewrite

from selfdistill.report import Selection, write_page
from selfdistill.report.data import page_model

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MARKS = "path[aria-label], g > rect, g > circle, g[aria-label=line] path, g[aria-label=rule] line"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    """A page of three runs, and its model."""
    model = page_model(list(runs.values()), Selection())
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(model, path)
    return path, model


@pytest.fixture
def opened(browser):
    """Opens a page and holds it to silence: no error, no warning, no request but the file itself."""
    contexts = []

    def go(path, *, viewport=DESK, theme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=theme)
        page = context.new_page()
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(f"file://{path}") else said.append(request.url))
        page.goto(f"file://{path}")
        contexts.append((context, said))
        return page

    yield go
    for context, said in contexts:
        context.close()
        assert said == []


def texts(page, selector):
    return page.locator(selector).all_inner_texts()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_plot_has_marks_and_nothing_hangs_over(opened, written, viewport, theme):
    page = opened(written[0], viewport=viewport, theme=theme)
    page.locator("#more summary").click()
    plots = page.locator(".plot:visible")
    assert plots.count() >= 12
    for i in range(plots.count()):
        assert plots.nth(i).locator(MARKS).count() > 0, plots.nth(i).inner_html()[:400]
        assert plots.nth(i).locator("svg").get_attribute("aria-label")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == {"light": "rgb(247, 247, 245)", "dark": "rgb(18, 20, 23)"}[theme]


def test_the_theme_button_overrides_the_system(opened, written):
    page = opened(written[0], theme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.locator("#theme").click()
    assert page.evaluate(colour) != before and "light" in page.locator("#theme").inner_text()
    page.reload()
    assert "light" in page.locator("#theme").inner_text(), "a choice outlives a reload"


def test_the_table_sorts_by_click_and_by_key_and_filters(opened, written):
    path, model = written
    page = opened(path)
    rows = "#comparison tbody th"
    gain = {run["name"]: run["figures"]["gain"] for run in model["runs"]}
    assert texts(page, rows) == sorted(gain, key=lambda name: (-gain[name], name))
    page.get_by_role("button", name="run", exact=True).click()
    assert texts(page, rows) == sorted(gain) and page.locator("th[aria-sort=ascending]").inner_text() == "run"
    page.get_by_role("button", name="run", exact=True).focus()
    page.keyboard.press("Enter")
    assert texts(page, rows) == sorted(gain, reverse=True)
    page.locator("#filter").fill("HSD seed 1")
    assert texts(page, rows) == ["hsd_1"] and "1 of 3 runs" in page.locator("#comparison").inner_text()
    page.locator("#filter").fill("no such run")
    assert "No run has these words" in page.locator("#comparison tbody").inner_text()


def test_curves_pool_seeds_hide_lines_and_tell_values(opened, written):
    path, model = written
    page = opened(path)
    reward = page.locator(".panel", has=page.locator("b", has_text=re.compile("^reward$")))
    assert reward.locator("path[aria-label^='line of']").count() == 2 and page.locator(".legend .chip").count() == 2
    page.get_by_role("button", name="every run").click()
    assert reward.locator("path[aria-label^='line of']").count() == 3
    page.locator(".legend .chip", has_text="hsd_1").click()
    assert reward.locator("path[aria-label^='line of']").count() == 2
    before = reward.locator("path[aria-label='line of hsd_0']").get_attribute("d")
    page.locator("#smooth").click()
    assert reward.locator("path[aria-label='line of hsd_0']").get_attribute("d") != before
    page.locator("#smooth").click()
    reward.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    told = reward.locator(".readout").inner_text()
    value = next(run for run in model["runs"] if run["name"] == "hsd_0")["metrics"]["reward"][1]
    assert "step 2" in told and f"{float(f'{value:.3g}'):g}" in told and "hsd_1" not in told
    page.keyboard.press("Escape")
    assert not reward.locator(".readout").is_visible()


def test_bands_reach_from_the_lowest_to_the_highest_seed(opened, written):
    page = opened(written[0])
    # two steps are no area: their range is a bar at each
    accuracy = page.locator(".panel").first
    assert accuracy.locator("path[aria-label^='band of']").count() >= 1
    reward = page.locator(".panel", has=page.locator("b", has_text=re.compile("^reward$")))
    assert reward.locator("line[aria-label^='interval of'], path[aria-label^='band of']").count() >= 1


def choose(page, name, value):
    page.locator(f"#pick-{name}").select_option(str(value))


def test_tokens_are_coloured_and_say_their_values(opened, written):
    path, model = written
    page = opened(path)
    run = model["runs"][1]
    choose(page, "run", run["name"])
    choose(page, "step", 2)
    choose(page, "problem", 1)
    page.locator("#rollout-2").click()
    rollout = run["tokens"]["steps"][-1]["problems"][1]["rollouts"][2]
    tokens = page.locator(".completion .tok")
    assert "".join(tokens.all_text_contents()) == "".join(rollout["tokens"])
    for key in ("log_ratio", "weight", "entropy", "divergence"):
        choose(page, "quantity", key)
        values = rollout["teachers"][0]["values"][key]
        limit = next(q for q in run["tokens"]["quantities"] if q["key"] == key)["limit"]
        shades = tokens.evaluate_all("spans => spans.map((s) => Number(s.style.getPropertyValue('--a') || 0))")
        assert shades == pytest.approx([100 * min(1, abs(v) / limit) for v in values], abs=0.51)
        if key == "log_ratio":
            kinds = tokens.evaluate_all("spans => spans.map((s) => s.classList.contains('neg'))")
            assert kinds == [v < 0 for v in values]
    tokens.first.hover()
    said = page.locator(".values").inner_text()
    assert f"1 of {rollout['length']}" in said and f"{abs(rollout['teachers'][0]['values']['entropy'][0]):g}" in said


def test_tokens_are_walked_with_the_arrow_keys(opened, written):
    page = opened(written[0])
    page.locator(".completion .tokens").focus()
    page.keyboard.press("End")
    count = page.locator(".completion .tok").count()
    assert f"{count} of {count}" in page.locator(".values").inner_text()
    page.keyboard.press("ArrowLeft")
    assert f"{count - 1} of {count}" in page.locator(".values").inner_text()
    assert page.locator(".tok.now").count() == 1


def test_a_peer_is_level_where_the_two_part(opened, written):
    path, model = written
    page = opened(path)
    step = model["runs"][0]["tokens"]["steps"][0]
    place, rollout = next((i, r) for i, r in enumerate(step["problems"][0]["rollouts"]) if r["peer"])
    page.locator(f"#rollout-{place}").click()
    peer = step["problems"][0]["rollouts"][rollout["peer"]["place"]]
    same = next(i for i, (one, other) in enumerate(zip(rollout["ids"], peer["ids"], strict=False)) if one != other)
    parted = "they part at the first token" if same == 0 else f"they part at token {same + 1}"
    assert parted in page.locator("#peer").inner_text()
    one, other = page.locator("#peer .pair .tokens").all()
    assert one.text_content() == "".join(rollout["tokens"][same:]) and other.text_content() == "".join(peer["tokens"][same:])
    assert one.bounding_box()["y"] == other.bounding_box()["y"]
    assert "the teacher read it" in page.locator("#pick-peer").inner_text()


def test_prompts_are_side_by_side_and_stacked_on_a_phone(opened, written):
    for viewport, level in ((DESK, True), (PHONE, False)):
        page = opened(written[0], viewport=viewport)
        student, teacher = page.locator(".prompt").all()
        assert (student.bounding_box()["y"] == teacher.bounding_box()["y"]) is level
        assert teacher.locator("mark").count() >= 1 and student.locator("mark").count() == 0


def test_what_a_rollout_wrote_is_shown_not_run(opened, runs, tmp_path):
    folder = shutil.copytree(runs["hsd_0"], tmp_path / "hsd_0")

    def hostile(row):
        row |= {"text": HOSTILE, "answer": HOSTILE, "feedback": {"environment": HOSTILE}, "prompt": [{"role": "user", "content": HOSTILE}]}

    rewrite(folder, 1, hostile)
    write_page(page_model([folder], Selection(), colourless=HOSTILE), tmp_path / "report.html")
    page = opened(tmp_path / "report.html")
    assert page.title() == "hsd_0 — selfdistill report" and page.locator("#tokens img").count() == 0
    assert page.locator(".completion .tokens").text_content() == HOSTILE
    assert HOSTILE in page.locator(".prompt").first.text_content() and HOSTILE in page.locator("#tokens .note").first.text_content()


def test_a_page_without_rollouts_or_measurements_says_so(opened, runs, tmp_path):
    folder = shutil.copytree(runs["grpo_0"], tmp_path / "grpo_0")
    shutil.rmtree(folder / "rollouts")
    shutil.rmtree(folder / "evaluations")
    write_page(page_model([folder], Selection()), tmp_path / "report.html")
    page = opened(tmp_path / "report.html")
    assert "This run keeps no rollouts." in page.locator("#tokens").inner_text()
    assert "Not measured after training: grpo_0" in page.locator("#comparison").inner_text()
    assert page.locator(".panel:visible").count() > 3


def test_everything_is_reached_and_named_by_the_keyboard(opened, written):
    page = opened(written[0])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    named = (
        """nodes => nodes.filter((n) => !(n.innerText || n.getAttribute("aria-label") || n.closest("label")?.innerText || "").trim()).map((n) => n.outerHTML)"""
    )
    reached = page.locator("a, button, select, input, summary, [tabindex='0']")
    assert reached.evaluate_all(named) == [] and page.locator("[tabindex]:not([tabindex='0'])").count() == 0
    page.locator("#pick-step").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.id") == "pick-step", "a choice keeps the focus where it was"


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (name) => {
    canvas.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    canvas.fillRect(0, 0, 1, 1);
    const linear = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ratio = (one, other) => (Math.max(light(one), light(other)) + 0.05) / (Math.min(light(one), light(other)) + 0.05);
  const pairs = ["pos", "neg", "seq", "mark", "card"].map((name) => ["--ink", `--${name}`]);
  return [...pairs, ["--soft", "--card"], ["--soft", "--page"], ["--accent", "--page"]].map(([one, other]) => ratio(one, other));
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_every_colour_behind_it(opened, written, theme):
    assert min(opened(written[0], theme=theme).evaluate(CONTRAST)) >= 4.5


def test_a_page_that_follows_can_be_told_to_stay(opened, runs, tmp_path):
    write_page(page_model([runs["hsd_0"]], Selection(), colourless="no", following=True), tmp_path / "report.html")
    page = opened(tmp_path / "report.html")
    button = page.locator("#follow")
    assert button.get_attribute("aria-pressed") == "true" and "live" in page.locator(".live").inner_text()
    button.click()
    page.reload()
    assert page.locator("#follow").get_attribute("aria-pressed") == "false"
