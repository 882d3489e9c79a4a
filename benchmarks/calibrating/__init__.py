"""Parts of the calibration report."""
