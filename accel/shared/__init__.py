"""What every accelerated backend needs once, whatever its arrays are: lazy arrays, and where a cache's columns lie."""
