"""The chapters, and how a block of code is fenced in them: what the tests and the site both need to know."""

import re

CHAPTERS = ("transformer", "quoka", "keydiff", "caote", "fastforward")
FENCE = re.compile(r"^```python( real| picture| transformers| widget)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
