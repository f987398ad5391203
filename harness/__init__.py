"""pacbench's harness: from a scenario over a shaped and verified cluster to a report.

    import harness

    result = harness.run_scenario("quickstart", on="netns")
    print(result.trials[["label", "round", "samples_per_s"]])

A training script tells its own metrics to ``pacbench exec``, if that runs it::

    harness.metric("accuracy", 0.93)

Nothing is imported before it is used. What lies in the current folder must not run by accident, see ``start.py``.
"""

TYPE_CHECKING = False  # as in typing, which is not to be imported yet
if TYPE_CHECKING:
    from harness.run.session import run_scenario as run_scenario

__all__ = ["metric", "run_scenario"]

ON_DEMAND = ("run_scenario",)


def __getattr__(name: str) -> object:
    """Import what Python users call, when they ask for it: it needs torch and pandas."""
    if name not in ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from harness.run import session

    return getattr(session, name)


def metric(name: str, value: float) -> None:
    """Tell a metric of the training that this process is part of, such as its accuracy, at this moment.

    A script may always call it: where nobody has attached to the script, it does nothing.

    Args:
        value: a number, or a tensor of one entry.
    """
    import os

    if "PACBENCH_ATTACH" in os.environ:
        from harness.attach.findings import write_metric

        write_metric(name, float(value))
