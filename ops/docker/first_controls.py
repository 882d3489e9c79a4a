"""Grant a twin's actuators their modes, once, before the decider looks: what `gpuloop up` does.

Runs after the topics are there and only where the fleet is a twin. On a fleet that is real a person
grants modes, one by one.
"""

import sys

from gpuloop.loop.settings import Settings, SettingsError
from gpuloop.loop.shells.broker import BrokerError
from gpuloop.loop.shells.kafka import KafkaBroker
from gpuloop.ops.stack.controls import publish_first


def main() -> int:
    """Say the first words on `controls`, unless somebody spoke before."""
    try:
        settings = Settings.from_environment()
        broker = KafkaBroker(
            settings.bootstrap_servers, prefix=settings.topic_prefix, config=settings.kafka_config
        )
        try:
            spoken = publish_first(broker, settings.fleet)
        finally:
            broker.close()
    except (SettingsError, BrokerError) as error:
        print(error, file=sys.stderr)
        return 1
    print("first controls published" if spoken else "controls have been spoken on before")
    return 0


if __name__ == "__main__":
    sys.exit(main())
