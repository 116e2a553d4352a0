"""Wire values and protocols: what is asked, answered and promised between the layers. No I/O."""
