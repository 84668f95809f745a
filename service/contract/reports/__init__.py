"""What runners say of clusters and ranks of training, and what they hear."""
