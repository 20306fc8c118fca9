"""Results of runs: read run folders, tables with the published rows, and the page of figures."""
