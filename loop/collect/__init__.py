"""Reading the devices, exporters and servers that a real fleet is observed through."""
