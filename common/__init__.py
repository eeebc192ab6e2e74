"""Flags, exit codes, files, processes, images, the terminal: what any suite could have."""
