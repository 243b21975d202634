"""The explorer: preference pairs beside their rewards in a browser, to be read, filtered, measured, compared and labelled, on this machine alone."""
