"""What surrounds an experiment: files, resume, sweeps, reports, exports."""
