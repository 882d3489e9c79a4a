"""Record topics to a folder, and run what was recorded through the components again."""
