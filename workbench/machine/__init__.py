"""What knows nothing of models: files, JSON, hashes, processes, memory, versions, failures, intervals."""
