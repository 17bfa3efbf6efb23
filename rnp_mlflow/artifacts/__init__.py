"""What a run leaves for those that read it: the table of the files, and a manifest of each run's own."""
