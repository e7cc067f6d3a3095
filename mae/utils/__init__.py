"""The ground: errors, retries, ranks, files, hashes."""
