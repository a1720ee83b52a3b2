"""The pages of documentation, and what writes them."""
