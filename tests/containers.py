"""What tests of containers share: what of ours the engine has, a way to it that can be cut, and a node without one."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from docker.client import DockerClient

from harness.cluster.docker import engine

NODE = """
import json, sys
from harness.cluster.docker.node import Node
from harness.messages import Build
from harness.network.iproute import run, run_lines

run_lines("ip", None, ["link add eth0 type veth peer name to0", "link set to0 up"])
node = Node("w0", {})
for link in sys.argv[1:]:
    node.build(Build(topology={"workers": 2, "link": json.loads(link)}))
    (queue,) = (each for each in json.loads(run(["tc", "-j", "qdisc", "show", "dev", "eth0"])) if each.get("root"))
    (interface,) = json.loads(run(["ip", "-d", "-j", "link", "show", "eth0"]))
    print(queue["kind"], queue["handle"], interface["gso_max_segs"], flush=True)
"""
"""What a worker's container does in a network of its own: it takes its part in one topology after another, and tells
what its interface has then. Its arguments are the links."""


def labelled(client: DockerClient) -> list[str]:
    """The names of all objects that carry pacbench's label."""
    filters = {"label": engine.RUN_LABEL}
    containers = client.containers.list(all=True, filters=filters, ignore_removed=True)
    return [thing.name for thing in (*containers, *client.networks.list(filters=filters))]


class Passage:
    """A socket that leads to the engine until it is closed, together with all that went through it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)

    def __enter__(self) -> Passage:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.path.unlink(missing_ok=True)
        for end in (self._server, *self._open):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:
                return
            engine_end = socket.socket(socket.AF_UNIX)
            engine_end.connect("/var/run/docker.sock")
            self._open += [caller, engine_end]
            for source, target in ((caller, engine_end), (engine_end, caller)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        try:
            while chunk := source.recv(1 << 16):
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return
