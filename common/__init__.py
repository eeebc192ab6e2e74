"""What knows no pruning: flags, exit codes, files, processes, images, the terminal."""
