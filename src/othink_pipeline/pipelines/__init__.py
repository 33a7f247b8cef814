"""One package for each stage of the experiment."""
