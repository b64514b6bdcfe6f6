"""What the editor asks while a graph is edited."""
