"""The files that runs leave: one table of all of them, a manifest per run, and a reader and a writer for each."""
