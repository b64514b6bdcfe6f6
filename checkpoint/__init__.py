"""What a model file is, told from its header."""
