"""Two loops, one step, one checkpoint, one log."""
