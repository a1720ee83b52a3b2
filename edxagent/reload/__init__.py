"""Going by another configuration without a restart."""
