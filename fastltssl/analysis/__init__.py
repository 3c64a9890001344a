"""What finished runs say about pseudo-label bias: plain functions and studies, no pictures."""
