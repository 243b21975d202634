"""Arrays in, numbers out: intervals, paired tests, calibration (numpy and scipy only)."""
