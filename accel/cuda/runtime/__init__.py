"""Below every kernel: the device, its memory, arrays, and how a Python function becomes machine code."""
