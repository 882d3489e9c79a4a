"""The decider's process."""

import logging
from collections.abc import Sequence
from typing import Any

from gpuloop.loop.decide.decider import Decider
from gpuloop.loop.decide.library import lacking
from gpuloop.loop.decide.state import DeciderState
from gpuloop.loop.services import metrics
from gpuloop.loop.services.health import Health
from gpuloop.loop.services.journaled import ProcessWatcher, run_component
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.fold import Executed
from gpuloop.loop.shells.journal import Saved
from gpuloop.reasoning.pricing import PricingConfig
from gpuloop.schemas.codec import Record
from gpuloop.schemas.units import MINUTE_US


def main(settings: Settings) -> None:
    """Decide for the fleet until asked to stop."""
    run_component(build(settings), settings, DeciderWatcher)


def build(settings: Settings) -> Decider:
    """Return the decider that the settings describe."""
    return Decider(
        settings.fleet,
        owner=f"decider/{settings.replica}",
        trusted_keys=settings.trusted_keys,
        pricing=PricingConfig(seed=settings.seed) if settings.pricing == "learned" else None,
    )


class DeciderWatcher(ProcessWatcher):
    """Says as well what the decider passed over, and why it decides nothing, where it does not."""

    def __init__(self, name: str, health: Health) -> None:
        super().__init__(name, health)
        self._name = name
        self._health = health
        self._log = logging.getLogger(name)
        self._told: dict[str, int] = {}
        self._growing: frozenset[str] = frozenset()
        self._idle_because = ""
        metrics.OUTPUTS.labels(name, "decisions")  # From 0 on, so that none at all is seen as none.

    def resumed(self, saved: Saved[Any], *, followed: int, disagreed: int, expired: int) -> None:
        """Say from where the component goes on; what was counted before has been told."""
        super().resumed(saved, followed=followed, disagreed=disagreed, expired=expired)
        self._told = _passed_over(saved.state)

    def idle(self, now_us: int) -> None:
        """Say that there was nothing to do, unless the reason is that nothing can be done."""
        super().idle(now_us)
        if self._idle_because:
            self._health.waiting(self._idle_because)

    def cut(
        self,
        records: Sequence[Record],
        executed: Executed[Any],
        saved: Saved[Any],
        *,
        skipped: int,
        took_us: int,
    ) -> None:
        """Say that a cut is done, and what of it was of no use."""
        super().cut(records, executed, saved, skipped=skipped, took_us=took_us)
        found = _passed_over(saved.state)
        more = {reason: count - self._told.get(reason, 0) for reason, count in found.items()}
        growing = {reason: count for reason, count in more.items() if count > 0}
        for reason, count in growing.items():
            metrics.DROPPED.labels(self._name, reason).inc(count)
            if reason not in self._growing:
                self._log.warning("passed over", extra={"reason": reason, "count": count})
        self._told = found
        if growing or records:
            self._growing = frozenset(growing)
        metrics.OWNS_FLEET.set(saved.state.governance.owns)
        self._idle_because = _no_world(saved.state) or _no_fleet(saved.state)
        missing = lacking(saved.state.library, saved.state.governance)
        if self._idle_because:
            self._health.waiting(self._idle_because)
        elif missing:
            self._health.progress(f"the rule stands in for {', '.join(missing)}, which is not here")


def _no_world(state: DeciderState) -> str:
    """Return why nothing that is heard is of use, or nothing."""
    minutes = state.behind_us // MINUTE_US
    if not minutes:
        return ""
    return (
        f"pools are dated {minutes} minutes before what was decided: another world on these"
        " topics; give it a prefix of its own, or let this one go on"
    )


def _no_fleet(state: DeciderState) -> str:
    """Return why the fleet is another's to decide for, or nobody's yet, or nothing."""
    governance = state.governance
    if governance.owns:
        return ""
    if governance.deposed:
        return (
            f"another decider has claimed the fleet under epoch {governance.highest_epoch}: this"
            " one decides nothing until it is started again"
        )
    return "the claim on the fleet is not read back yet"


def _passed_over(state: DeciderState) -> dict[str, int]:
    governance = state.governance
    return {
        **state.dropped,
        "controls without room": governance.ignored,
        "leases cut short": governance.leases_cut,
        **{f"policies {reason}": count for reason, count in state.library.refused.items()},
    }
