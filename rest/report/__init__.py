"""What a run shows: tables, plots, one page."""
