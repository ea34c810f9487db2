"""A loaded model behind OpenAI's HTTP interface.

bodies      what a request may say, checked
scheduler   which answers share the model's passes: continuous batching over a few places
prefixes    beginnings of prompts that have been read, so that they are not read again
replies     what goes back, whole or streamed
reply       a request on its way: submitted, sent, given up when the client goes
app         routes, limits, keys and errors, on Starlette
metrics     counts for Prometheus
deployment  the same application on Ray Serve
"""
