//! Every way an RPC can fail here: its status, whose fault it is, and whether anything was sent.
