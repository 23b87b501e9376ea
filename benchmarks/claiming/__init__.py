"""Papers' headline claims, tried at a small scale: which, how a run is made, how it is judged."""
