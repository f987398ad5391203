"""What runs inside a training script of somebody else's, put there by environment variables alone.

    attachment = attach.Attachment(method="pactrain", params={"density": 0.2}, seed=1, steps=100)
    subprocess.run(command, env={**os.environ, **attach.environment(attachment, folder)})
    for rank in attach.read(folder):
        print(rank.rank, rank.steps_done, rank.steps[-1].loss)

A ``sitecustomize`` of ours comes first on the script's PYTHONPATH. It waits until the script imports torch. Then it
watches the one model under DistributedDataParallel, finds its optimizer at the first forward pass, and gives both to
``baselines.register``. The script is not changed. A program that never imports torch pays next to nothing.

Nothing is imported before it is used: this package is loaded in every Python that the command starts.
"""

TYPE_CHECKING = False  # as in typing, which is not to be imported yet
if TYPE_CHECKING:
    from harness.attach.attachment import Attachment as Attachment
    from harness.attach.attachment import environment as environment
    from harness.attach.attachment import metrics_in as metrics_in
    from harness.attach.findings import Step as Step
    from harness.attach.reading import RankFindings as RankFindings
    from harness.attach.reading import read as read
    from harness.attach.reading import shortfall as shortfall

HOMES = {
    "attachment": ("Attachment", "environment", "metrics_in"),
    "findings": ("Step",),
    "reading": ("RankFindings", "read", "shortfall"),
}

__all__ = ["Attachment", "RankFindings", "Step", "environment", "metrics_in", "read", "shortfall"]


def __getattr__(name: str) -> object:
    """Import what whoever starts the script calls, when they ask for it: it needs pydantic."""
    for home, members in HOMES.items():
        if name in members:
            from importlib import import_module

            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
