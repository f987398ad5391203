"""Pilots of three scripts over twenty links: is what is recommended the soonest, by trainings that chose nothing?

    nox -s pilots -- links --out results/pilot-links            # hours, on a machine that does nothing else
    nox -s pilots -- links --scripts cnn --links 1              # minutes

The links are drawn and written to ``links.csv`` before anything runs: their rates alone, since delays need netem,
which not every kernel has. On each a pilot decides by one seed; then further seeds are trained, and these alone judge
it. What was run is not run again, and a pilot that failed is wrong there, until the same command finds that it did not.
The look at a script is made once. The slowest links come first, since trainings have most steps there: what is learnt
there is known on the others, where only the pace of each training is measured.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from harness.analysis.pilot import learning
from harness.analysis.pilot.forecast import Forecast
from harness.record.pilot import FILE, Pilot, load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "scripts"
SCRIPTS = {
    "cnn": EXAMPLES / "ddp_cnn.py",
    "language-model": EXAMPLES / "ddp_language_model.py",
    "accelerate": EXAMPLES / "accelerate_digits.py",
}
LINKS = 20
JUDGES = 2
"""Seeds beside the one that decides."""

NEAR = 1.05
"""How many times the soonest method's time the recommended one may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Count how often a pilot recommends the soonest method.")
    parser.add_argument("--out", type=Path, default=Path("results/pilot-links"))
    parser.add_argument("--scripts", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--links", type=int, default=LINKS, help="the first so many of the list")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    links = listed(out / "links.csv")
    rows = []
    for script in options.scripts:
        for number, link in links.head(options.links).sort_values("rate_mbps").iterrows():
            rows.append(
                {"script": script, "link": number, **link, **judged(out / script, script, number, link, options)}
            )
            pd.DataFrame(rows).to_csv(out / "judged.csv", index=False, float_format="%.4g")
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    for script, own in table.groupby("script"):
        print(f"{script}: the soonest, or within {NEAR - 1:.0%} of it, on {own['right'].sum()} of {len(own)} links")


def listed(file: Path) -> pd.DataFrame:
    """The links, drawn once: rates from 5 to 500 Mbit/s, by their logarithm."""
    if not file.exists():
        dice = random.Random(19)
        drawn = [round(5 * 100 ** dice.random(), 1) for _ in range(LINKS)]
        pd.DataFrame({"rate_mbps": drawn}).to_csv(file, index=False)
    return pd.read_csv(file)


def judged(out: Path, script: str, number: object, link: pd.Series, options: argparse.Namespace) -> dict[str, object]:
    try:
        decided = piloted(out, script, f"{number}-decided", link, options, seeds=1)
        judges = piloted(out, script, f"{number}-judged", link, options, seeds=1 + JUDGES)
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)}\n{error.stdout}{error.stderr}", file=sys.stderr)
        return {"recommended": f"exit code {error.returncode}", "right": False}
    times_s = times_to_loss_s(judges)
    if not times_s:
        return {"recommended": decided.verdict.label, "soonest": "nothing comes to dense's loss", "right": False}
    best = min(times_s, key=lambda label: times_s[label])
    own_s = times_s.get(decided.verdict.label, float("inf"))
    return {
        "recommended": decided.verdict.label,
        "sureness": decided.verdict.sureness,
        "soonest": best,
        "times_the_soonest": own_s / times_s[best],
        "right": own_s <= NEAR * times_s[best],
    }


def times_to_loss_s(pilot: Pilot) -> dict[str, float]:
    """By label, from the seeds that decided nothing; of methods that came to dense's loss with each."""
    judging = [each for each in pilot.trainings if each.seed > 0]
    forecast = Forecast(pilot.job, pilot.network)
    found = learning.outcomes(judging, pilot.plain_label, pilot.sixteen_label, pilot.tolerance, forecast)
    return {each.label: each.time_to_loss_s for each in found if each.time_to_loss_s is not None}


def piloted(out: Path, script: str, name: str, link: pd.Series, options: argparse.Namespace, seeds: int) -> Pilot:
    kept = out / f"{name}.json"
    if not kept.exists():
        asked = ("--workers", options.workers, "--rate", f"{link['rate_mbps']}mbit", "--seeds", seeds, "-o", out)
        command = ("--", sys.executable, SCRIPTS[script], "--steps", 100_000)
        words = [sys.executable, "-m", "harness", "pilot", "--on", "netns", *map(str, (*asked, *command))]
        subprocess.run(words, capture_output=True, text=True, check=True)
        shutil.copy(out / FILE, kept)
    return load(kept)


if __name__ == "__main__":
    main()
