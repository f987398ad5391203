"""What is known of a pilot's job so far."""

from __future__ import annotations

from harness.analysis.pilot import learning
from harness.analysis.pilot.forecast import Forecast, beyond_s
from harness.record.pilot import Job, Outcome, Training
from harness.run.pilot.request import ATTACHED_WORKERS, Request
from harness.scenario.schema import MethodSpec


class Found:
    """What is known so far."""

    def __init__(self, request: Request, job: Job) -> None:
        self._request = request
        self.job = job
        self.trainings: list[Training] = []

    @property
    def forecast(self) -> Forecast:
        """Predictions for the job as it is known, with what its trainings took beyond the model."""
        asked = self._request
        more_s = beyond_s(self.trainings, self._modelled, (asked.plain, asked.sixteen))
        return asked.forecast(self.job, more_s)

    @property
    def _modelled(self) -> Forecast:
        return self._request.forecast(self.job)

    def outcomes(self) -> list[Outcome]:
        """What all trainings show."""
        asked = self._request
        return learning.outcomes(self.trainings, asked.plain, asked.sixteen, asked.tolerance, self._modelled)

    def add_setting(self, base: MethodSpec, other: MethodSpec) -> None:
        """Take a setting that nobody looked at to cost on the device what its sibling does."""
        codec = self.job.profile.codec(base, ATTACHED_WORKERS)
        if codec is not None:
            codecs = (*self.job.profile.codecs, codec.model_copy(update={"params": other.params}))
            self.job = self.job.model_copy(update={"profile": self.job.profile.model_copy(update={"codecs": codecs})})
        sibling = self.job.fit(base.label)
        unseen = {"method": other, "nmse": None, "cosine": None, "progress": None}
        self.job = self.job.model_copy(update={"fits": (*self.job.fits, sibling.model_copy(update=unseen))})
