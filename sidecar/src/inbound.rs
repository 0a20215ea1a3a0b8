//! The story from the network to this pod's application.
