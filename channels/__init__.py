"""Which channel is which in any network's graph, and how some are taken out."""
