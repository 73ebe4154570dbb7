"""What several editors need: keys at the subject, second moments of keys, the spreading of a change over layers."""
