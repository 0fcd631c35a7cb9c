"""The only writers of tasks, and what reads them in bulk."""
