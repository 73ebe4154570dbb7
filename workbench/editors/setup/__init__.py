"""From the name of a method to an editor that is ready for a model: presets, contexts, texts for second moments."""
