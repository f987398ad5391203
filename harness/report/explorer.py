"""The explorer as a page: sliders, and what each method's step is predicted to take there, computed in the page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harness import provenance
from harness.report.rendering import TEMPLATES, render_named

SCRIPTS = ("step_model.js", "explorer.js")


def write(told: Mapping[str, Any], page: Path) -> Path:
    """Write the page, one file that fetches nothing; returns it.

    Args:
        told: what it computes with (``analysis.explorer.exported``).
    """
    return render_named("explorer.html", page, {**parts(told), "made_by": provenance.made_by([provenance.code()])})


def parts(told: Mapping[str, Any]) -> dict[str, Any]:
    """What ``explorer_panel.html.j2`` needs in any page, whose policy must allow the script of this ``script_hash``."""
    code = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f"(() => {{\n{code}}})();"  # its names are its own, whatever else runs in the page
    data = json.dumps(told, separators=(",", ":"), allow_nan=False)
    return {
        "last_workers": len(told["workers"]) - 1,
        "data": Markup(data.replace("<", "\\u003c")),  # text of a profile ends no element
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
