"""HTTP in, images out: the dial turns a request into samples, waves draw them, an encode pool makes bytes."""
