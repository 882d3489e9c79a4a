"""Make the learner's signing key where only it can read it, and its public half where all can.

Runs once at every start, before the services, so that the decider trusts this stack's own learner
and no secret stands in a file of the project.

Usage: keys.py PRIVATE_KEY PUBLIC_KEY
"""

import sys
from pathlib import Path

from gpuloop.loop.evaluate.keys import KeyFileError, load_or_create, public_hex


def main(private: Path, public: Path) -> int:
    """Write the public half of the key at `private`, which is made unless it is there."""
    try:
        key = load_or_create(private)
    except KeyFileError as error:
        print(error, file=sys.stderr)
        return 1
    public.write_text(public_hex(key) + "\n")
    print(f"policies signed by {public_hex(key)} are trusted")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
