"""Exit 0 when the service in this container says that it is ready; an image's HEALTHCHECK.

Runs as a script with the standard library only, so that a probe every few seconds stays cheap.
"""

import os
import sys
import urllib.error
import urllib.request

PORT = os.environ.get("GPULOOP_HTTP_PORT", "8080")


def main() -> int:
    """Ask `/health` on loopback and print what it said when it is not ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2.5):
            return 0
    except urllib.error.HTTPError as error:
        print(error.read().decode(errors="replace"))
    except OSError as error:
        print(error)
    return 1


if __name__ == "__main__":
    sys.exit(main())
