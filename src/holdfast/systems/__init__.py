"""One published method per file, each reading like its paper's method section."""
