"""What every part of the package shares and none of it is about memory."""
