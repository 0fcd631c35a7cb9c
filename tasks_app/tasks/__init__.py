"""What task authors write against: task classes, their parameters, progress, forms."""
