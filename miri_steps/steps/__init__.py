"""The Steps: shells that open, mask, call the algorithm, write back and record."""
