"""Text, facts and token streams to train and evaluate on."""
