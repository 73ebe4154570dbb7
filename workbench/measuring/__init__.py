"""From a model, an edit and a record to scores, and from many scores to means with intervals."""
