"""Questions about a trained model, each answered by a function that returns plain numbers."""
