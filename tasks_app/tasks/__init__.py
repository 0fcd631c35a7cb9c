"""The interface for task authors: task classes, their parameters, progress, forms."""
