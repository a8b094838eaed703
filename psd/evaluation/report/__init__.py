"""Tables, intervals and charts of recorded results."""
