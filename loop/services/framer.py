"""The framer's process: telemetry of nodes in, columnar frames and ticks out."""

from gpuloop.loop.services import metrics
from gpuloop.loop.services.process import serving
from gpuloop.loop.settings import Settings
from gpuloop.loop.shells.framer import FRAMES, SAMPLES, STAGE, Framer, Round
from gpuloop.loop.shells.kafka import KafkaBroker


def main(settings: Settings) -> None:
    """Frame samples until asked to stop."""
    broker = KafkaBroker(
        settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
    )
    with serving(STAGE, settings) as process:
        framer = Framer(broker, settings.fleet)

        def watch(done: Round) -> None:
            _count(done)
            if not framer.has_clock:
                process.health.waiting("no fleet clock on telemetry.clock yet")
                return
            positions = {str(part): at for part, at in framer.positions.items()}
            process.health.progress("framing", positions)
            for part, at in positions.items():
                metrics.POSITION.labels(STAGE, part).set(at)

        try:
            framer.run(process.stop, watch)
        finally:
            broker.close()


def _count(done: Round) -> None:
    metrics.RECORDS.labels(STAGE, SAMPLES).inc(done.samples + len(done.refused))
    metrics.OUTPUTS.labels(STAGE, FRAMES).inc(done.frames)
    if done.anchors_passed_over:
        metrics.DROPPED.labels(STAGE, "clock anchors").inc(done.anchors_passed_over)
    metrics.TICKS_SKIPPED.labels(STAGE).inc(done.ticks_skipped)
    for _, error in done.refused:
        metrics.DEAD_LETTERS.labels(STAGE, error.reason).inc()
    if done.ticks_us:
        metrics.FLEET_TIME.labels(STAGE).set(done.ticks_us[-1] / 1e6)
