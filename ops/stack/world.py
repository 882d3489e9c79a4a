"""What a twin's world was begun with, so that `up` resumes it without being told again.

A world that was drawn from one trace, seed and start cannot go on with others: a setting that is
not given is remembered, one that is given and differs is refused. Speed may change at any time.
"""

from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from gpuloop.loop.services.twin import STORE_FILE, twin_config
from gpuloop.loop.services.twin_fleet import origin_of
from gpuloop.loop.settings import PREFIX, Settings
from gpuloop.loop.shells.store import Store, StoreError
from gpuloop.ops.stack.errors import StackError
from gpuloop.twin.workload import Workload

FIELDS: Final = ("fleet", "seed", "start", "traces", "workload", "twin_config")
OTHERWISE: Final = "--fresh deletes it and begins another, --state-dir keeps both"


class _Saved(msgspec.Struct):
    """What of a twin's state says from what its world was made."""

    origin: str


def resume(path: Path, settings: Settings) -> Settings:
    """Return the settings with which the world remembered at `path` goes on; write nothing.

    Raises:
        StackError: a setting that was given is not that of the world, or the file is damaged.

    """
    begun = _read(path)
    if begun is None:
        return settings
    given = settings.environment()
    names = [name for name in FIELDS if PREFIX + name.upper() in given]
    differs = [name for name in names if not _same(name, settings, begun)]
    if differs:
        were = ", ".join(f"{name} {_shown(getattr(begun, name))}" for name in differs)
        are = ", ".join(_shown(getattr(settings, name)) for name in differs)
        raise StackError(
            f"the world in {path.parent} was begun with {were}, not {are}; {OTHERWISE}"
        )
    remembered = {name: getattr(begun, name) for name in FIELDS if name not in names}
    return msgspec.structs.replace(settings, **remembered)


def remember(path: Path, settings: Settings) -> None:
    """Keep what a world is begun with, unless one was begun already."""
    if path.exists():
        return
    ours = {PREFIX + name.upper() for name in FIELDS}
    kept = {name: value for name, value in settings.environment().items() if name in ours}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=2))


def refuse_another(root: Path, settings: Settings, workload: Workload) -> None:
    """Refuse to go on with a world that was made of something else than these settings make.

    The settings may be the same and what they name another: a trace that was replaced, a file of
    the twin that was changed, another version of the twin's defaults.

    Raises:
        StackError: the saved world is another one, or cannot be read.

    """
    path = root / STORE_FILE
    if not path.exists():
        return
    try:
        store = Store(path)
        try:
            stored = store.load()
        finally:
            store.close()
        saved = None if stored is None else msgspec.msgpack.decode(stored.data, type=_Saved)
    except (StoreError, msgspec.MsgspecError) as error:
        raise StackError(f"the world in {root} cannot be read ({error}); {OTHERWISE}") from None
    if saved is None:
        return
    if saved.origin != origin_of(twin_config(settings), workload.name, workload.start_us):
        raise StackError(
            f"the world in {root} was begun with another trace, configuration or version of the "
            f"twin than {workload.name} from {_shown(settings.traces)} makes; {OTHERWISE}"
        )


def _same(name: str, settings: Settings, begun: Settings) -> bool:
    """Say whether a setting is the world's; a folder of traces may have moved."""
    if getattr(settings, name) == getattr(begun, name):
        return True
    return name == "traces" and begun.traces is not None and not begun.traces.is_dir()


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S")
    return "none" if value is None or value == "" else str(value)


def whole_paths(settings: Settings) -> Settings:
    """Return settings whose paths hold wherever a service stands."""
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
