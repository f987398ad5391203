"""Shapes of what verbs print about links, emulated and real, and about this machine."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict


class ProbedLink(TypedDict):
    """One direction of one link. Rates are on the wire, headers included."""

    worker: int | None
    """None: a trunk."""
    link: str
    direction: Literal["up", "down"]
    rate_bps_asked: int | None
    rate_bps_measured: float
    loss_asked: float
    counts: dict[str, Any] | None
    """Packets that were sent, came, came twice, and so on; only where some are lost or disturbed on purpose."""
    complaints: list[str]


class ProbedRoundTrip(TypedDict):
    """An idle link, there and back."""

    link: str
    rtt_s_asked: float
    rtt_s_measured: float
    jitter_s_asked: float
    jitter_s_measured: float
    complaints: list[str]


class ProbeJson(TypedDict):
    """``pacbench probe``."""

    workers: int
    links: list[ProbedLink]
    round_trips: list[ProbedRoundTrip]
    rtt_s: dict[str, Any]
    """``median``, and ``pairs``: between each pair of neighbours."""
    all_reduce: dict[str, float | None]
    """``bytes``, ``seconds``, ``ratio_to_ring_bound``."""
    bring_up_s: float
    verification_s: float


class Percentiles(TypedDict):
    """How something varies."""

    low: float
    """The 5th."""
    median: float
    high: float
    """The 95th."""


class PathWay(TypedDict):
    """One direction of a path between two hosts: up to the server, or down from it."""

    rate_bps: Percentiles
    """On the wire, headers included, once it is steady."""
    by_datagrams: bool
    """Whether the rate is that at which datagrams arrive when more are sent."""
    tcp_bps: float
    """What one TCP flow gets."""
    jitter_s: float | None
    counts: dict[str, Any] | None
    """What became of datagrams well below the rate."""


class PathRound(TypedDict):
    """One of several equal looks at the path."""

    at_s: float
    rtt_s: float | None
    up_bps: float
    down_bps: float
    up_lost: float | None
    """The share of packets that were lost."""
    down_lost: float | None


class PathSample(TypedDict):
    """The rate of a moment of the trace."""

    t_s: float
    rate_bps: float


class LinkJson(TypedDict):
    """``pacbench link HOST``."""

    host: str
    port: int
    ip_version: int
    began_at: str
    """In ISO 8601, UTC."""
    took_s: float
    mtu_bytes: int
    rtt_s: Percentiles | None
    jitter_s: float | None
    """The deviation of the round trip over the idle path."""
    up: PathWay
    down: PathWay
    rounds: list[PathRound]
    traced: Literal["up", "down"] | None
    """The way whose rate was followed, if one was."""
    trace: list[PathSample]
    notes: list[str]
    """Why something could not be measured."""


class CalibratedLink(TypedDict):
    """A link's reading that is farthest from what was asked."""

    asked: str
    where: str
    rate_error: float | None
    """Relative to the rate."""
    rtt_s_asked: float | None
    rtt_s_measured: float | None
    loss_asked: float | None
    loss_measured: float | None
    counted: int | None
    times: int
    complaints: list[str]
    ok: bool


class Examined(TypedDict):
    """Something that pacbench needs or can use."""

    name: str
    ok: bool
    needed: bool
    found: str
    fix: str


class DoctorJson(TypedDict):
    """``pacbench doctor``."""

    able: bool
    checks: list[Examined]
