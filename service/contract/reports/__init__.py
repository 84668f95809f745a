"""What runners report about clusters and ranks about training, and the replies."""
