"""Run the command line as `python -m gpuloop.ops.cli`."""

import sys

from gpuloop.ops.cli.main import main

sys.exit(main())
