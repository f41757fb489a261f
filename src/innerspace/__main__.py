"""The command line as a module: ``python -m innerspace``, and ``torchrun -m innerspace`` for several processes."""

import sys

from innerspace.cli import main

sys.exit(main())
