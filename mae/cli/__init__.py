"""Code that the scripts share: parsing, data and models from flags, whole runs, exit codes."""
