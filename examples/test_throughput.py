"""A test of one's own: top-k keeps its throughput, and is worth having at 100 Mbit/s. Run it with pytest; two minutes.

The reference is results/reference/ci.json, which `pacbench reference ci --on netns` makes on a machine of yours.
"""

from __future__ import annotations


def test_topk_keeps_its_throughput(pacbench) -> None:  # type: ignore[no-untyped-def]
    run = pacbench("ci", methods=["topk"])
    run.must_keep_its_throughput(against="ci", max_slowdown=0.10)
    assert run.speedup("topk").low > 2
