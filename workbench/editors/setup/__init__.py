"""What an editor is set up with: presets, contexts, texts for second moments."""
