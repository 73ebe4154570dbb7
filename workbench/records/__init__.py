"""Facts, requests and records: what they are, how their texts are joined, and a reader for each public format."""
