"""The embedded default: real-world facts, their prompts, and the small model that knows them."""
