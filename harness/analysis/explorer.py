"""What the explorer computes with: the step model's constants, and what each method computes and sends in a step.

Python works out all that no link changes (``predict.schedule``), for each number of workers; the page's script puts it
on links (``report/templates/step_model.js``). Everything on a device takes as many times longer as it is slower, and as
ranks share it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from harness.analysis.prediction_map import ANY_LINK, LINKS_TO_CROSS, WORKERS, Subject
from harness.methods import method_named
from harness.network import flows, pipeline, qdisc, topology
from harness.network.bounds import FRAME_HEADER_BYTES, TCP_IP_HEADER_BYTES, wire_share
from harness.plan import collectives, predict
from harness.plan.expected import state_of
from harness.plan.predict import Job, Schedule
from harness.scenario.links import Link, Pipe
from harness.scenario.schema import MethodSpec
from harness.units import format_size

SLOWEST = Pipe.model_validate({"rate": "1kbit"})


def exported(
    chosen: Sequence[Subject],
    baseline: MethodSpec | None,
    bucket_bytes: int,
    workers: Sequence[int] = WORKERS,
    link: Link = ANY_LINK,
    beyond_s: float = 0.0,
    first_bucket_bytes: int | None = None,
) -> dict[str, Any]:
    """All that the page computes with, as JSON has it.

    Args:
        chosen: profiles, and the methods whose codec each knows (``prediction_map.subjects``).
        baseline: the plain all-reduce, shown beside them; it costs nothing on a device that no profile knows.
        bucket_bytes: at which DDP closes a bucket.
        workers: how many there may be.
        link: by which packets are as large as they are; rate and delay are those of the sliders.
        beyond_s: what a step that synchronises takes beyond the model.
        first_bucket_bytes: at which it closes the first one; None: as the others.
    """

    def method(subject: Subject, spec: MethodSpec) -> dict[str, Any]:
        state = state_of(spec)
        caps = bucket_bytes, first_bucket_bytes
        schedules = [predict.schedule(subject.profile, spec, state, each, *caps) for each in workers]
        return {**_method(spec, schedules), "beyond_s": beyond_s / state.agrees_every}

    def profile(subject: Subject) -> dict[str, Any]:
        plain = [subject.base] if baseline is None else [baseline, subject.base]
        return {**_profile(subject), "methods": [method(subject, each) for each in (*plain, *subject.methods)]}

    return {
        "constants": constants(link),
        "workers": [*workers],
        "bucket": bucket_sizes(bucket_bytes, first_bucket_bytes),
        "profiles": [profile(subject) for subject in chosen],
    }


def bucket_sizes(bucket_bytes: int, first_bucket_bytes: int | None) -> str:
    """At which DDP closes a bucket, in words: ``26.2 MB, the first 1.05 MB``."""
    if first_bucket_bytes is None or first_bucket_bytes == bucket_bytes:
        return format_size(bucket_bytes)
    return f"{format_size(bucket_bytes)}, the first {format_size(first_bucket_bytes)}"


def constants(link: Link) -> dict[str, float]:
    """The numbers of the step model, by their names there."""
    return {
        "rounding_s": predict.ROUNDING_S,
        "message_s": collectives.MESSAGE_S,
        "segment_bytes": collectives.SEGMENT_BYTES,
        "entry_bytes": collectives.ENTRY_BYTES,
        "message_bytes": collectives.MESSAGE_BYTES,
        "shortest_rto_s": topology.SHORTEST_RTO_S,
        "initial_window_bytes": collectives.INITIAL_WINDOW_BYTES,
        "frame_header_bytes": FRAME_HEADER_BYTES,
        "header": wire_share(link),
        "mtu_bytes": link.mtu_bytes,
        "mss_bytes": link.mtu_bytes - TCP_IP_HEADER_BYTES,
        "segment_s": topology.SEGMENT_S,
        "offloaded_segments": topology.OFFLOADED_SEGMENTS,
        "least_burst_bytes": qdisc.burst_bytes(SLOWEST),
        "burst_s": qdisc.BURST_S,
        "links_to_cross": LINKS_TO_CROSS,
        "same": pipeline.SAME,
        "full": flows.FULL,
    }


def _profile(subject: Subject) -> dict[str, Any]:
    profile = subject.profile
    return {
        "name": subject.name,
        "model": profile.model,
        "origin": profile.origin,
        "batch": profile.batch_size,
        "passes_s": profile.forward_s + profile.backward_s,
        "base": subject.base.label,
        "base_is_free": not subject.knows_base,
    }


def _method(spec: MethodSpec, schedules: Sequence[Schedule]) -> dict[str, Any]:
    """A method's schedules, those that are alike once, and which of them is that of each number of workers."""
    different: list[dict[str, Any]] = []
    numbers: list[int] = []
    for found in map(_as_json, schedules):
        if found not in different:
            different.append(found)
        numbers.append(different.index(found))
    color = method_named(spec.name).color
    return {"label": spec.label, "color": color, "schedules": different, "schedule_of_workers": numbers}


def _as_json(found: Schedule) -> dict[str, Any]:
    return {**vars(found), "jobs": [[_job(job) for job in own] for own in found.jobs]}


def _job(job: Job) -> list[Any]:
    """When it may begin, and its collectives: kind, bytes, of some the servers or the distance, and how many alike."""
    alike = itertools.groupby([type(call).__name__, *call, 0][:3] for call in job.calls)
    return [job.ready_s, [[*call, len(list(group))] for call, group in alike]]
