"""The queue of everything that has to be measured or trained on a GPU, in pieces that end within minutes."""
