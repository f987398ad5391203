"""pacbench's harness: from a scenario over a shaped and verified cluster to a report.

    import harness

    result = harness.run_scenario("quickstart", on="netns")
    print(result.trials[["label", "round", "samples_per_s"]])

Nothing is imported before it is used. What lies in the current folder must not run by accident, see ``start.py``.
"""

TYPE_CHECKING = False  # as in typing, which is not to be imported yet
if TYPE_CHECKING:
    from harness.run.session import run_scenario as run_scenario

__all__ = ["run_scenario"]


def __getattr__(name: str) -> object:
    """Import what Python users call, when they ask for it: it needs torch and pandas."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from harness.run import session

    return getattr(session, name)
