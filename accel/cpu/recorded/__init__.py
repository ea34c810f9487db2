"""Tokens of decoding that are recorded once, as a list of kernel calls, and then run as a whole.

For every token decoding makes the same few hundred calls, with Python between them that takes a fifth of the time and
more. Few of their words change: where the new keys are written and how many a token sees. So a cache keeps the list of
its calls with every layer's weights, and buffers that all layers share. A token writes what has changed into the list,
for all layers at once, and runs it without coming back to Python. What one kernel chooses, the columns that a token
reads or that stay, the next one finds in a buffer. The kernels and their arguments are those that the forward pass
calls one by one, and so is every bit of the answer.

    passes     which passes are recorded, and when a list must be made anew
    step       the list: norms, linear maps, attention and FFN of all sequences
    sequence   what each sequence adds: appending, selecting and evicting in its own caches
"""
