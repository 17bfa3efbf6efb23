"""MLflow's UI in a browser: the pages that the printed links open, as a person sees them."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import small
import stores
from playwright.sync_api import ConsoleMessage, Page, Response, expect, sync_playwright
from servers import serve

from rnp_mlflow.tracking import ui, views

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAME = "prune · badnets 10 % · resnet18_narrow · digits · seed 0"
WAIT = 60_000  # milliseconds
# The second is Chromium's notice that a page drew one frame late, on a busy machine.
HARMLESS = ("Failed to load resource", "ResizeObserver loop")


class Site(NamedTuple):
    """A server with two prune runs, a browser's page, and the errors that its console had. shots: where pictures go."""

    url: str
    runs: list[str]
    page: Page
    errors: list[str]
    shots: Path


def is_error(message: ConsoleMessage) -> bool:
    """Whether the console has an error; `is_missing` tells of what could not be loaded, by its address."""
    return message.type == "error" and not any(words in message.text for words in HARMLESS)


def is_missing(response: Response) -> bool:
    """Whether the server lacks what the page asked for. MLflow asks for a user, whom a server without login has not."""
    return response.status >= 400 and not response.url.endswith("/mlflow/users/current")


@pytest.fixture(scope="module")
def site(finished_chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Serve a store with two prune runs of one mask; skip if there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here (apt-get install chromium)")
    home = tmp_path_factory.mktemp("browser") / "store"
    small.copy_store(finished_chain, home)
    with pytest.MonkeyPatch.context() as patch:
        stores.enter(home, patch)
        recover = stores.newest("recover").info.run_id
        assert small.call("prune", recover_run_id=recover, select_by="number", pruning_number=0.5) == 0
        runs = [run.info.run_id for run in stores.runs(entry="prune")]
    words = ("server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--workers", "1")
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with serve(*words, ready="/health", home=home, **quiet) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1920, "height": 1080})
        page.set_default_timeout(WAIT)
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
        page.on("response", lambda response: errors.append(response.url) if is_missing(response) else None)
        page.on("pageerror", lambda error: errors.append(str(error)) if HARMLESS[1] not in str(error) else None)
        yield Site(url, runs, page, errors, home)
        browser.close()


def test_the_table_opens_with_names_and_the_figures_that_matter(site: Site) -> None:
    site.page.goto(views.table_url(site.url, "0"))
    expect(site.page.get_by_text(NAME)).to_have_count(2, timeout=WAIT)  # the steps that they made are folded up
    for column in ("acc_before", "acc", "asr_before", "asr", "der", "seed", "rnp.suspect", "rnp.verdict"):
        expect(site.page.get_by_role("columnheader", name=column, exact=True).first).to_be_visible(timeout=WAIT)
    site.page.screenshot(path=site.shots / "table.png")
    assert site.errors == []


def test_a_run_says_what_was_pruned_and_shows_its_curve(site: Site) -> None:
    site.page.goto(f"{site.url}/#/{ui.run_path('0', site.runs[0])}")
    expect(site.page.get_by_text(NAME).first).to_be_visible(timeout=WAIT)
    expect(site.page.get_by_text("before", exact=True).first).to_be_visible(timeout=WAIT)
    site.page.screenshot(path=site.shots / "run.png")
    site.page.goto(f"{site.url}/#/{ui.run_path('0', site.runs[0])}/model-metrics")
    expect(site.page.get_by_text("curve/acc").first).to_be_visible(timeout=WAIT)
    site.page.screenshot(path=site.shots / "metrics.png")
    assert site.errors == []


def test_two_runs_are_compared_by_their_curves(site: Site) -> None:
    site.page.goto(ui.curves_url(site.url, "0", site.runs, ["curve/asr", "curve/acc"]))
    lines = site.page.locator(".scatterlayer .trace .js-line")
    expect(lines).to_have_count(8, timeout=WAIT)  # two metrics of two runs, each as it is and smoothed
    points = site.page.locator(".scatterlayer .trace .point")
    expect(points.first).to_be_visible(timeout=WAIT)
    site.page.screenshot(path=site.shots / "compare.png")
    assert site.errors == []


def test_the_report_opens_in_the_ui_with_the_chosen_point_marked(site: Site) -> None:
    run = stores.newest("prune")
    site.page.goto(f"{site.url}/#/{ui.run_path('0', run.info.run_id)}/artifacts/report.html")
    page = site.page.frame_locator("iframe")
    expect(page.get_by_role("heading", name="Operating points")).to_be_visible(timeout=WAIT)
    expect(page.locator("tr.used")).to_have_count(1)
    expect(page.locator("tr.used td").nth(5)).to_have_text(f"{run.data.metrics['pruned']:.0f}")
    expect(page.get_by_role("img").first).to_be_visible(timeout=WAIT)
    site.page.screenshot(path=site.shots / "report.png")
    assert site.errors == []


def test_the_link_of_report_compares_the_runs(site: Site) -> None:
    site.page.goto(ui.compare_url(site.url, "0", site.runs))
    expect(site.page.get_by_text("Comparing 2 Runs").first).to_be_visible(timeout=WAIT)
    for run_id in site.runs:
        expect(site.page.get_by_text(run_id).first).to_be_visible(timeout=WAIT)
    site.page.screenshot(path=site.shots / "compare-runs.png")
    assert site.errors == []
