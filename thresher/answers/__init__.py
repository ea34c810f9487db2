"""Answers from several sources whose reliability nobody labelled, and from several ways of asking.

`sources` reads folders of texts and finds passages, `shelf` keeps states on disk, `reader` asks a model what one source
says, `panel` votes; `sandbox` runs a model's program, `solve` mixes ways of asking. The votes are `reference.voting`.
"""
