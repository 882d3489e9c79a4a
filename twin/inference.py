"""Inference services on the fleet: which GPUs they hold, and what each minute of them came to.

A service follows its load at once upwards, as far as GPUs are free, and gives one GPU back a
minute. It is stateless: a node that leaves simply takes its servers with it.
"""

from gpuloop.schemas.units import HOUR_US
from gpuloop.twin.books import SERVICE_PENALTY_USD_MICROS
from gpuloop.twin.engine import Engine
from gpuloop.twin.hardware import Hardware
from gpuloop.twin.places import find_part
from gpuloop.twin.services import gpus_wanted, request_rate, serve
from gpuloop.twin.sharing import give_part, leave
from gpuloop.twin.state import Node
from gpuloop.twin.telemetry import Telemetry


class Inference:
    """The inference services of a world."""

    def __init__(self, engine: Engine, hardware: Hardware, telemetry: Telemetry) -> None:
        self._engine = engine
        self._hardware = hardware
        self._telemetry = telemetry
        unknown = sorted(engine.config.service_parts.keys() - engine.services.keys())
        if unknown:
            raise ValueError(f"no service is called {', '.join(unknown)}, of which there are parts")

    def plan(self) -> None:
        """Let every service want what its load of this minute asks for."""
        engine = self._engine
        for name, config in engine.services.items():
            rate = request_rate(config, engine.config.seed, engine.now_us)
            engine.state.services[name].wanted = gpus_wanted(
                rate,
                service_seconds=config.service_seconds,
                target_utilisation=config.target_utilisation,
            )

    def grow(self, pool: str) -> None:
        """Give services the GPUs they want from those that are free, fullest nodes first."""
        engine = self._engine
        for name, config in engine.services.items():
            service = engine.state.services[name]
            if config.pool != pool or service.gpus >= service.wanted:
                continue
            if name in engine.config.service_parts:
                self._grow_by_parts(name)
                continue
            for node in sorted(engine.nodes_of[pool], key=lambda node: (node.free, node.id)):
                count = min(node.free, service.wanted - service.gpus)
                if node.phase == "ready" and count > 0:
                    self._hardware.occupy(node, name, count)
                    service.gpus += count

    def _grow_by_parts(self, name: str) -> None:
        """Give a service the servers it wants, each its part of a device."""
        engine, milli = self._engine, self._engine.config.service_parts[name]
        service, pool = engine.state.services[name], engine.services[name].pool
        while service.gpus < service.wanted:
            place = find_part(engine, pool, milli)
            if place is None:
                return
            self._hardware.share(engine.state.nodes[place[0]], place[1], name, milli)
            service.gpus += 1

    def close_minute(self) -> None:
        """Account for the minute that ends now and size services for the next."""
        engine = self._engine
        for name, config in engine.services.items():
            service = engine.state.services[name]
            rate = request_rate(config, engine.config.seed, engine.now_us)
            window = serve(config, rate=rate, gpus=service.gpus, backlog=service.backlog)
            service.backlog, service.utilisation = window.backlog, window.utilisation
            revenue = window.served * config.usd_micros_per_request
            engine.state.books.book(config.pool, "revenue", revenue * HOUR_US)
            if window.violated:
                engine.state.books.book(config.pool, "service_penalty", SERVICE_PENALTY_USD_MICROS)
            self._telemetry.service(name, rate, window, revenue)
        self.plan()
        for name in engine.services:
            service = engine.state.services[name]
            if service.gpus > service.wanted:
                self._shrink(name)

    def evict(self, node: Node) -> None:
        """Take every server off a node."""
        for name in sorted({slot for slot in node.slots if slot in self._engine.services}):
            self._engine.state.services[name].gpus -= node.slots.count(name)
            self._hardware.clear(node, name, len(node.slots))
        for name, milli in self._engine.config.service_parts.items():
            held = sum(parts.get(name, 0) for parts in node.shares.values())
            if held:
                self._engine.state.services[name].gpus -= held // milli
                leave(node, name)
                self._hardware.refresh(node)

    def _shrink(self, name: str) -> None:
        """Give back one GPU, on the node where the service holds fewest."""
        engine = self._engine
        if name in engine.config.service_parts:
            self._shrink_by_part(name)
            return
        nodes = [n for n in engine.nodes_of[engine.services[name].pool] if name in n.slots]
        node = min(nodes, key=lambda node: (node.slots.count(name), node.id))
        self._hardware.clear(node, name, 1)
        engine.state.services[name].gpus -= 1

    def _shrink_by_part(self, name: str) -> None:
        """Give back one server's part, on the device where the service holds least."""
        engine, milli = self._engine, self._engine.config.service_parts[name]
        held = [
            (parts[name], node.id, device)
            for node in engine.nodes_of[engine.services[name].pool]
            for device, parts in node.shares.items()
            if name in parts
        ]
        _, where, device = min(held)
        node = engine.state.nodes[where]
        give_part(node, device, name, milli)
        self._hardware.refresh(node)
        engine.state.services[name].gpus -= 1
