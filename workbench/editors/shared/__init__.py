"""What several editors need: keys at the subject, second moments of keys, requests that do not contradict."""
