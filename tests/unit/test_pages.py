"""The pages: what is made from the code says what the code says, and every link leads somewhere."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import baselines
from harness.report import catalogue, fields
from harness.report.columns import columns
from harness.scenario.schema import Case, Scenario
from harness.scenario.section import Section
from harness.units import parse_rate_bps, parse_size_bytes, parse_time_s
from harness.workload import datasets, images, models

ROOT = Path(__file__).resolve().parents[2]
FRONT_PAGE_LINES = 130

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


FOLDERS = ("docker", "examples", "harness", "results/reference", "scenarios")


def pages() -> list[Path]:
    """All Markdown of the project: not what a run has left in results/."""
    within = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))
    return sorted({*ROOT.glob("*.md"), ROOT / "results" / "README.md", *within})


def without_code(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", page, flags=re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """What GitHub calls the headings of a page: lower case, words joined by dashes, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> Iterator[str]:
    """Links of a page that lead to no file, or to no heading."""
    for target in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        aim = path.parent / name if name else path
        if not aim.exists() or (anchor and anchor not in anchors(aim.read_text(encoding="utf-8"))):
            yield target


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert not list(broken_links(path))


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, here\n[a](#a-heading-here) [b](#there) [c](page.md) [d](none.md) [e](https://x.org)\n"
    )
    assert list(broken_links(page)) == ["#there", "none.md"]


def test_the_front_page_is_short_and_names_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= FRONT_PAGE_LINES
    code = [line for line in lines if not line.startswith("*")]
    assert any(line.startswith("pip install nox && nox -s quickstart") for line in code)
    assert any(line.startswith("nox -s tests") for line in code)


def test_every_page_is_reached_from_the_front_page() -> None:
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    for folder in ("docker", "harness", "results", "scenarios"):
        assert f"({folder}/README.md)" in front
    for page in ("METHODS", "CONTRIBUTING", "CHANGELOG"):
        assert f"({page}.md)" in front


def test_the_page_of_scenarios_ends_with_what_the_schema_says() -> None:
    page = (ROOT / "scenarios" / "README.md").read_text(encoding="utf-8")
    assert page.endswith("\n" + fields.page()), (
        "run: sed -i '/^## Scenarios that come/,$d' scenarios/README.md; "
        "pacbench list scenarios -v >> scenarios/README.md"
    )


def test_the_page_of_results_ends_with_the_columns_of_trials() -> None:
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    remedy = "python -c 'from harness.report.columns import columns; print(columns(), end=\"\")'"
    assert page.endswith(f"## The columns of trials\n\n{columns()}"), f"make its end anew: {remedy}"


def test_list_scenarios_v_prints_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", "list", "scenarios", "-v"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == fields.page()


def test_no_field_is_left_out() -> None:
    page = fields.page()
    parts: list[type[Section]] = [Scenario, *(field.annotation for field in Case.model_fields.values())]  # type: ignore[list-item]
    for part in parts:
        keys = set(part.keys_in_files()) - {*Case.model_fields, "methods"}
        assert keys
        for key in keys:
            assert f"\n| `{key}` | " in page


def test_a_row_has_type_default_limits_and_meaning() -> None:
    page = fields.page()
    assert '| `rate` | rate | `"100 Mbit/s"` |' in page
    assert "| `mtu` | bytes | `1500` | at least 576, at most 9000 |" in page
    assert '| `device` | text | `"cpu"` | `"cpu"`, `"cuda"` | Where workers compute.' in page
    assert "| `p` | share | required |" in page
    assert "| `steps` | whole number | `100` | at least 4, at most 1000000 |" in page


@pytest.mark.parametrize(
    ("kind", "parse"), [("rate", parse_rate_bps), ("size", parse_size_bytes), ("time", parse_time_s)]
)
def test_defaults_are_what_a_file_may_say(kind: str, parse) -> None:  # type: ignore[no-untyped-def]
    defaults = re.findall(rf"\| {kind} \| `([^`]+)` \|", fields.page())
    assert defaults
    for default in defaults:
        parse(json.loads(default))


def test_every_method_is_in_the_overview() -> None:
    page = catalogue.overview(map(baselines.get, baselines.names()))
    for name in baselines.names():
        method = baselines.get(name)
        assert method.sends
        assert method.source
        assert method.all_reduce is not None
        assert f"| [{name}](#{name}) | {method.sends} | {'yes' if method.all_reduce else 'no'} | " in page


def test_the_overview_tells_bytes_at_three_world_sizes() -> None:
    page = catalogue.overview([baselines.get("dense")])
    assert "MB, 2 workers | MB, 8 workers | MB, 32 workers" in page
    assert "| yes | 4 | 7 | 7.75 | none | none |" in page


def test_device_cost_is_a_codec_over_a_copy_of_the_gradient() -> None:
    [profile] = [profile for profile in catalogue.shipped_profiles() if profile.model == "vgg19"]
    [codec] = [codec for codec in profile.codecs if codec.method == "topk"]
    a40_bytes_per_s = 696e9
    copy_s = 8 * profile.numel / a40_bytes_per_s
    assert catalogue.copies(profile, codec) == pytest.approx((codec.encode_s + codec.decode_s) / copy_s)
    assert catalogue.device_cost(baselines.get("bf16"), [profile]) == "–"


def example(heading: str) -> str:
    """The first block of Python below a heading of CONTRIBUTING.md."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}\n.*?^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_method_of_contributing_is_found_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sign.py").write_text(example("Add a method"), encoding="utf-8")
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    try:
        method = baselines.get("sign")
    finally:
        sys.modules.pop("baselines.sign", None)
    assert method.State(scale=0.1).wire_bytes([(10, 10)], 2) == 100
    assert "| [sign](#sign) | the sign of every entry, as one byte | yes | 1 |" in catalogue.overview([method])


def test_the_model_of_contributing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))
    exec(example("Add a model"), {**vars(models)})
    linear = models.MODELS["digits-linear"]
    assert sum(map(math.prod, linear.shapes())) == 650
    assert linear.build()(linear.example(3)).shape == (3, linear.classes)


def test_the_data_set_of_contributing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "DATASETS", dict(datasets.DATASETS))
    exec(example("Add a data set"), {**vars(images)})
    stripes = datasets.DATASETS["stripes"]
    loaded = stripes.load(None)
    assert loaded.train_inputs.shape == (stripes.train_size, *stripes.input_shape)
    assert loaded.test_targets.tolist() == [0, 1] * (stripes.test_size // 2)
    assert abs(float(loaded.train_inputs.mean())) < 1
