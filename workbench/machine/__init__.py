"""What the workbench needs of a machine, and nothing of models: files, JSON, processes, memory, versions, failures."""
