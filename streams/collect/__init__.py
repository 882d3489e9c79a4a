"""What collectors make of what devices, exporters and Prometheus say. No I/O, no clock."""
