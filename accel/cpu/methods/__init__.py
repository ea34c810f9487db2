"""The methods that choose: QUOKA, KeyDiff, CAOTE and what they rank by, and the top-k that all share."""
