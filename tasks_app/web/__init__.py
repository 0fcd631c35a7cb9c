"""Pages of tasks, the words on them, and what starts tasks from a site's own pages."""
