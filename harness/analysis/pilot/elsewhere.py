"""The job on networks that nobody has asked about: what the explorer computes with in the pilot's own page."""

from __future__ import annotations

from typing import Any

from harness.analysis.explorer import exported
from harness.analysis.prediction_map import WORKERS, Subject
from harness.record.pilot import Pilot


def elsewhere(found: Pilot) -> dict[str, Any]:
    """See ``exported``: the job's own profile, and every method that can run in it, with what steps took beyond."""
    job, plain = found.job, (found.plain_label, found.sixteen_label)
    others = tuple(
        each.method
        for each in job.fits
        if each.method.label not in plain and not each.refused and job.profile.codec(each.method, WORKERS[0])
    )
    baseline, sixteen = (job.fit(label).method for label in plain)
    subject = Subject(" ".join(found.command), job.profile, sixteen, others)
    workers = sorted({*WORKERS, ranks(found)})
    return exported(
        [subject], baseline, job.bucket_bytes, workers, found.network.link, found.beyond_s, job.first_bucket_bytes
    )


def ranks(found: Pilot) -> int:
    """All of them, of which the explorer takes each to have a link of its own."""
    return found.network.workers * found.per_node
