"""What the networks share that editors learn from others' edits: the loop, and where they are kept."""
