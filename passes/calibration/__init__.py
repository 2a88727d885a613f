"""What calibration text shows about the values of a graph."""
