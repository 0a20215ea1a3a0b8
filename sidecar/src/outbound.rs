//! The story from this pod's application to the network.
