"""The parts of the pricing benchmark."""
