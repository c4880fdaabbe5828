"""What every test needs of the process that it runs in."""

from __future__ import annotations

import signal

# A shell's background job is started with Ctrl-C ignored, and so are its children: here it is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
