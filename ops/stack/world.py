"""What a twin's world was begun with, so that `up` resumes it without being told again.

A world that was drawn from one trace, seed and start cannot go on with others: a setting that is
not given is remembered, one that is given and differs is refused. Speed may change at any time.
"""

from pathlib import Path
from typing import Final

import msgspec

from gpuloop.loop.settings import PREFIX, Settings
from gpuloop.ops.stack.errors import StackError

FIELDS: Final = ("fleet", "seed", "start", "traces", "workload", "twin_config")


def resume(path: Path, settings: Settings) -> Settings:
    """Return the settings of the world remembered at `path`; remember them if there is none.

    Raises:
        StackError: a setting that was given is not that of the world, or the file is damaged.

    """
    settings = _whole_paths(settings)
    begun = _read(path)
    if begun is None:
        ours = {PREFIX + name.upper() for name in FIELDS}
        kept = {name: value for name, value in settings.environment().items() if name in ours}
        path.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2))
        return settings
    given = settings.environment()
    for name in FIELDS:
        variable = PREFIX + name.upper()
        if variable not in given or getattr(settings, name) == getattr(begun, name):
            continue
        moved = name == "traces" and not (begun.traces and begun.traces.is_dir())
        if not moved:
            raise StackError(
                f"the world here was begun with {name} {getattr(begun, name)}, not "
                f"{getattr(settings, name)}; --fresh starts another"
            )
    remembered = {
        name: getattr(begun, name) for name in FIELDS if PREFIX + name.upper() not in given
    }
    return msgspec.structs.replace(settings, **remembered)


def _whole_paths(settings: Settings) -> Settings:
    """Return settings whose paths hold from any folder."""
    paths = ("kafka_config", "traces", "twin_config", "audit_anchors")
    found = {name: getattr(settings, name) for name in paths}
    whole = {name: path.resolve() for name, path in found.items() if path is not None}
    return msgspec.structs.replace(settings, **whole)


def _read(path: Path) -> Settings | None:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        return Settings.from_environment(kept)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, ValueError) as error:
        raise StackError(f"{path} is damaged ({error}); --fresh starts another world") from None
