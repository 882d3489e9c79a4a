"""What people see: the northbound HTTP API and the web console."""
