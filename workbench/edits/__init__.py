"""What an editor returns: a change that can be tried, kept, undone exactly, saved, loaded and exported."""
