"""Rings and all-to-alls in SimGrid's fluid model, as Debian's own python3 has it: python3-simgrid.

    /usr/bin/python3 tests/bench/simgrid_flows.py ring 64 ROUNDS BYTES RATE_BPS DELAY_S
    /usr/bin/python3 tests/bench/simgrid_flows.py all-to-all 64 PEERS BYTES RATE_BPS DELAY_S

It imports nothing of pacbench, and prints the seconds that a message of so many bytes to each neighbour takes: round
the ring for so many rounds, two under way at once, or to so many peers together. Each worker has a link up and a link
down, each with this rate and delay. SimGrid's own corrections for TCP are off: they stand for headers and windows.
"""

from __future__ import annotations

import sys

from simgrid import Actor, Engine, LinkInRoute, Mailbox, NetZone, this_actor

FLUID = ("network/model:CM02", "network/TCP-gamma:0", "network/crosstraffic:0", "network/latency-factor:1.0")
FLUID += ("network/bandwidth-factor:1.0", "network/weight-S:0.0")


def main() -> None:
    kind, (workers, count), (size, rate_bps, delay_s) = sys.argv[1], map(int, sys.argv[2:4]), map(float, sys.argv[4:7])
    engine = Engine([sys.argv[0], *(f"--cfg={setting}" for setting in FLUID), "--log=root.thresh:warning"])
    star = NetZone.create_star_zone("star")
    hosts = []
    for worker in range(workers):
        host = star.create_host(f"w{worker}", 1e9)
        up, down = (star.create_link(f"{way}{worker}", rate_bps / 8).set_latency(delay_s) for way in ("up", "down"))
        star.add_route(host.netpoint, None, None, None, [LinkInRoute(up)], False)
        star.add_route(None, host.netpoint, None, None, [LinkInRoute(down)], False)
        hosts.append(host)
    star.seal()
    body = {"ring": ring, "all-to-all": all_to_all}[kind]
    for worker, host in enumerate(hosts):
        Actor.create(f"w{worker}", host, body, worker, workers, count, size)
    engine.run()
    print(engine.clock)


def ring(worker: int, workers: int, rounds: int, size: float) -> None:
    """Receive segments: each is asked for when the one before the last has arrived, as Gloo does."""
    Actor.create(f"sender{worker}", this_actor.get_host(), ring_sender, worker, workers, rounds, size)
    own, ask = Mailbox.by_name(f"w{worker}"), Mailbox.by_name(f"ask{(worker - 1) % workers}")
    receiving = []
    for number in range(rounds):
        if number >= 2:
            receiving[number - 2][0].wait()
        receiving.append(own.get_async())
        ask.put_init("ready", 0).detach()
    for comm, _ in receiving[-2:]:
        comm.wait()


def ring_sender(worker: int, workers: int, rounds: int, size: float) -> None:
    """Send a segment whenever the next worker asks. Where all links are alike, it has arrived here by then."""
    ahead, asked = Mailbox.by_name(f"w{(worker + 1) % workers}"), Mailbox.by_name(f"ask{worker}")
    sending = []
    for number in range(rounds):
        asked.get()
        sending.append(ahead.put_async(number, int(size)))
    for comm in sending:
        comm.wait()


def all_to_all(worker: int, workers: int, peers: int, size: float) -> None:
    """To the peers that lie next, all at once."""
    own = Mailbox.by_name(f"w{worker}")
    receiving = [own.get_async() for _ in range(peers)]  # with the payloads, which SimGrid writes to
    after = [Mailbox.by_name(f"w{(worker + each) % workers}") for each in range(1, peers + 1)]
    sending = [mailbox.put_async(worker, int(size)) for mailbox in after]
    for comm in [*(comm for comm, _ in receiving), *sending]:
        comm.wait()


if __name__ == "__main__":
    main()
