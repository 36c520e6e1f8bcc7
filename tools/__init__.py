"""What writes the tables of this project's documents. It is not part of the package."""
