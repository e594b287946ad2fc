"""The house trainer and what surrounds a training: preparation, callbacks, stop signals."""
