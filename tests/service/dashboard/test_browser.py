"""The dashboard in a real browser, fed by a rank that the test plays."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_app import serving
from playwright.sync_api import ConsoleMessage, Locator, Page, expect, sync_playwright
from theory_jobs import NUM_STEPS, WITH_WSD, trained

from roadless.service.dashboard import vendor

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

pytestmark = [
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.skipif(
        not CHROMIUM.exists(),
        reason=f"no browser at {CHROMIUM}; on Debian: apt-get install chromium",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, service) -> Iterator[Page]:
    """A page at the login; errors of its scripts and breaches of its policy fail the test."""
    complaints: list[str] = []

    def hear(said: ConsoleMessage) -> None:
        # An answer of 401 or 404 is on the console too, and is what some tests are about.
        if said.type == "error" and not said.text.startswith("Failed to load resource"):
            complaints.append(said.text)

    with serving(service.http.app) as url:
        context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", hear)
        page.goto("/login")
        yield page
        context.close()
    assert complaints == []


@pytest.fixture
def signed_in(page, service) -> Page:
    page.get_by_label("Your token").fill(service.user["Authorization"].removeprefix("Bearer "))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    return page


def step_event(step: int) -> dict[str, Any]:
    return {
        "kind": "step",
        "step": step,
        "samples": 64 * step,
        "tokens": 0,
        "wall_seconds": step / 50,
        "gpu_seconds": 0,
        "values": {"train.loss": 2.3 * math.exp(-step / 60) + 0.2 / (1 + step % 7)},
    }


def eval_event(step: int) -> dict[str, Any]:
    loss = 2.2 * math.exp(-step / 70) + 0.05
    return step_event(step) | {
        "kind": "eval",
        "loss": loss,
        "metrics": {"eval.accuracy": 1 - loss / 4},
    }


def train(rank: Any, first: int, last: int, *, keep: tuple[int, ...] = ()) -> dict[int, str]:
    """Play steps first to last with an evaluation every 20; return the kept checkpoints by step."""
    rank.report(*(step_event(step) for step in range(first, last + 1)))
    evaluated = range(-(-first // 20) * 20, last + 1, 20)
    rank.report(*(eval_event(step) for step in evaluated))
    return {step: rank.save(step, loss=eval_event(step)["loss"]) for step in keep}


def end(service: Any, rank: Any, step: int) -> None:
    rank.report({"kind": "finished", "reason": "budget_reached", "step": step})
    service.sync(released=[rank.assignment["attempt_id"]])


def test_an_empty_list_says_how_to_begin(signed_in):
    expect(signed_in.locator("#state")).to_contain_text("roadless submit FILE.yaml")


def test_a_wrong_token_is_said_at_the_field(page):
    page.get_by_label("Your token").fill("wrong")
    with page.expect_response(lambda one: "/login" in one.url) as answer:
        page.get_by_role("button", name="Sign in").click()
    assert answer.value.status == 401
    expect(page.get_by_role("alert")).to_contain_text("not a valid user token")


def test_the_list_follows_a_job_from_queued_to_its_evaluations(signed_in, service, digits_spec):
    service.submit(digits_spec)
    row = signed_in.get_by_role("row", name="digits")
    expect(row).to_contain_text("QUEUED")
    rank = service.claim()
    train(rank, 1, 60)
    expect(row).to_contain_text("RUNNING")
    expect(row).to_contain_text("60")
    expect(row).to_contain_text(f"{eval_event(60)['loss']:.5g}")
    end(service, rank, 60)
    expect(row).to_contain_text("SUCCEEDED")
    row.get_by_role("link", name="digits").click()
    expect(signed_in.get_by_role("heading", name="digits")).to_be_visible()


def test_a_jobs_page_is_live(signed_in, service, digits_spec):
    job = service.submit(digits_spec)
    signed_in.goto(f"/jobs/{job}")
    expect(signed_in.locator("#train-chart")).to_contain_text("Queued")
    rank = service.claim()
    train(rank, 1, 40)
    train_chart = signed_in.get_by_role("img", name="Train loss in 40 buckets")
    expect(train_chart).to_be_visible()
    expect(signed_in.locator("#step")).to_have_text("40 of 500")
    train(rank, 41, 60)
    expect(signed_in.locator("#step")).to_have_text("60 of 500")
    expect(signed_in.get_by_role("img", name="3 evaluations")).to_be_visible()
    expect(signed_in.locator("#speed")).to_have_text("50 steps/s")
    expect(signed_in.locator("#train-loss")).to_have_text(
        f"{step_event(60)['values']['train.loss']:.5g}"
    )
    end(service, rank, 60)
    expect(signed_in.locator("#phase")).to_have_text("SUCCEEDED")
    expect(signed_in.locator("#events li").first).to_be_visible()


@pytest.mark.parametrize("width", [390, 1280])
def test_charts_fill_their_cards(signed_in, service, digits_spec, width):
    job, rank = service.running(digits_spec)
    train(rank, 2, 60)
    signed_in.set_viewport_size({"width": width, "height": 800})
    signed_in.goto(f"/jobs/{job}")
    for chart in ("#train-chart", "#eval-chart"):
        expect(signed_in.locator(f"{chart} .u-wrap")).to_be_visible()
        plot = signed_in.locator(f"{chart} .uplot").bounding_box()
        card = signed_in.locator(chart).bounding_box()
        assert plot["height"] == pytest.approx(card["height"], abs=2)
        assert plot["width"] == pytest.approx(card["width"], abs=2)


def test_a_resumed_job_shows_the_new_attempts_points(signed_in, service, digits_spec):
    job, rank = service.running(digits_spec)
    train(rank, 2, 60)
    signed_in.goto(f"/jobs/{job}")
    expect(signed_in.get_by_role("img", name="3 evaluations")).to_be_visible()
    rank.ended()
    service.sync(released=[rank.assignment["attempt_id"]])
    rank = service.claim()
    train(rank, 1, 20)
    expect(signed_in.locator("#attempt")).to_have_text("2 (2 ranks)")
    expect(signed_in.get_by_role("img", name="1 evaluations")).to_be_visible()


def test_every_kept_point_leads_to_its_checkpoint(signed_in, service, digits_spec):
    job, rank = service.running(digits_spec)
    kept = train(rank, 2, 60, keep=(40, 60))
    signed_in.goto(f"/jobs/{job}")
    evals = signed_in.get_by_role("region", name="Evaluations")
    for step, checkpoint in kept.items():
        link = row_of(evals, step).get_by_role("link")
        assert link.get_attribute("href") == f"/v1/checkpoints/{checkpoint}/download"
    with signed_in.expect_download() as download:
        evals.get_by_role("link").first.click()
    assert download.value.suggested_filename == f"{kept[60]}.tar"
    expect(row_of(evals, 20)).to_be_visible()
    expect(row_of(evals, 20).get_by_role("link")).to_have_count(0)


def test_a_checkpoint_shows_its_id_and_whether_it_is_pinned(signed_in, service, digits_spec):
    job, rank = service.running(digits_spec)
    kept = train(rank, 2, 60, keep=(40, 60))
    signed_in.goto(f"/jobs/{job}")
    checkpoints = signed_in.get_by_role("region", name="Checkpoints")
    link = checkpoints.get_by_text(kept[40])
    expect(link).to_be_visible()
    expect(checkpoints.get_by_text("pinned")).to_have_count(0)
    assert service.post(f"/checkpoints/{kept[40]}/pin").status_code == 200
    expect(row_of(checkpoints, 40)).to_contain_text("pinned")
    expect(checkpoints.get_by_text("pinned")).to_have_count(1)
    with signed_in.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == f"{kept[40]}.tar"


def row_of(table: Locator, step: int) -> Locator:
    cell = table.page.get_by_role("cell", name=str(step), exact=True)
    return table.get_by_role("row").filter(has=cell)


def test_a_click_on_a_kept_point_of_the_curve_downloads_it(signed_in, service, digits_spec):
    job, rank = service.running(digits_spec)
    kept = train(rank, 2, 60, keep=(40, 60))
    signed_in.goto(f"/jobs/{job}")
    plot = signed_in.locator("#eval-chart .u-over")
    expect(plot).to_be_visible()
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    with signed_in.expect_download() as download:
        plot.click(position={"x": box["width"] - 2, "y": box["height"] / 2})
    assert download.value.suggested_filename == f"{kept[60]}.tar"


def test_the_axes_can_be_chosen(signed_in, service, digits_spec):
    job, rank = service.running(digits_spec)
    train(rank, 2, 60)
    signed_in.goto(f"/jobs/{job}")
    legend = signed_in.locator("#train-chart .u-legend")
    expect(legend).to_contain_text("steps")
    with signed_in.expect_response("**/metrics/train.loss?x=samples*"):
        signed_in.get_by_label("Horizontal axis").select_option("samples")
    expect(legend).to_contain_text("samples")
    signed_in.get_by_label("Logarithmic loss").check()
    expect(signed_in.get_by_role("img", name="Train loss in 60 buckets")).to_be_visible()
    expect(signed_in.get_by_role("option", name="tokens")).to_be_disabled()


OVERLAY = "What the theory says"


def hovered(page: Page, *, share: float) -> dict[str, str]:
    """What the legend of the eval chart says at this share of its width."""
    plot = page.locator("#eval-chart .u-over")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    x = min(max(share * box["width"], 1), box["width"] - 1)
    page.mouse.move(box["x"] + x, box["y"] + box["height"] / 2)
    names = page.locator("#eval-chart .u-legend .u-label").all_inner_texts()
    values = page.locator("#eval-chart .u-legend .u-value").all_inner_texts()
    return dict(zip(names, values, strict=True))


COUNT_PIXELS = """
name => {
  const canvas = document.querySelector("#eval-chart canvas");
  const probe = new OffscreenCanvas(1, 1).getContext("2d");
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
  probe.fillRect(0, 0, 1, 1);
  const wanted = probe.getImageData(0, 0, 1, 1).data;
  const seen = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const isWanted = (i) => [0, 1, 2].every((j) => Math.abs(seen[i + j] - wanted[j]) < 24);
  let count = 0;
  for (let i = 0; i < seen.length; i += 4) if (seen[i + 3] > 200 && isWanted(i)) count++;
  return count;
}
"""


def inked(page: Page, colour: str) -> int:
    """How many pixels of the eval chart have this colour of the style sheet."""
    return page.evaluate(COUNT_PIXELS, colour)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("changes", [{}, WITH_WSD], ids=["schedule-free", "wsd"])
def test_the_overlay_draws_the_numbers_of_the_theory(signed_in, service, changes, scheme):
    """Off at first; then predicted and promised losses are those of the endpoint."""
    job, _ = trained(service, **changes)
    said = service.get(f"/jobs/{job}/theory").json()
    now, end = said["data"][-1], said["extension"]["data"][-1]
    signed_in.emulate_media(color_scheme=scheme)
    signed_in.goto(f"/jobs/{job}")
    expect(signed_in.get_by_role("img", name="12 evaluations")).to_be_visible()
    assert inked(signed_in, "--theory") == 0
    signed_in.get_by_label(OVERLAY).check()
    expect(signed_in.locator("#eval-chart .u-legend")).to_contain_text("promised")
    assert inked(signed_in, "--theory") > 100
    first = said["data"][0]["step"]
    last = hovered(signed_in, share=(NUM_STEPS - first) / (end["step"] - first))
    assert last["eval loss"] == f"{now['loss']:.4g}"
    assert last["predicted"] == f"{now['predicted']:.4g}"
    assert hovered(signed_in, share=1)["promised"] == f"{end['predicted']:.4g}"
    note = signed_in.locator("#theory-note")
    expect(note).to_contain_text(said["extension"]["advice"])
    expect(note).to_contain_text(f"{end['predicted']:.5g}")
    signed_in.get_by_label(OVERLAY).uncheck()
    expect(signed_in.locator("#eval-chart .u-legend")).not_to_contain_text("promised")
    expect(note).not_to_be_visible()


def test_the_overlay_says_what_the_theory_does_not_cover(signed_in, service):
    job, _ = trained(service, **WITH_WSD)
    said = service.get(f"/jobs/{job}/theory").json()
    signed_in.goto(f"/jobs/{job}")
    signed_in.get_by_label(OVERLAY).check()
    signed_in.get_by_text("What it does not cover").click()
    limits = signed_in.locator("#theory-caveats li")
    expect(limits).to_have_text([caveat["text"] for caveat in said["caveats"]])


def test_the_overlay_of_a_job_without_norms_says_what_is_missing(signed_in, service, digits_spec):
    job, rank = service.running(digits_spec)
    train(rank, 2, 60)
    signed_in.goto(f"/jobs/{job}")
    signed_in.get_by_label(OVERLAY).check()
    expect(signed_in.locator("#theory-note")).to_contain_text("saw none of grad.norm")
    expect(signed_in.get_by_role("img", name="3 evaluations")).to_be_visible()


@pytest.mark.parametrize("axis", ["samples", "wall_seconds"])
def test_the_overlay_is_drawn_along_every_axis(signed_in, service, axis):
    job, _ = trained(service)
    end = service.get(f"/jobs/{job}/theory").json()["extension"]["data"][-1]
    signed_in.goto(f"/jobs/{job}")
    signed_in.get_by_label(OVERLAY).check()
    signed_in.get_by_label("Horizontal axis").select_option(axis)
    legend = signed_in.locator("#eval-chart .u-legend")
    expect(legend).to_contain_text({"samples": "samples", "wall_seconds": "seconds"}[axis])
    expect(legend).to_contain_text("promised")
    assert hovered(signed_in, share=1)["promised"] == f"{end['predicted']:.4g}"


def test_without_the_chart_library_the_rest_of_a_jobs_page_lives(
    monkeypatch, signed_in, service, digits_spec, tmp_path
):
    monkeypatch.setattr(vendor, "FOLDER", tmp_path)
    job, rank = service.running(digits_spec)
    train(rank, 2, 60)
    signed_in.goto(f"/jobs/{job}")
    expect(signed_in.get_by_role("alert")).to_contain_text("Run make setup")
    expect(signed_in.locator("#eval-chart")).to_have_text("The charts are missing.")
    expect(signed_in.locator("#link")).to_have_text("live")
    expect(signed_in.locator("#step")).to_have_text("60 of 500")
    train(rank, 61, 80)
    expect(signed_in.locator("#step")).to_have_text("80 of 500")


def test_a_job_that_does_not_exist_is_said(signed_in):
    signed_in.goto("/jobs/job_" + "0" * 26)
    expect(signed_in.locator("#link")).to_contain_text("no job")


@pytest.mark.parametrize("width", [360, 1280])
def test_no_page_scrolls_sideways(signed_in, service, digits_spec, width):
    job, rank = service.running(digits_spec | {"name": "a-long-name-" * 8})
    train(rank, 2, 60, keep=(60,))
    signed_in.set_viewport_size({"width": width, "height": 800})
    for path in ("/", f"/jobs/{job}"):
        signed_in.goto(path)
        expect(signed_in.locator(".phase").first).to_contain_text("RUNNING")
        wide = signed_in.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
