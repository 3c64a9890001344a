"""Stage two: batches, the pure step, and the loop that repeats it for one run or for hundreds."""
